import { assert, assertEquals, assertRejects } from "@std/assert";
import { cpuPipeline } from "../../indexer/pipelines/cpu/mod.ts";
import { type CpuBuffers, MAKE_LIST, STEP_FIELDS } from "../../indexer/pipelines/cpu/jobs.ts";
import { ROW_FIELDS } from "../../kernels/shape.ts";
import { Pool, WorkerError } from "../../indexer/pipelines/cpu/pool.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import { gaussian } from "../../experiments/inputs/synthetic.ts";
import { script, uniform } from "../support.ts";

const OPTIONS = {
  heads: 6,
  headWidth: 12,
  subvectors: 3,
  bits: 3,
  sinkSize: 4,
  windowSize: 9,
  heavySize: 30,
  weights: true,
};
const loose = { sanitizeOps: false, sanitizeResources: false }; // workers outlive the tests that start them

async function run(threads: number | undefined): Promise<string> {
  using index = await PqIndexer.create({
    ...OPTIONS,
    pipeline: cpuPipeline({ threads }),
    codebook: { centroids: gaussian(6 * 3 * 8 * 4, 1), tokens: 0 },
  });
  await index.append(gaussian(6 * 500 * 12, 2));
  const results: string[] = [];
  for (let step = 0; step < 20; step++) {
    const rows = 1 + step % 3;
    const data = await (await index.step(gaussian(6 * rows * 12, 100 + step), gaussian(6 * rows * 12, 200 + step)))
      .read();
    results.push(data.indices.join(), data.lengths.join(), data.weights!.join());
  }
  results.push((await index.readCodes()).join());
  return results.join(";");
}

// `deno test` type-checks a worker's modules when the first one starts: with an empty cache that takes longer than a start
// may (`deno run`, which does not, starts two threads in 140 ms then). If they never start, the tests below say so.
for (let attempt = 0; attempt < 10; attempt++) {
  if (await Pool.start(2).then(() => true, () => false)) break;
}

Deno.test({
  name: "cpu: any number of threads gives the same lists, weights and codes",
  ...loose,
  fn: async () => {
    const alone = await run(1);
    for (const threads of [2, 3, 7, undefined]) assertEquals(await run(threads) === alone, true, `${threads} threads`);
  },
});

Deno.test({
  name: "cpu: layers share the pool, in turns and with sizes of their own",
  ...loose,
  fn: async () => {
    const open = (heads: number, threads: number) =>
      PqIndexer.create({
        ...OPTIONS,
        heads,
        pipeline: cpuPipeline({ threads }),
        codebook: { centroids: gaussian(heads * 3 * 8 * 4, 1), tokens: 0 },
      });
    const sizes = [1, 5, 2];
    const layers = await Promise.all(sizes.map((heads) => open(heads, 3)));
    const single = await Promise.all(sizes.map((heads) => open(heads, 1)));
    for (let step = 0; step < 30; step++) {
      for (const [ix, heads] of sizes.entries()) {
        const query = gaussian(heads * 12, step), keys = gaussian(heads * (step % 7 + 1) * 12, 50 + step);
        const options = { tokens: step % 7 + 1 };
        await layers[ix].append(keys, options);
        await single[ix].append(keys, options);
        const got = await (await layers[ix].select(query)).read();
        assertEquals(got, await (await single[ix].select(query)).read());
      }
    }
    for (const layer of [...layers, ...single]) layer.destroy();
  },
});

for (
  const [what, code] of [
    ["throws", "throw new Error('no such thing')"],
    ["ends", ""],
    ["never gets ready", "setInterval(() => {}, 1000)"],
  ]
) {
  Deno.test({
    name: `cpu: a worker that ${what} at its start is a WorkerError within a second`,
    ...loose,
    fn: async () => {
      const begin = performance.now();
      const script = new URL(`data:application/javascript,${encodeURIComponent(code)}`);
      const error = await assertRejects(() => Pool.start(3, script), WorkerError, "Cannot start a worker");
      assert(error.message.includes("use cpuPipeline({ threads: 1 })"), error.message);
      assert(performance.now() - begin < 1500);
    },
  });
}

Deno.test({
  name: "cpu: a worker that does not know a layer yet leaves its jobs to the others",
  ...loose,
  fn: async () => {
    const pool = await Pool.start(3);
    const step = new Int32Array(STEP_FIELDS.length + ROW_FIELDS.length);
    const fields: Record<string, number> = { listStride: 4, nRows: 1, nTokens: 3, nSink: 3, windowBegin: 3 };
    [...STEP_FIELDS, ...ROW_FIELDS].forEach((name, ix) => step[ix] = fields[name] ?? 0);
    const buffers: CpuBuffers = {
      shape: Int32Array.of(1, 50, 50, 1, 2, 1, 1),
      step,
      centroids: new Float32Array(100),
      phi: new Float32Array(0),
      codes: new Uint8Array(0),
      query: new Float32Array(50),
      newKeys: new Float32Array(0),
      indices: new Uint32Array(200),
      lengths: new Uint32Array(50),
      weights: new Float32Array(0),
    };
    for (let round = 0; round < 30; round++) {
      buffers.lengths.fill(0);
      pool.run(123, buffers, MAKE_LIST, 50);
      assertEquals(buffers.lengths.every((length) => length === 3), true);
      if (round % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    }
  },
});

Deno.test("cpu: threads out of range are refused", async () => {
  for (const threads of [0, -1, 1.5, 257, NaN]) {
    await assertRejects(
      () => PqIndexer.create({ ...OPTIONS, pipeline: cpuPipeline({ threads }) }),
      RangeError,
      "threads",
    );
  }
});

Deno.test("cpu: a script that destroys nothing ends by itself, and is what an index without a GPU runs", async () => {
  const script = `
    import { PqIndexer } from "${new URL("../../mod.ts", import.meta.url)}";
    const index = await PqIndexer.create({ heads: 4, headWidth: 8, heavySize: 3, sinkSize: 1, windowSize: 2, bits: 2 });
    await index.append(Float32Array.from({ length: 4 * 60 * 8 }, (_, i) => Math.sin(i * i)));
    const selection = await index.select(new Float32Array(32).fill(1));
    console.log(index.pipeline.id, (await selection.read()).lengths.join());
  `;
  const command = new Deno.Command(Deno.execPath(), {
    args: ["eval", "--ext=ts", script],
    env: { DENO_WEBGPU_BACKEND: "dx12", NO_COLOR: "1" }, // which no Linux or macOS machine has
    stdout: "piped",
    stderr: "piped",
    signal: AbortSignal.timeout(30_000),
  });
  const { success, stdout, stderr } = await command.output();
  assert(success, new TextDecoder().decode(stderr));
  if (Deno.build.os !== "windows") assertEquals(new TextDecoder().decode(stdout).trim(), "cpu 6,6,6,6");
});

/** An index of 8 heads with a codebook and room for many tokens that has selected once. */
async function openWide(threads: number, keys: Float32Array): Promise<PqIndexer> {
  const index = await PqIndexer.create({
    heads: 8,
    headWidth: 64,
    pipeline: cpuPipeline({ threads }),
    sinkSize: 4,
    windowSize: 32,
    heavySize: 64,
    capacity: 262_144,
    weights: true,
    codebook: { centroids: keys.slice(0, 8 * 64 * 64), tokens: 0 },
  });
  await index.append(keys);
  await (await index.select(keys.subarray(0, 8 * 64))).read();
  return index;
}

/** A worker that writes into the announced `lengths`: bytes of typed arrays it was sent, names sent, ms to receive, 1. */
const RECEIVER = `
  import { receiveMessageOnPort, workerData } from "node:worker_threads";
  const { memory, port } = workerData, words = new Int32Array(memory, 0, 8);
  Atomics.add(words, 1, 1);
  for (let seen = 0;; seen = Atomics.load(words, 0)) {
    Atomics.wait(words, 0, seen, 20);
    const begin = performance.now(), news = receiveMessageOnPort(port);
    if (!news) continue;
    const elapsed = performance.now() - begin;
    const sent = Object.entries(news.message.changed ?? news.message.buffers ?? {});
    const views = sent.filter(([, value]) => ArrayBuffer.isView(value));
    const lengths = sent.find(([name]) => name === "lengths")?.[1];
    if (!lengths) continue;
    const out = new Int32Array(lengths.memory ?? lengths.buffer);
    out[0] = views.reduce((sum, [, value]) => sum + value.byteLength, 0);
    out[1] = sent.length;
    out[2] = elapsed;
    Atomics.store(out, 3, 1);
  }
`;

Deno.test({
  name: "cpu: threads are sent memory, only what changed, and have it soon",
  ...loose,
  fn: async () => {
    const pool = await Pool.start(2, new URL(`data:application/javascript,${encodeURIComponent(RECEIVER)}`));
    const lengths = () => new Uint32Array(new SharedArrayBuffer(64) as ArrayBufferLike as ArrayBuffer);
    const codes = new Uint8Array(new SharedArrayBuffer(2 ** 24) as ArrayBufferLike as ArrayBuffer);
    let number = 0;
    const sent = async (changed: Partial<CpuBuffers> & { lengths: Uint32Array }) => {
      const begin = performance.now();
      number = pool.announce(number, changed as CpuBuffers);
      while (Atomics.load(changed.lengths, 3) === 0) {
        assert(performance.now() - begin < 20_000, "a worker got no news");
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      const [bytes, names, ms] = changed.lengths;
      return { bytes, names, ms };
    };
    const first = await sent({ codes, lengths: lengths() });
    assertEquals([first.bytes, first.names], [0, 2], "bytes of typed arrays, buffers");
    // A typed array of 16 MiB takes Deno two seconds to receive; its memory less than a millisecond.
    assert(first.ms < 250, `${first.ms} ms to receive 16 MiB`);
    const second = await sent({ lengths: lengths() });
    assertEquals([second.bytes, second.names], [0, 1], "bytes of typed arrays, buffers");
  },
});

Deno.test("cpu: one thread needs no SharedArrayBuffer, which pages without isolation lack", async () => {
  const script = `
    delete globalThis.SharedArrayBuffer;
    const { cpuPipeline, PqIndexer } = await import("${new URL("../../mod.ts", import.meta.url)}");
    for (const threads of [undefined, 1]) {
      const pipeline = cpuPipeline({ threads });
      const index = await PqIndexer.create({ heads: 4, headWidth: 8, heavySize: 3, sinkSize: 1, windowSize: 2, bits: 2, pipeline });
      await index.append(Float32Array.from({ length: 4 * 60 * 8 }, (_, i) => Math.sin(i * i)));
      console.log((await (await index.select(new Float32Array(32).fill(1))).read()).lengths.join());
      index.destroy();
    }
  `;
  const command = new Deno.Command(Deno.execPath(), {
    args: ["eval", "--ext=ts", script],
    env: { NO_COLOR: "1" },
    stdout: "piped",
    stderr: "piped",
    signal: AbortSignal.timeout(30_000),
  });
  const { success, stdout, stderr } = await command.output();
  assert(success, new TextDecoder().decode(stderr));
  assertEquals(new TextDecoder().decode(stdout).trim().split(/\r?\n/), ["6,6,6,6", "6,6,6,6"]);
});

Deno.test({
  name: "two threads are not slower than one where indexes are created, filled and grown",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const keys = uniform(8 * 4000 * 64, 1), least = [Infinity, Infinity, Infinity];
    // By turns, and the best of each: other programs may take a core meanwhile.
    for (let round = 0; round < 5; round++) {
      for (const threads of [1, 2]) {
        const begin = performance.now();
        using index = await openWide(threads, keys);
        await index.reserve(524_288);
        await (await index.step(uniform(8 * 64, 2), uniform(8 * 64, 3))).read();
        least[threads] = Math.min(least[threads], performance.now() - begin);
      }
    }
    assert(least[2] <= 1.1 * least[1], `2 threads ${least[2].toFixed(0)} ms, 1 thread ${least[1].toFixed(0)} ms`);
  },
});

Deno.test({
  name: "threads forget what was destroyed: memory is level over 200 indexes and over requests of 32",
  fn: async () => {
    // In a process of its own: memory is that of the process, and other tests share ours.
    const { code, stdout, stderr } = await script("tests/indexer/cpu_memory.ts", []);
    assertEquals(code, 0, stderr);
    const { cycles, requests } = JSON.parse(stdout) as { cycles: number[]; requests: number[] };
    assert(cycles[1] - cycles[0] < 100, `MiB after 60 and 200 indexes: ${cycles}`);
    assert(requests[5] - requests[1] < 150, `MiB after each request: ${requests}`);
  },
});
