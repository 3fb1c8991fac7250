import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { checkCodes, checkSelection } from "../../indexer/checks.ts";
import { trainCodebook } from "../../indexer/kmeans.ts";
import { agreesToTheByte, DEFAULT_PIPELINE, pipelineById, PIPELINES } from "../../indexer/pipelines/mod.ts";
import { type CodebookInput, PqIndexer, type PqIndexerOptions } from "../../indexer/pq_indexer.ts";
import { resolveConfig } from "../../indexer/config.ts";
import { listOf, type Selection, type SelectionData } from "../../indexer/selection.ts";
import { DEFAULT_DEVICE, planStep } from "../../indexer/pipelines/plan.ts";
import type { TuningFile } from "../../indexer/tuning.ts";
import { GpuDeviceLostError, GpuOutOfMemoryError } from "../../kernels/gpu/errors.ts";
import { Gpu } from "../../kernels/gpu/device.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { cellCounts, postings } from "../../kernels/postings/postings.ts";
import { PassTimer } from "../../kernels/gpu/timing.ts";
import { countAllocations, gpuTest, hasGpu, oddStep, uniform } from "../support.ts";

const OPTIONS = {
  batch: 2,
  heads: 6,
  kvHeads: 3,
  headWidth: 20,
  subvectors: 4,
  bits: 4,
  sinkSize: 5,
  windowSize: 11,
  heavySize: 13,
  weights: true,
  capacity: 8,
} satisfies PqIndexerOptions;
const N_KV = 6, N_HEADS = 12, D = 20;

const keys = (t: number, seed: number) => uniform(N_KV * t * D, seed);
const queries = (rows: number, seed: number) => uniform(N_HEADS * rows * D, seed);

const listsOf = (data: SelectionData) => Array.from(data.lengths, (_, list) => [...listOf(data, list)]);

/** Everything about a selection is right, given the index's own codes. */
async function check(index: PqIndexer, query: Float32Array, selection: Selection): Promise<SelectionData> {
  const data = await selection.read();
  const { errors, firstError } = checkSelection({
    config: index.config,
    initOffset: index.initOffset ?? 5,
    codebook: index.codebook,
    codes: await index.readCodes(),
    nTokens: index.tokens,
    query,
    weights: data.weights !== undefined,
    halfTables: index.pipeline.halfTables,
  }, data);
  assertEquals(errors, 0, firstError);
  return data;
}

const runnable = PIPELINES.filter((pipeline) => hasGpu || pipeline.runsOn === "cpu");

Deno.test("pipelines: one ordered list, ids unique, found by id", () => {
  const ids = PIPELINES.map(({ id }) => id);
  assertEquals(ids, [...new Set(ids)]);
  assertEquals(ids.slice(0, 3), ["e00", "cpu", "e01"]);
  for (const pipeline of PIPELINES) {
    assertEquals(pipelineById(pipeline.id), pipeline);
    assert(pipeline.title.length > 0 && pipeline.change.length > 0);
  }
  assertEquals(DEFAULT_PIPELINE.runsOn, "gpu");
  assertThrows(() => pipelineById("e99"), RangeError, `must be one of ${ids.join(", ")}`);
});

for (const { id, runsOn } of runnable) {
  Deno.test({
    name: `${id}: a first step that fails after or before training leaves the index as it was`,
    ...loose(runsOn),
    fn: async () => {
      using index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      await index.append(keys(60, 1));
      const query = queries(1, 2), newKeys = keys(1, 3);
      const wrongOut = { out: { indices: {} as never, lengths: {} as never, listStride: 3, weightStride: 3 } };
      await assertRejects(() => index.step(query, newKeys, wrongOut), Error);
      await assertRejects(() => index.step(query.slice(1), newKeys), RangeError);
      assertEquals([index.tokens, index.codedTokens, index.codebook], [60, 0, undefined]);
      const data = await check(index, query, await index.step(query, newKeys));
      assertEquals([index.tokens, data.lengths[0]], [61, 29]);
    },
  });

  Deno.test({
    name: `${id}: arrays may be reused at once, results are read in turn, destroy waits`,
    ...loose(runsOn),
    fn: async () => {
      const index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      const reused = keys(80, 1);
      const appended = index.append(reused);
      reused.fill(NaN);
      await appended;
      const query = queries(1, 2);
      const first = await index.select(query);
      const [data] = await Promise.all([first.read(), index.select(queries(1, 3))]);
      assertEquals(listsOf(data), listsOf(await (await index.select(query)).read()));
      await assertRejects(() => first.read(), RangeError, "valid until the index's next call");
      const running = [index.step(query, keys(1, 4)), index.append(keys(50, 5)), index.readCodes()];
      index.destroy();
      index.destroy();
      assertEquals((await Promise.allSettled(running)).map(({ status }) => status), [
        "fulfilled",
        "fulfilled",
        "fulfilled",
      ]);
      await assertRejects(() => index.append(keys(1, 1)), TypeError, "destroyed");
    },
  });

  Deno.test({
    name: `${id}: a short prefill grows long, trains by itself, and every step is right`,
    ...loose(runsOn),
    fn: async () => {
      using index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      const first = keys(20, 1);
      await index.append(first);
      assertEquals([index.tokens, index.codedTokens, index.codebook], [20, 0, undefined]);
      const all: Float32Array[] = [];
      let sawShort = false, sawLong = false;
      for (let step = 0; step < 40; step++) {
        const query = queries(1, 100 + step), newKeys = keys(1, 200 + step);
        all.push(newKeys);
        const data = await check(index, query, await index.step(query, newKeys));
        const isShort = data.lengths[0] === index.tokens;
        sawShort ||= isShort;
        sawLong ||= !isShort;
        if (!isShort) assertEquals(data.lengths[7], 5 + 11 + 13);
      }
      assert(sawShort && sawLong);
      assertEquals([index.tokens, index.codedTokens, index.initOffset], [60, 55, 5]);
      // The codes are those of all keys since initOffset, wherever they were appended.
      const joined = new Float32Array(N_KV * 60 * D);
      for (let kv = 0; kv < N_KV; kv++) {
        joined.set(first.subarray(kv * 20 * D, (kv + 1) * 20 * D), kv * 60 * D);
        all.forEach((key, step) => joined.set(key.subarray(kv * D, (kv + 1) * D), (kv * 60 + 20 + step) * D));
      }
      const codes = checkCodes(index.config.shape, index.codebook!, joined, await index.readCodes(), 5);
      assertEquals(codes.errors, 0, codes.firstError);
    },
  });

  Deno.test({
    name: `${id}: sizes that overlap, K of 0, K above what is there, ratios, rows`,
    ...loose(runsOn),
    fn: async () => {
      const variants: Partial<PqIndexerOptions>[] = [
        { heavySize: 0 },
        { heavySize: 10_000 },
        { heavySize: 30, windowSize: 40, sinkSize: 20 },
        { windowSize: 0, sinkSize: 0 },
        { sinkSize: 50, initOffset: 3 },
        { sinkSize: 2, initOffset: 33 },
        { heavySize: { ratio: 0.25 }, windowSize: { ratio: 0.1 }, sinkSize: { ratio: 0.05 } },
        { heavySize: { ratio: 1 } },
        { metric: "ip" },
        { subvectors: 1, bits: 1 },
        { subvectors: 10, bits: 6 },
        { batch: 1, heads: 12, kvHeads: 1, weights: false },
      ];
      for (const [ix, variant] of variants.entries()) {
        const options = { ...OPTIONS, ...variant, pipeline: id };
        using index = await PqIndexer.create(options);
        const nKv = options.batch * options.kvHeads;
        await index.append(uniform(nKv * 90 * D, ix));
        for (const rows of [1, 3, 2]) {
          const query = queries(rows, ix + 50);
          const selection = await index.step(query, uniform(nKv * rows * D, ix + 60));
          assertEquals([selection.batch, selection.heads, selection.rows], [options.batch, options.heads, rows]);
          const data = await selection.read();
          assertEquals(data.weights !== undefined, options.weights);
          const result = checkSelection({
            config: index.config,
            initOffset: index.initOffset ?? 0,
            codebook: index.codebook,
            codes: await index.readCodes(),
            nTokens: index.tokens,
            query,
            weights: data.weights !== undefined,
            halfTables: index.pipeline.halfTables,
          }, data);
          assertEquals(result.errors, 0, `${JSON.stringify(variant)}, ${rows} rows: ${result.firstError}`);
        }
        assertEquals(index.tokens, 96);
      }
    },
  });

  Deno.test({
    name: `${id}: append then select is step; many keys at once are one at a time`,
    ...loose(runsOn),
    fn: async () => {
      const { shape } = resolveConfig(OPTIONS);
      const codebook = trainCodebook(shape, keys(80, 3));
      const open = () =>
        PqIndexer.create({ ...OPTIONS, pipeline: id, initOffset: 5, codebook: { centroids: codebook.centroids } });
      using stepped = await open();
      using appended = await open();
      using bulk = await open();
      const many = keys(70, 4), query = queries(2, 5);
      for (let token = 0; token < 70; token++) {
        const one = new Float32Array(N_KV * D);
        for (let kv = 0; kv < N_KV; kv++) {
          one.set(many.subarray((kv * 70 + token) * D, (kv * 70 + token + 1) * D), kv * D);
        }
        if (token < 69) {
          await stepped.append(one);
        } else await stepped.step(query, one);
        await appended.append(one);
      }
      await bulk.append(many);
      const codes = await bulk.readCodes();
      assertEquals(await stepped.readCodes(), codes);
      assertEquals(await appended.readCodes(), codes);
      const lists = async (index: PqIndexer) => listsOf(await (await index.select(query)).read());
      assertEquals(await lists(stepped), await lists(bulk));
      assertEquals(await lists(appended), await lists(bulk));
    },
  });

  Deno.test({
    name: `${id}: codebook and codes from elsewhere, in both layouts and any integer type`,
    ...loose(runsOn),
    fn: async () => {
      const { shape } = resolveConfig(OPTIONS);
      const prompt = keys(100, 6);
      const trained = trainCodebook(shape, prompt, { initOffset: 5 });
      const pytorch = new BigInt64Array(trained.codes.length);
      const n = 95, perToken = 3 * 4;
      trained.codes.forEach((code, at) => {
        const b = Math.floor(at / (perToken * n)), row = Math.floor(at / n) % perToken, i = at % n;
        pytorch[(b * n + i) * perToken + row] = BigInt(code);
      });
      const { centroids } = trained;
      const query = queries(1, 7);
      for (
        const codebook of [{ centroids, codes: trained.codes }, {
          centroids,
          codes: pytorch,
          codesLayout: "bnhm" as const,
        }]
      ) {
        using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, codebook });
        assertEquals([index.tokens, index.codedTokens], [100, 95]);
        assertEquals(await index.readCodes(), trained.codes);
        await check(index, query, await index.select(query));
      }
      // Without codes nothing is cached yet.
      using fresh = await PqIndexer.create({ ...OPTIONS, pipeline: id, codebook: { centroids } });
      assertEquals([fresh.tokens, fresh.codedTokens], [0, 0]);
      // A codebook that grew up elsewhere, for a cache that is still shorter than initOffset.
      using young = await PqIndexer.create({ ...OPTIONS, pipeline: id, codebook: { centroids, tokens: 2 } });
      await young.append(keys(10, 8));
      assertEquals([young.tokens, young.codedTokens], [12, 7]);
    },
  });

  Deno.test({
    name: `${id}: bad input is refused with its reason and leaves the index as it was`,
    ...loose(runsOn),
    fn: async () => {
      using index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      await index.append(keys(60, 1));
      const query = queries(1, 2);
      const before = await check(index, query, await index.select(query));
      const codes = await index.readCodes();
      const bad = (value: number) => {
        const values = keys(1, 3);
        values[7] = value;
        return values;
      };
      // deno-lint-ignore no-explicit-any
      const wrongType = [1, 2, 3] as any;
      const calls: [() => Promise<unknown>, typeof Error | typeof TypeError | typeof RangeError, string][] = [
        [() => index.append(bad(NaN)), RangeError, "keys must be finite: value 7 is NaN"],
        [() => index.step(query, bad(Infinity)), RangeError, "keys must be finite: value 7 is Infinity"],
        [() => index.step(query, bad(-Infinity)), RangeError, "value 7 is -Infinity"],
        [() => index.select(queries(1, 2).fill(NaN, 3, 4)), RangeError, "query must be finite: value 3 is NaN"],
        [() => index.step(queries(1, 2).fill(NaN, 3, 4), keys(1, 3)), RangeError, "query must be finite"],
        [() => index.append(new Float32Array(121)), RangeError, "a multiple of 120 values: length is 121"],
        [() => index.select(new Float32Array(241)), RangeError, "a multiple of 240 values: length is 241"],
        [() => index.select(new Float32Array(0)), RangeError, "rows must be an integer 1 to 64: rows is 0"],
        [() => index.select(queries(65, 1)), RangeError, "rows is 65"],
        [() => index.append(keys(2, 1), { tokens: 3 }), RangeError, "(3 times)"],
        [() => index.append(wrongType), TypeError, "must be a Float32Array or a GPU buffer: it is of class Array"],
        [() => index.select(undefined!), TypeError, "it is undefined"],
        [() => index.train(), RangeError, "there must be none yet"],
        [() => index.reserve(-1), RangeError, "tokens is -1"],
        [
          () => index.step(query, keys(1, 3), { row: 1 } as never),
          TypeError,
          "options are rows, out, cached, tokens: row is none of them",
        ],
        [() => index.append(keys(1, 3), { rows: 1 } as never), TypeError, "options are tokens: rows is none"],
        [() => index.select(query, null as never), TypeError, "options must be an object: they are null"],
        [() => index.reserve(100, NaN), RangeError, "rows must be an integer 1 to 64: rows is NaN"],
        [() => index.reserve(100, 65), RangeError, "rows is 65"],
        [() => index.step(query, keys(1, 3), { out: {} as never }), Error, ""],
      ];
      for (const [call, errorClass, message] of calls) await assertRejects(call, errorClass, message);
      assertEquals(index.tokens, 60);
      assertEquals(await index.readCodes(), codes);
      assertEquals(listsOf(await (await index.select(query)).read()), listsOf(before));
    },
  });

  Deno.test({
    name: `${id}: bad codebooks are refused`,
    ...loose(runsOn),
    fn: async () => {
      const { shape } = resolveConfig(OPTIONS);
      const { centroids, codes } = trainCodebook(shape, keys(100, 6), { initOffset: 5 });
      const refused = (codebook: object, message: string, more: object = {}) =>
        assertRejects(
          () => PqIndexer.create({ ...OPTIONS, pipeline: id, ...more, codebook: codebook as CodebookInput }),
          Error,
          message,
        );
      await refused(
        { centroids, codes: codes.map((code, at) => at === 9 ? 16 : code) },
        "integers below C, 16: code 9 is 16",
      );
      await refused({ centroids, codes: Float32Array.from(codes, (code) => code - 0.5) }, "code 0 is");
      await refused({ centroids, codes: [...codes, 0] }, "codes must hold n values for each of 24 subvectors");
      await refused({ centroids, codes, tokens: 99 }, "codes must cover tokens initOffset to N: tokens is 99");
      await refused({ centroids, codes, codesLayout: "hbmn" }, "codesLayout");
      await refused({ centroids: centroids.slice(1), codes }, "centroids must hold 1920 values: it holds 1919");
      await refused({ centroids: [...centroids] }, "centroids must be a Float32Array");
      await refused(
        { centroids: centroids.map((value, at) => at === 3 ? NaN : value) },
        "centroids must be finite: value 3 is NaN",
      );
      await refused({ centroids: new Float32Array(24 * 16 * 6) }, "phi must be a Float32Array", { metric: "ip" });
      await refused({ centroids, codes }, "initOffset must be given", { sinkSize: { ratio: 0.1 } });
      await assertRejects(() => PqIndexer.create({ ...OPTIONS, pipeline: "fastest" }), RangeError, 'id is "fastest"');
      for (
        const [option, value] of [["capacity", 1.5], ["seed", NaN], ["iterations", -3], ["iterations", 0]] as const
      ) {
        const create = () => PqIndexer.create({ ...OPTIONS, pipeline: id, [option]: value });
        await assertRejects(create, RangeError, `${option} is ${value}`);
      }
    },
  });

  Deno.test({
    name: `${id}: training by hand; too few keys leave nothing behind`,
    ...loose(runsOn),
    fn: async () => {
      const progress: string[] = [];
      using index = await PqIndexer.create({
        ...OPTIONS,
        pipeline: id,
        onTrainProgress: (done, total) => progress.push(`${done}/${total}`),
      });
      await assertRejects(() => index.train(keys(20, 1)), RangeError, "C is 16, keys are 15 (20 tokens, initOffset 5)");
      assertEquals([index.tokens, index.codebook, index.initOffset], [0, undefined, undefined]);
      await index.append(keys(3, 1));
      await index.train(keys(40, 2));
      assertEquals([index.tokens, index.codedTokens], [43, 38]);
      assertEquals(progress.at(-1), "24/24");
      const query = queries(1, 3);
      await check(index, query, await index.select(query));
    },
  });

  Deno.test({
    name: `${id}: an empty index lists nothing; calls may overlap; a destroyed one says so`,
    ...loose(runsOn),
    fn: async () => {
      const index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      assertEquals([...(await (await index.select(queries(1, 1))).read()).lengths], new Array(12).fill(0));
      assertEquals(await index.readCodes(), new Uint8Array(0));
      const calls = Array.from({ length: 60 }, (_, step) => index.step(queries(1, step), keys(1, step)));
      const last = (await Promise.all(calls)).at(-1)!;
      assertEquals(index.tokens, 60);
      await check(index, queries(1, 59), last);
      index.destroy();
      await assertRejects(() => index.select(queries(1, 1)), TypeError, "destroyed");
    },
  });
}

/** GPU pipelines share a device that outlives the test. */
function loose(runsOn: "cpu" | "gpu") {
  return runsOn === "gpu" ? { sanitizeResources: false, sanitizeOps: false } : {};
}

/** Buffers that come with a step, or that a plan does without where they do not fit. */
const OPTIONAL_BUFFERS = new Set(["newKeys", postings.name, cellCounts.name]);

/** A device whose binding holds `tokens` tokens of the test's shape and two rows, but not 500. */
async function smallDevice(kernels: readonly Kernel[], tokens: number) {
  const { shape } = resolveConfig(OPTIONS);
  const bytesAt = (stride: number) =>
    Math.max(
      ...kernels.flatMap(({ buffers }) =>
        buffers.filter(({ name }) => !OPTIONAL_BUFFERS.has(name)).map((use) =>
          4 * use.elements(shape, {
            ...oddStep(200, 13),
            codedStride: stride,
            weightStride: stride,
            heavyStride: 13,
            listStride: 40,
            rows: oddStep(200, 13).rows.slice(0, 1),
          })
        )
      ),
    );
  const largest = bytesAt(tokens);
  assert(bytesAt(500) > largest);
  const adapter = (await navigator.gpu.requestAdapter())!;
  const device = await adapter.requestDevice();
  const limits = new Proxy(device.limits, {
    get: (target, name) => name === "maxStorageBufferBindingSize" ? largest : Reflect.get(target, name, target),
  });
  Object.defineProperty(device, "limits", { value: limits });
  return { device, largest };
}

const gpuPipelines = runnable.filter((pipeline) => pipeline.runsOn === "gpu");

gpuTest("all f32 pipelines on the GPU give the same bytes, run after run", async () => {
  const results: Uint32Array[] = [];
  for (let repeat = 0; repeat < 2; repeat++) {
    for (const { id } of gpuPipelines.filter(agreesToTheByte)) {
      using index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      await index.append(keys(300, 1));
      const data = await (await index.step(queries(2, 2), keys(2, 3))).read();
      const lists = Array.from(data.lengths, (_, list) => [...listOf(data, list)]).flat();
      results.push(Uint32Array.from([...lists, ...data.weights!, ...await index.readCodes()]));
    }
  }
  for (const result of results) assertEquals(result, results[0]);
});

gpuTest("pipelines on the CPU and on the GPU take keys and queries in either form as they can", async (gpu) => {
  using buffer = await gpu.upload("query", queries(1, 1));
  using cpu = await PqIndexer.create({ ...OPTIONS, pipeline: "e00" });
  await assertRejects(() => cpu.select(buffer.buffer), TypeError, "e00 runs on the CPU: query is a GPU buffer");
  await assertRejects(() => cpu.append(buffer.buffer), TypeError, "keys is a GPU buffer");
  assertThrows(() => cpu.record({} as never, { query: buffer.buffer }), TypeError, "e00 runs on the CPU");
});

for (const { id, kernels } of gpuPipelines) {
  gpuTest(`${id}: GPU buffers in, the caller's buffers out, before and after training`, async (gpu) => {
    using fromArrays = await PqIndexer.create({ ...OPTIONS, pipeline: id });
    using fromBuffers = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device });
    const prompt = keys(30, 1);
    using promptBuffer = await gpu.upload("prompt", prompt);
    await fromArrays.append(prompt);
    await fromBuffers.append({ buffer: promptBuffer.buffer }, { tokens: 30 });
    using queryBuffer = await gpu.upload("query", queries(2, 0));
    using keyBuffer = await gpu.upload("keys", keys(3, 0));
    using indices = await gpu.allocate("indices", 24 * 70 * 4);
    using lengths = await gpu.allocate("lengths", 24 * 4);
    using weights = await gpu.allocate("weights", 24 * 99 * 4);
    const out = {
      indices: indices.buffer,
      lengths: lengths.buffer,
      weights: weights.buffer,
      listStride: 70,
      weightStride: 99,
    };
    for (let step = 0; step < 6; step++) {
      const query = queries(2, step + 10), newKeys = keys(3, step + 20);
      gpu.device.queue.writeBuffer(queryBuffer.buffer, 0, query as Float32Array<ArrayBuffer>);
      gpu.device.queue.writeBuffer(keyBuffer.buffer, 0, newKeys as Float32Array<ArrayBuffer>);
      const a = await (await fromArrays.step(query, newKeys)).read();
      const selection = await fromBuffers.step(queryBuffer.buffer, keyBuffer.buffer, { tokens: 3, rows: 2, out });
      assertEquals([selection.listStride, selection.weightStride], [70, 99]);
      assertEquals(selection.buffers!.indices.buffer, indices.buffer);
      const b = await selection.read();
      assertEquals(b.lengths, a.lengths);
      a.lengths.forEach((_, list) => {
        assertEquals(listOf(b, list), listOf(a, list));
        const row = (
          data: SelectionData,
        ) => [...data.weights!.subarray(list * data.weightStride, (list + 1) * data.weightStride)];
        const [x, y] = [row(a), row(b)];
        assertEquals(y.slice(0, fromArrays.tokens), x.slice(0, fromArrays.tokens));
        assert(y.slice(fromBuffers.tokens).every((weight) => weight === 0));
      });
    }
    assertEquals(await fromBuffers.readCodes(), await fromArrays.readCodes());
    assertEquals(fromBuffers.tokens, 48);

    const refused = (options: object, message: string) =>
      assertRejects(
        () => fromBuffers.step(queryBuffer.buffer, keyBuffer.buffer, { tokens: 3, rows: 2, ...options }),
        Error,
        message,
      );
    await refused({ rows: 3 }, "query buffer as it must hold");
    await refused({ tokens: 4 }, "new keys buffer as it must hold");
    await refused({ tokens: 1.5 }, "must be an integer");
    await refused(
      { out: { ...out, listStride: 20 } },
      "listStride must be an integer that holds the longest list: 20 for",
    );
    await refused({ out: { ...out, lengths: indices.buffer } }, "lengths and indices share bytes of one buffer");
    await refused({ out: { ...out, weights: queryBuffer.buffer } }, "weights buffer as it must hold");
    await refused({ out: { ...out, lengths: queryBuffer.buffer } }, "lengths and query share bytes of one buffer");
    await refused({ tokens: undefined }, "needs option tokens");
    await refused({ rows: undefined }, "needs option rows");
    await refused({ out: { ...out, listStride: 30.5 } }, "listStride must be an integer");
    await refused({ out: { ...out, weightStride: NaN } }, "weightStride must be an integer");
    await refused(
      { out: { ...out, weightStride: 40 } },
      "weightStride must be an integer that holds every token: 40 for 51",
    );
    await refused({ out: { ...out, weights: undefined } }, "give out.weights");
    await refused({ out: { ...out, indices: lengths.buffer } }, "indices buffer as it must hold");
    assertEquals(fromBuffers.tokens, 48);
    assertEquals(await fromBuffers.readCodes(), await fromArrays.readCodes());
  });

  gpuTest(`${id}: NaN and infinities in GPU buffers are not inspected, and rank as they should`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, batch: 1, heads: 1, kvHeads: 1, weights: false });
    await index.append(uniform(90 * D, 1));
    await index.select(uniform(D, 2));
    for (const [value, at] of [[NaN, 0], [Infinity, 3], [-Infinity, 11], [NaN, 19]]) {
      const query = uniform(D, 3);
      query[at] = value;
      using buffer = await gpu.upload("query", query);
      const data = await (await index.select(buffer.buffer)).read();
      const result = checkSelection({
        config: index.config,
        initOffset: index.initOffset!,
        codebook: index.codebook,
        codes: await index.readCodes(),
        nTokens: index.tokens,
        query,
        weights: data.weights !== undefined,
        halfTables: index.pipeline.halfTables,
      }, data);
      assertEquals(result.errors, 0, `${value}: ${result.firstError}`);
    }
    using bad = await gpu.upload("keys", new Float32Array(D).fill(NaN));
    await index.append(bad.buffer);
    const codes = await index.readCodes();
    const n = index.codedTokens;
    assertEquals([0, 1, 2, 3].map((m) => codes[m * n + n - 1]), [0, 0, 0, 0]);
  });

  gpuTest(`${id}: once warm, a step compiles and allocates nothing, growth aside`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 150 });
    await index.append(keys(100, 1));
    const query = queries(1, 2), newKeys = keys(1, 3);
    using queryBuffer = await gpu.upload("query", query);
    using keyBuffer = await gpu.upload("keys", newKeys);
    await (await index.step(query, newKeys)).read();
    await index.step(queryBuffer.buffer, keyBuffer.buffer);
    await index.step(query, newKeys);
    await index.append(newKeys);
    await index.select(queryBuffer.buffer);
    const warm = await countAllocations(gpu.device, async () => {
      for (let step = 0; step < 10; step++) {
        await (await index.step(query, newKeys)).read();
        await index.step(queryBuffer.buffer, keyBuffer.buffer);
        await index.append(newKeys);
        await index.select(queryBuffer.buffer);
      }
    });
    assertEquals(warm, {});
    const before = await index.readCodes(), n = index.codedTokens;
    const growth = await countAllocations(gpu.device, async () => {
      for (let step = 0; step < 30; step++) await index.append(newKeys);
    });
    assert((growth.createBuffer ?? 0) > 0, "capacity 150 must have grown");
    assertEquals(growth.createComputePipelineAsync, undefined);
    const after = await index.readCodes(), m = index.codedTokens;
    for (let rowIx = 0; rowIx < 24; rowIx++) {
      assertEquals(after.slice(rowIx * m, rowIx * m + n), before.slice(rowIx * n, (rowIx + 1) * n));
    }
    await check(index, query, await index.select(query));
  });

  gpuTest(`${id}: growth is geometric`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 64 });
    await index.append(keys(60, 1));
    await index.select(queries(1, 2));
    let growths = 0;
    const one = keys(1, 3);
    for (let token = 0; token < 300; token++) {
      const counts = await countAllocations(gpu.device, () => index.append(one));
      if (counts.createBuffer) growths++;
    }
    assert(growths >= 2 && growths <= 4, `${growths} growths from 64 to 360 tokens`);
  });

  gpuTest(`${id}: many layers are recorded into one pass of one submit`, async (gpu) => {
    const layers = await Promise.all([1, 2, 3].map(async (seed) => {
      const index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 200 });
      await index.train(keys(100, seed));
      await index.reserve(200, 2);
      return index;
    }));
    const twins = await Promise.all([1, 2, 3].map(async (seed) => {
      const index = await PqIndexer.create({ ...OPTIONS, pipeline: id });
      await index.train(keys(100, seed));
      return index;
    }));
    // Two steps of every layer wait for one submit.
    const inputs = await Promise.all([0, 1, 2, 3, 4, 5].map(async (k) => ({
      query: (await gpu.upload("query", queries(1, 30 + k))).buffer,
      newKeys: (await gpu.upload("keys", keys(1, 40 + k))).buffer,
    })));
    const recorded = await gpu.submit("two decode steps", (encoder) => {
      const pass = encoder.beginComputePass();
      const selections = inputs.map((input, k) => layers[k % 3].record(pass, input));
      pass.end();
      return selections;
    });
    await assertRejects(() => recorded[0].read(), RangeError, "valid until the index's next call");
    for (let k = 0; k < 6; k++) {
      const expected = await (await twins[k % 3].step(queries(1, 30 + k), keys(1, 40 + k))).read();
      if (k < 3) continue;
      const data = await recorded[k].read();
      data.lengths.forEach((_, list) => assertEquals(listOf(data, list), listOf(expected, list)));
      assertEquals(await layers[k % 3].readCodes(), await twins[k % 3].readCodes());
    }
    for (const index of [...layers, ...twins]) index.destroy();
  });

  gpuTest(`${id}: record needs room, a codebook and GPU buffers, and counts only what it recorded`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 61 });
    using query = await gpu.upload("query", queries(1, 1));
    using newKeys = await gpu.upload("keys", keys(2, 2));
    const input = { query: query.buffer, newKeys: newKeys.buffer };
    const inPass = (options: object) =>
      gpu.submit("test", (encoder) => {
        const pass = encoder.beginComputePass();
        try {
          return index.record(pass, { ...input, ...options });
        } finally {
          pass.end();
        }
      });
    await index.append(keys(60, 3));
    await assertRejects(() => inPass({}), RangeError, "needs option tokens: keys has 960 bytes, one is 480");
    await assertRejects(() => inPass({ tokens: 1 }), RangeError, "there must be a codebook");
    await index.train();
    await assertRejects(
      () => inPass({ tokens: 2 }),
      RangeError,
      "62 tokens and 1 rows in an index for 61 and 1: call reserve() first",
    );
    await assertRejects(() => inPass({ query: queries(1, 1) }), TypeError, "must be a GPU buffer");
    assertEquals(index.tokens, 60);
    await index.reserve(64, 1);
    await check(index, queries(1, 1), await inPass({ tokens: 2 }));
    assertEquals(index.tokens, 62);
  });

  gpuTest(`${id}: every operation can be timed in a pass of its own`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 200 });
    await index.train(keys(100, 3));
    await index.reserve(200);
    using query = await gpu.upload("query", queries(1, 1));
    using newKeys = await gpu.upload("keys", keys(1, 2));
    using timer = (await PassTimer.create(gpu, 32))!;
    await index.select(query.buffer); // from here on there is a list whose weights can be cleared
    const dispatches = index.dispatchesPerStep();
    const selection = await gpu.submit(
      "timed",
      (encoder) =>
        index.record((operation) => timer.beginPass(encoder, operation), {
          query: query.buffer,
          newKeys: newKeys.buffer,
        }),
    );
    const times = await timer.read();
    // Operations that find no work in this step have no pass.
    const labels = times.map(({ label }) => label);
    assertEquals(index.operations.filter((name) => labels.includes(name)), labels);
    assertEquals(labels.length, dispatches);
    await check(index, queries(1, 1), selection);
  });

  gpuTest(`${id}: beyond the device's limits the error gives both numbers, and the index goes on`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device });
    await index.append(keys(60, 1));
    const query = queries(1, 2);
    const before = await (await index.select(query)).read();
    const error = await assertRejects(
      () => index.reserve(2 ** 33),
      RangeError,
      "one binding of this device holds at most",
    );
    assert(/needs \d+ for \w+/.test(error.message), error.message);
    await assertRejects(() => PqIndexer.create({ ...OPTIONS, pipeline: id, capacity: 2 ** 40 }), RangeError, "reserve");
    const after = await (await index.select(query)).read();
    assertEquals(after.lengths, before.lengths);
    assertEquals(index.tokens, 60);
  });

  gpuTest(`${id}: room is doubled only where the device has it`, async (gpu) => {
    // A device whose binding holds 300 tokens of this shape but not 512.
    const { device, largest } = await smallDevice(kernels, 300);
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device, capacity: 256 });
    await index.append(keys(280, 1));
    const query = queries(1, 2);
    await check(index, query, await index.select(query));
    await assertRejects(() => index.append(keys(400, 2)), RangeError, `at most ${largest} bytes`);
    assertEquals(index.tokens, 280);
    await check(index, query, await index.select(query));
    void gpu;
  });

  gpuTest(`${id}: a lost device reaches the caller as GpuDeviceLostError`, async () => {
    const own = await Gpu.create();
    const index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: own.device });
    await index.append(keys(60, 1));
    own.destroy();
    await assertRejects(() => index.select(queries(1, 1)), GpuDeviceLostError);
    await assertRejects(() => index.append(keys(1, 1)), GpuDeviceLostError);
  });

  gpuTest(`${id}: a long prompt is coded in several uploads`, async () => {
    // 2 x 64 heads x 128 x 4 bytes: 64 KiB per token, so 600 tokens are more than one upload of 32 MiB.
    using index = await PqIndexer.create({
      pipeline: id,
      batch: 2,
      heads: 64,
      headWidth: 128,
      subvectors: 1,
      bits: 1,
      sinkSize: 3,
      initOffset: 3,
      codebook: { centroids: uniform(128 * 2 * 128, 1), tokens: 0 },
      capacity: 700,
    });
    const prompt = uniform(128 * 600 * 128, 2);
    await index.append(prompt.subarray(0, 128 * 128)); // one token, coded or not as initOffset says
    await index.step(uniform(128 * 128, 3), prompt);
    assertEquals([index.tokens, index.codedTokens], [601, 598]);
    const codes = checkCodes(index.config.shape, index.codebook!, prompt, await index.readCodes(), 2);
    assertEquals(codes.errors, 0, codes.firstError);
  });

  gpuTest(`${id}: GPU keys wait for a codebook without an allocation per step, NaN and all`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 200 });
    using query = await gpu.upload("query", queries(1, 1));
    using newKeys = await gpu.upload("keys", keys(1, 2));
    for (let step = 0; step < 3; step++) await index.step(query.buffer, newKeys.buffer);
    let allocating = 0;
    for (let step = 0; step < 24; step++) {
      const counts = await countAllocations(gpu.device, () => index.step(query.buffer, newKeys.buffer).then(() => {}));
      if (counts.createBuffer) allocating++;
    }
    assert(allocating <= 4, `${allocating} of 24 steps allocated`);
    assertEquals(index.codebook, undefined);
    using bad = await gpu.upload("keys", new Float32Array(N_KV * D).fill(NaN));
    await index.append(bad.buffer);
    await index.append(keys(30, 3));
    const last = queries(1, 4);
    await check(index, last, await index.select(last));
    assertEquals([index.tokens, index.codedTokens], [58, 53]);
    const codes = await index.readCodes();
    assert([0, 1, 23].every((row) => codes[row * 53 + 27 - 5] === 0), "a NaN key has code 0");
    using uncopied = await gpu.allocate("keys", N_KV * D * 4, GPUBufferUsage.STORAGE);
    using young = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device });
    await assertRejects(() => young.append(uncopied.buffer), TypeError, "GPUBufferUsage.COPY_SRC");
  });

  gpuTest(`${id}: out of memory while growing is typed, and the index goes on`, async () => {
    const own = await Gpu.create();
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: own.device, capacity: 70 });
    await index.append(keys(60, 1));
    const query = queries(1, 2);
    const before = listsOf(await (await index.select(query)).read());
    const codes = await index.readCodes();
    // Allocations beyond what is there fail, as on a device that is full.
    const createBuffer = own.device.createBuffer.bind(own.device);
    const pop = own.device.popErrorScope.bind(own.device);
    let isFull = true, failed = false, pops = 0;
    own.device.createBuffer = (descriptor) => {
      if (isFull && descriptor.label === "codes") failed = true;
      return createBuffer(descriptor);
    };
    own.device.popErrorScope = async () => {
      const error = await pop();
      // The second scope that is popped is the one for memory.
      return failed && ++pops === 2 ? { message: "not enough memory left" } as GPUError : error;
    };
    await assertRejects(() => index.reserve(500), GpuOutOfMemoryError, "bytes for codes as the GPU is out of memory");
    isFull = failed = false;
    assertEquals(listsOf(await (await index.select(query)).read()), before);
    assertEquals(await index.readCodes(), codes);
    await index.append(keys(100, 3));
    await check(index, query, await index.select(query));
    own.destroy();
  });

  gpuTest(`${id}: a device destroyed behind the index's back fails the very call`, async () => {
    const own = await Gpu.create();
    const index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: own.device });
    await index.append(keys(60, 1));
    const selection = await index.select(queries(1, 2));
    own.device.destroy();
    await assertRejects(() => index.append(keys(1, 1)), GpuDeviceLostError);
    await assertRejects(() => selection.read(), GpuDeviceLostError);
    assertEquals(index.tokens, 60);
  });

  gpuTest(`${id}: more steps recorded in a row than can wait are refused`, async (gpu) => {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device: gpu.device, capacity: 300 });
    await index.train(keys(60, 1));
    using query = await gpu.upload("query", queries(1, 2));
    using newKeys = await gpu.upload("keys", keys(1, 3));
    const input = { query: query.buffer, newKeys: newKeys.buffer };
    const recordMany = (count: number) =>
      gpu.submit("many", (encoder) => {
        const pass = encoder.beginComputePass();
        try {
          for (let step = 0; step < count; step++) index.record(pass, input);
        } finally {
          pass.end();
        }
      });
    await recordMany(64);
    assertEquals(index.tokens, 124);
    await assertRejects(() => recordMany(1), RangeError, "at most 64 recorded steps");
    assertEquals(index.tokens, 124);
    await index.reserve(300);
    await recordMany(40);
    await index.reserve(300);
    await recordMany(40);
    using twin = await PqIndexer.create({ ...OPTIONS, pipeline: id });
    await twin.train(keys(60, 1));
    for (let step = 0; step < 144; step++) await twin.append(keys(1, 3));
    assertEquals(await index.readCodes(), await twin.readCodes());
  });

  gpuTest(`${id}: what the device cannot hold is refused before training`, async () => {
    const { device, largest } = await smallDevice(kernels, 300);
    let trained = false;
    const onTrainProgress = () => trained = true;
    using index = await PqIndexer.create({ ...OPTIONS, pipeline: id, device, onTrainProgress });
    await assertRejects(() => index.append(keys(900, 1)), RangeError, `at most ${largest} bytes`);
    assertEquals([index.tokens, trained], [0, false]);
  });
}

Deno.test("a tuning file that is not there is refused on every pipeline, also where nothing is tuned", async () => {
  for (const pipeline of ["cpu", "e00"]) {
    await assertRejects(
      () => PqIndexer.create({ heads: 1, headWidth: 8, pipeline, tuning: "/no/such/tuning.json" }),
      TypeError,
      "Cannot read the tuning",
    );
    await assertRejects(
      () => PqIndexer.create({ heads: 1, headWidth: 8, pipeline, tuning: {} as TuningFile }),
      TypeError,
      "a list of tunings",
    );
  }
});

Deno.test("planStep refuses counts that are none", () => {
  const config = resolveConfig({ heads: 1, headWidth: 8 });
  const plan = (counts: { tokens: number; newTokens?: number; rows?: number }) =>
    planStep(DEFAULT_PIPELINE, { config, device: DEFAULT_DEVICE, weights: false, ...counts });
  for (
    const bad of [{ tokens: NaN }, { tokens: -1 }, { tokens: 1.5 }, { tokens: 900, newTokens: -1 }, {
      tokens: 900,
      newTokens: 901,
    }]
  ) {
    assertThrows(() => plan(bad), RangeError, "Cannot plan a step as");
  }
  assertEquals(plan({ tokens: 900 }).dispatches > 0, true);
});
