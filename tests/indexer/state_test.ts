import { assert, assertEquals, assertRejects } from "@std/assert";
import { checkSelection } from "../../indexer/checks.ts";
import { PIPELINES } from "../../indexer/pipelines/mod.ts";
import type { Pipeline } from "../../indexer/pipelines/pipeline.ts";
import { PqIndexer, type PqIndexerOptions } from "../../indexer/pq_indexer.ts";
import { encodeSafetensors, SafetensorsError } from "../../indexer/safetensors.ts";
import { listOf } from "../../indexer/selection.ts";
import { gpuTest, hasGpu, uniform } from "../support.ts";

const OPTIONS = {
  batch: 2,
  heads: 4,
  kvHeads: 2,
  headWidth: 12,
  subvectors: 3,
  bits: 3,
  sinkSize: 3,
  windowSize: 6,
  heavySize: 9,
  initOffset: 5,
  weights: true,
} as const;
const [N_KV, D] = [4, 12];
const keys = (t: number, seed: number) => uniform(N_KV * t * D, seed);
const query = (rows: number, seed: number) => uniform(8 * rows * D, seed);
const codebook = { centroids: uniform(N_KV * 3 * 8 * 4, 99), tokens: 0 };

/** Joins keys f32 `[B, Hkv, t, D]` along t, each cut to its first tokens. */
function join(...parts: readonly (readonly [all: Float32Array, tokens: number])[]): Float32Array {
  const total = parts.reduce((sum, [, tokens]) => sum + tokens, 0);
  const joined = new Float32Array(N_KV * total * D);
  for (let kv = 0; kv < N_KV; kv++) {
    let at = kv * total * D;
    for (const [all, tokens] of parts) {
      const stride = all.length / N_KV;
      joined.set(all.subarray(kv * stride, kv * stride + tokens * D), at);
      at += tokens * D;
    }
  }
  return joined;
}

/** Everything that a step says. */
async function stepOf(index: PqIndexer, rows: number, seed: number) {
  const selection = await index.step(query(rows, seed), keys(rows, seed + 1));
  const data = await selection.read();
  const codes = await index.readCodes();
  const { errors, firstError } = checkSelection({
    config: index.config,
    initOffset: index.initOffset!,
    codebook: index.codebook,
    codes,
    nTokens: index.tokens,
    query: query(rows, seed),
    weights: true,
    halfTables: index.pipeline.halfTables,
  }, data);
  assertEquals(errors, 0, firstError);
  const lists = Array.from(data.lengths, (_, list) => [...listOf(data, list)]);
  return { tokens: index.tokens, lists, codes };
}

const runnable = PIPELINES.filter((pipeline) => hasGpu || pipeline.runsOn === "cpu");

/** Tests of pipelines that may hold the shared device or threads. */
function each(name: string, run: (pipeline: Pipeline) => Promise<void>): void {
  for (const pipeline of runnable) {
    Deno.test({
      name: `${pipeline.id}: ${name}`,
      sanitizeOps: false,
      sanitizeResources: false,
      fn: () => run(pipeline),
    });
  }
}

each("truncate: what was forgotten never was, whatever came before and comes after", async (pipeline) => {
  const prompt = keys(90, 1), rejected = keys(7, 2);
  // Within a word of codes, at its edge, below the window and before the first coded token.
  for (const kept of [96, 93, 92, 90, 61, 5, 3, 0]) {
    using index = await PqIndexer.create({ ...OPTIONS, pipeline, codebook });
    await index.append(prompt);
    await stepOf(index, 2, 3); // weights that the next step must clear
    await index.append(rejected);
    await index.truncate(kept);
    assertEquals([index.tokens, index.codedTokens], [kept, Math.max(0, kept - 5)]);
    using fresh = await PqIndexer.create({ ...OPTIONS, pipeline, codebook });
    await fresh.append(join([join([prompt, 90], [keys(2, 4), 2], [rejected, 7]), kept]));
    assertEquals(await index.readCodes(), await fresh.readCodes(), `${kept} tokens`);
    for (const one of [index, fresh]) await one.append(keys(40, 5));
    assertEquals(await stepOf(index, 3, 6), await stepOf(fresh, 3, 6), `${kept} tokens`);
  }
});

Deno.test("truncate: refuses what is not there, and leaves everything as it was", async () => {
  using index = await PqIndexer.create({ ...OPTIONS, pipeline: "e00", codebook });
  await index.append(keys(30, 1));
  for (const tokens of [31, -1, 1.5, NaN]) {
    await assertRejects(
      () => index.truncate(tokens),
      RangeError,
      "Cannot truncate as tokens must be an integer 0 to N, 30",
    );
  }
  assertEquals(index.tokens, 30);
  await index.truncate(30);
  assertEquals(index.tokens, 30);
});

each("truncate before there is a codebook: trains on what was kept", async (pipeline) => {
  const [first, second, third] = [keys(20, 1), keys(30, 2), keys(60, 3)];
  const { initOffset: _, ...options } = OPTIONS;
  using index = await PqIndexer.create({ ...options, pipeline });
  for (const part of [first, second]) await index.append(part);
  await index.truncate(35);
  await index.append(keys(4, 8));
  await index.truncate(35);
  await index.append(third);
  using fresh = await PqIndexer.create({ ...options, pipeline });
  await fresh.append(join([first, 20], [second, 15], [third, 60]));
  for (const one of [index, fresh]) await one.train();
  assertEquals(index.codebook!.centroids, fresh.codebook!.centroids);
  assertEquals(await stepOf(index, 1, 6), await stepOf(fresh, 1, 6));
});

gpuTest("truncate: keys that wait on the GPU", async (gpu) => {
  using first = await gpu.upload("first", keys(20, 1));
  using second = await gpu.upload("second", keys(80, 2));
  using index = await PqIndexer.create({ ...OPTIONS, device: gpu.device });
  await index.append(first.buffer, { tokens: 20 });
  await index.append(second.buffer, { tokens: 80 });
  await index.truncate(12);
  await index.append(second.buffer, { tokens: 80 });
  using fresh = await PqIndexer.create({ ...OPTIONS, device: gpu.device });
  await fresh.append(join([keys(20, 1), 12], [keys(80, 2), 80]));
  for (const one of [index, fresh]) await one.train();
  assertEquals(await stepOf(index, 1, 6), await stepOf(fresh, 1, 6));
});

each("retrain: as an index that was trained on these keys at once, and a failure leaves the old", async (pipeline) => {
  const all = keys(120, 1);
  using index = await PqIndexer.create({ ...OPTIONS, pipeline, codebook });
  await index.append(all);
  const before = { codebook: index.codebook, codes: await index.readCodes() };
  const refused = async (given: Float32Array, why: string) => {
    await assertRejects(() => index.retrain(given), RangeError, why);
    assertEquals({ codebook: index.codebook, codes: await index.readCodes() }, before);
  };
  await refused(keys(119, 1), "119 were given, N is 120");
  await refused(all.map((value, at) => at === 77 ? NaN : value), "keys must be finite");
  await refused(all.subarray(1), "a multiple of 48 values");
  await index.retrain(all);
  using fresh = await PqIndexer.create({ ...OPTIONS, pipeline });
  await fresh.train(all);
  assertEquals(index.codebook, fresh.codebook);
  assertEquals(await stepOf(index, 2, 6), await stepOf(fresh, 2, 6));
});

Deno.test("retrain: a layer that fails half way keeps codebook and codes; few keys and no codebook are refused", async () => {
  const e00 = PIPELINES.find(({ id }) => id === "e00")!;
  let fails = false;
  const fickle: Pipeline = {
    ...e00,
    create: async (context) => {
      const layer = await e00.create(context);
      const run = layer.run.bind(layer);
      layer.run = async (step) => {
        const selection = await run(step);
        if (fails) throw new RangeError("as meant");
        return selection;
      };
      return layer;
    },
  };
  using index = await PqIndexer.create({ ...OPTIONS, pipeline: fickle, codebook });
  await index.append(keys(120, 1));
  const before = { codebook: index.codebook, codes: await index.readCodes() };
  fails = true;
  await assertRejects(() => index.retrain(keys(120, 2)), RangeError, "as meant");
  fails = false;
  assertEquals({ codebook: index.codebook, codes: await index.readCodes() }, before);
  await stepOf(index, 1, 6);
  await index.truncate(10);
  await assertRejects(() => index.retrain(keys(10, 2)), RangeError, "Cannot train a codebook as");
  using early = await PqIndexer.create({ ...OPTIONS, pipeline: "e00" });
  await assertRejects(() => early.retrain(keys(0, 1)), RangeError, "there must be a codebook");
});

gpuTest("retrain: keys on the GPU", async (gpu) => {
  using buffer = await gpu.upload("keys", keys(120, 1));
  using index = await PqIndexer.create({ ...OPTIONS, device: gpu.device, codebook });
  await index.append(keys(120, 1));
  using longer = await gpu.upload("keys", keys(150, 1));
  await assertRejects(() => index.retrain(longer.buffer), RangeError, "the buffer has 28800");
  await index.retrain(buffer.buffer);
  using fresh = await PqIndexer.create({ ...OPTIONS, device: gpu.device });
  await fresh.train(keys(120, 1));
  assertEquals(await stepOf(index, 2, 6), await stepOf(fresh, 2, 6));
});

each("save and load: goes on to the bit, before and after there is a codebook", async (pipeline) => {
  for (const metric of ["euclidean", "ip"] as const) {
    const options = { ...OPTIONS, metric, pipeline, seed: 7, iterations: 3 };
    using index = await PqIndexer.create(options);
    await index.append(keys(33, 1));
    using early = await PqIndexer.load(await index.save(), { pipeline, weights: true });
    assertEquals([early.tokens, early.codebook, early.config], [33, undefined, index.config]);
    for (const one of [index, early]) {
      await one.append(keys(50, 2));
      await one.train();
    }
    const bytes = await index.save();
    assertEquals(await early.save(), bytes);
    using late = await PqIndexer.load(bytes, { pipeline, weights: true });
    assertEquals([late.codebook, late.config, late.initOffset], [index.codebook, index.config, index.initOffset]);
    const expected = await stepOf(index, 2, 6);
    for (const one of [early, late]) assertEquals(await stepOf(one, 2, 6), expected);
    // Lists may be others than those that were saved: sizes are no part of the codes.
    using wider = await PqIndexer.load(bytes, { pipeline: "e00", weights: true, heavySize: 20 });
    assert((await stepOf(wider, 1, 6)).lists[0].length > expected.lists[0].length);
  }
});

Deno.test("load: the PyTorch original's layout, bit for bit", async () => {
  using index = await PqIndexer.create({ ...OPTIONS, pipeline: "e00", codebook });
  await index.append(keys(60, 1));
  const codes = await index.readCodes(), n = 55;
  const original = new BigInt64Array(codes.length); // [b, n, h_kv, M]
  for (let b = 0; b < 2; b++) {
    for (let row = 0; row < 6; row++) {
      for (let i = 0; i < n; i++) original[(b * n + i) * 6 + row] = BigInt(codes[(b * 6 + row) * n + i]);
    }
  }
  const bytes = encodeSafetensors({
    centroids: { dtype: "F32", shape: [2, 2, 3, 8, 4], data: codebook.centroids },
    codes: { dtype: "I64", shape: [2, n, 2, 3], data: original },
  });
  const { heads, sinkSize, windowSize, heavySize, initOffset } = OPTIONS;
  const options = { heads, sinkSize, windowSize, heavySize, initOffset, pipeline: "e00", weights: true };
  using loaded = await PqIndexer.load(bytes, options);
  assertEquals([loaded.tokens, loaded.config], [60, index.config]);
  assertEquals(await loaded.readCodes(), codes);
  assertEquals(await stepOf(loaded, 2, 6), await stepOf(index, 2, 6));
});

Deno.test("load: refuses states that are broken, of another shape or dtype, or do not fit the options", async () => {
  using index = await PqIndexer.create({ ...OPTIONS, pipeline: "e00", codebook });
  await index.append(keys(60, 1));
  const good = await index.save();
  const tensor = (dtype: "F32" | "F16" | "U8" | "I64", shape: number[]) => ({
    dtype,
    shape,
    data: new Uint8Array(shape.reduce((product, extent) => product * extent, { F32: 4, F16: 2, U8: 1, I64: 8 }[dtype])),
  });
  const centroids = tensor("F32", [2, 2, 3, 8, 4]);
  const refused = async (bytes: unknown, why: string, options: Partial<PqIndexerOptions> = {}) => {
    const load = PqIndexer.load(bytes as Uint8Array, { pipeline: "e00", heads: 4, ...options });
    const error = await load.then(() => new Error("it was loaded"), (error: Error) => error);
    assert(error.message.startsWith("Cannot ") && error.message.includes(why), `${why}: ${error.message}`);
    assert(error instanceof RangeError || error instanceof TypeError || error instanceof SafetensorsError, error.name);
  };
  await refused("text", "must be a Uint8Array");
  await refused(new Uint8Array(3), "it has 3 bytes");
  await refused(good.subarray(0, good.length - 1), "truncated");
  await refused(good, "heads is 4 in its state", { heads: 8, kvHeads: 2 });
  await refused(good, "bits is 3 in its state", { bits: 4 });
  await refused(good, "initOffset is 5 in its state", { initOffset: 6 });
  await refused(good, "options have one, too", { codebook });
  await refused(encodeSafetensors({}), "the file holds nothing");
  await refused(encodeSafetensors({ centroids }), "there must be centroids and codes");
  await refused(encodeSafetensors({ centroids, codes: tensor("I64", [2, 9, 2, 4]) }), "must fit centroids");
  await refused(encodeSafetensors({ centroids, codes: tensor("F16", [2, 9, 2, 3]) }), "codes must be I64 or I32 or U8");
  await refused(encodeSafetensors({ centroids: tensor("F16", [2, 2, 3, 8, 4]) }), "centroids must be F32");
  await refused(encodeSafetensors({ centroids: tensor("F32", [2, 2, 3, 32]) }), "with 5 dimensions");
  await refused(
    encodeSafetensors({ centroids: tensor("F32", [2, 2, 3, 7, 4]), codes: tensor("U8", [2, 9, 2, 3]) }),
    "bits",
  );
  const wrong = { centroids, codes: { ...tensor("U8", [2, 9, 2, 3]), data: new Uint8Array(108).fill(8) } };
  await refused(encodeSafetensors(wrong), "codes must be integers below C, 8");
  const edited = (from: string, to: string) => {
    const bytes = good.slice(), text = new TextDecoder("latin1").decode(bytes), at = text.indexOf(from);
    assert(at > 0 && from.length === to.length);
    bytes.set(new TextEncoder().encode(to), at);
    return bytes;
  };
  await refused(edited('"tokens":"60"', '"tokens":"61"'), "codes must be [2, 2, 3, 56]");
  await refused(edited('"tokens":"60"', '"tokens":"x0"'), "its tokens must be an integer");
  await refused(edited("pq-indexer 1", "pq-indexer 2"), "its format must be pq-indexer 1");
  await refused(good, "Cannot load an index as its options are", { hevySize: 3 } as object);
  const own = (config: unknown, tensors: Parameters<typeof encodeSafetensors>[0], tokens = "60", initOffset = "5") =>
    encodeSafetensors(tensors, { format: "pq-indexer 1", config: JSON.stringify(config), tokens, initOffset });
  const { initOffset: _, weights: __, ...config } = OPTIONS;
  const codes = tensor("U8", [2, 2, 3, 55]), allKeys = tensor("F32", [2, 2, 60, 12]);
  await refused(own(null, { centroids, codes }), "config must be an object: null");
  await refused(own({ ...config, pipeline: "cpu" }, { centroids, codes }), "it also has pipeline");
  await refused(own({ ...config, headWidth: 13 }, { centroids, codes }), "D must be divisible by M");
  await refused(own(config, {}), "it must hold centroids,codes, or keys: it holds none");
  await refused(own(config, { codes }), "it holds codes");
  await refused(own(config, { centroids, codes, keys: allKeys }), "it holds centroids,codes,keys");
  await refused(own({ ...config, metric: "ip" }, { centroids, codes }), "it must hold centroids,phi,codes");
  await refused(own(config, { keys: tensor("F32", [2, 2, 60, 12]) }, "7"), "keys must be [2, 2, 7, 12]");
  await refused(own(config, { keys: tensor("F32", [2, 1, 60, 24]) }), "keys must be [2, 2, 60, 12]");
  await refused(own(config, { centroids: tensor("F32", [2, 2, 6, 4, 4]), codes }), "centroids must be [2, 2, 3, 8, 4]");
  assertEquals((await PqIndexer.load(own(config, { centroids, codes }), { pipeline: "e00" })).tokens, 60);
  const unset = { pipeline: "e00", sinkSize: undefined, kvHeads: undefined };
  assertEquals((await PqIndexer.load(good, unset)).config, index.config);
  await refused(edited('{\\"batch\\":2', '[\\"batch\\":2'), "config must be JSON");
  assertEquals((await PqIndexer.load(good, { pipeline: "e00" })).tokens, 60);
});

Deno.test("load takes any Uint8Array: a Buffer of Node's pool, any offset, shared memory", async () => {
  const { Buffer } = await import("node:buffer");
  const options = { ...OPTIONS, pipeline: "cpu" };
  for (const tokens of [1, 60]) {
    using index = await PqIndexer.create({ ...options, ...(tokens > 1 ? { codebook } : {}) });
    await index.append(keys(tokens, 1));
    const saved = await index.save();
    const odd = new Uint8Array(saved.length + 16), shared = new Uint8Array(new SharedArrayBuffer(saved.length));
    odd.set(saved, 3);
    shared.set(saved);
    const pooled = Buffer.concat([Buffer.from([1, 2, 3]), saved]).subarray(3);
    for (const bytes of [Buffer.from(saved), pooled, odd.subarray(3, 3 + saved.length), shared]) {
      using again = await PqIndexer.load(bytes, { pipeline: "cpu" });
      assertEquals([again.tokens, again.codedTokens], [tokens, index.codedTokens]);
      assertEquals(await again.save(), saved);
    }
  }
});

gpuTest(
  "what save writes, load takes: keys with NaN and ±inf from a GPU buffer, before training and after",
  async (gpu) => {
    const wild = keys(60, 1);
    wild.set([NaN, Infinity, -Infinity, 3e38], 7 * D);
    using buffer = await gpu.upload("keys", wild);
    const options = { ...OPTIONS, device: gpu.device, trainOn: "gpu" } as const;
    using index = await PqIndexer.create(options);
    await index.append(buffer.buffer, { tokens: 60 });
    using again = await PqIndexer.load(await index.save(), { device: gpu.device, trainOn: "gpu" });
    assertEquals([again.tokens, again.codedTokens], [60, 0]);
    assertEquals(await again.save(), await index.save());
    await index.train();
    await again.train();
    assertEquals(await again.readCodes(), await index.readCodes());
    using trained = await PqIndexer.load(await index.save(), { device: gpu.device });
    assertEquals(await trained.save(), await index.save());
    // A saved codebook may hold what overflowed; one that a caller gives may not.
    const centroids = codebook.centroids.map((value, at) => at === 5 ? Infinity : value);
    await assertRejects(
      () => PqIndexer.create({ ...options, codebook: { centroids, tokens: 0 } }),
      RangeError,
      "finite",
    );
  },
);

Deno.test("load: a file that is not ours is told so, and names from it cannot steer a terminal", async () => {
  const tensor = { dtype: "U8", shape: [1], data: new Uint8Array(1) } as const;
  const names = Object.fromEntries(Array.from({ length: 20 }, (_, ix) => [`model.layers.${ix}\u001b[2J`, tensor]));
  const error = await assertRejects(() => PqIndexer.load(encodeSafetensors(names), { pipeline: "cpu" }), RangeError);
  assert(error.message.includes("no state of an index"), error.message);
  assert(error.message.includes("\\u001b[2J") && !error.message.includes("\u001b"), error.message);
});

Deno.test("load: an option that the config names twice is refused", async () => {
  using index = await PqIndexer.create({ ...OPTIONS, pipeline: "cpu", codebook });
  const bytes = await index.save(), text = new TextDecoder("latin1").decode(bytes);
  // The same length, so that the file stays whole: "batch" becomes a second "heads", in quotes that are escaped.
  const twice = text.replace('\\"batch\\"', '\\"heads\\"');
  assert(twice !== text);
  const broken = Uint8Array.from(twice, (char) => char.charCodeAt(0));
  await assertRejects(() => PqIndexer.load(broken, { pipeline: "cpu" }), RangeError, "names heads twice");
});
