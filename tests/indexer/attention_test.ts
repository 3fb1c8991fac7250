import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Attention, type AttentionStep } from "../../indexer/attention.ts";
import { Random } from "../../indexer/kmeans.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import { Selection, type SelectionData } from "../../indexer/selection.ts";
import { attendMerge, type AttendOptions, attendParts } from "../../kernels/attend/attend.ts";
import type { Gpu } from "../../kernels/gpu/device.ts";
import type { LayerShape, StepShape } from "../../kernels/shape.ts";
import { gaussian } from "../../experiments/inputs/synthetic.ts";
import { assertClose, gpuTest, row, runKernel } from "../support.ts";

/** Attention in f64: f64 `[B, H, rows, D]`. */
function reference(
  shape: Pick<LayerShape, "batch" | "heads" | "kvHeads" | "headWidth">,
  query: ArrayLike<number>,
  keys: ArrayLike<number>,
  values: ArrayLike<number>,
  stride: number,
  rows: number,
  tokensOf: (list: number) => Iterable<readonly [token: number, weight: number]>,
): Float64Array {
  const { batch, heads, kvHeads, headWidth: D } = shape;
  const output = new Float64Array(batch * heads * rows * D);
  for (let list = 0; list < batch * heads * rows; list++) {
    const head = Math.floor(list / rows),
      kv = Math.floor(head / heads) * kvHeads +
        Math.floor(head % heads / (heads / kvHeads));
    const tokens = [...tokensOf(list)].filter(([, weight]) => weight > 0);
    const scores = tokens.map(([token, weight]) => {
      let sum = 0;
      for (let j = 0; j < D; j++) sum += query[list * D + j] * keys[(kv * stride + token) * D + j];
      return sum / Math.sqrt(D) + Math.log(weight);
    });
    const largest = Math.max(...scores), shares = scores.map((score) => Math.exp(score - largest));
    const total = shares.reduce((a, b) => a + b, 0);
    tokens.forEach(([token], i) => {
      for (let j = 0; j < D; j++) output[list * D + j] += shares[i] / total * values[(kv * stride + token) * D + j];
    });
  }
  return output;
}

/** ‖a − b‖ / ‖b‖ of the worst list. */
function worstError(a: ArrayLike<number>, b: Float64Array, width: number): number {
  let worst = 0;
  for (let at = 0; at < b.length; at += width) {
    let error = 0, norm = 0;
    for (let j = at; j < at + width; j++) {
      error += (a[j] - b[j]) ** 2;
      norm += b[j] ** 2;
    }
    worst = Math.max(worst, norm > 0 ? Math.sqrt(error / norm) : Math.sqrt(error));
  }
  return worst;
}

const toHalf = (array: Float32Array) => new Float16Array(array);
const upload = (gpu: Gpu, name: string, array: Float32Array, elements: "f32" | "f16") =>
  gpu.upload(name, elements === "f32" ? array : new Uint32Array(toHalf(array).buffer));

const SHAPES = {
  "D 128, GQA 2": { batch: 1, heads: 4, kvHeads: 2, headWidth: 128 },
  "D 8, batch 2": { batch: 2, heads: 3, kvHeads: 3, headWidth: 8 },
  "D 200, GQA 3": { batch: 1, heads: 3, kvHeads: 1, headWidth: 200 },
};
/**
 * Relative errors. f32: WGSL's exp may be off by 3 + 2|x| ulp, and scores within 20 of the largest count, 43 · 2⁻²⁴; sums by
 * blocks of 16 add less. f16 values are off by 2⁻¹¹ each, and scores of width 200 by 2⁻¹¹ · |q·k| / √D, some 1e-3.
 */
const BOUND = { f32: 1e-5, f16: 2e-3 };

for (const [name, shape] of Object.entries(SHAPES)) {
  for (const elements of ["f32", "f16"] as const) {
    gpuTest(`Attention: dense, one part or many, causal rows, ${elements}, ${name}`, async (gpu) => {
      const stride = 1300, D = shape.headWidth, nKv = shape.batch * shape.kvHeads;
      const keys = gaussian(nKv * stride * D, 1), values = gaussian(nKv * stride * D, 2);
      using keysOnGpu = await upload(gpu, "keys", keys, elements);
      using valuesOnGpu = await upload(gpu, "values", values, elements);
      using attention = await Attention.create({ ...shape, elements, device: gpu.device });
      for (const [tokens, rows] of [[1, 1], [64, 1], [700, 3], [1300, 1]]) {
        const query = gaussian(shape.batch * shape.heads * rows * D, tokens);
        const step = { query, keys: keysOnGpu.buffer, values: valuesOnGpu.buffer, stride, tokens, rows };
        const got = await (await attention.attend(step)).read();
        const all = (list: number) =>
          Array.from({ length: tokens - rows + 1 + list % rows }, (_, i) => [i, 1] as const);
        // What is measured is the arithmetic: the reference takes the same f16 values.
        const [k, v] = elements === "f32" ? [keys, values] : [toHalf(keys), toHalf(values)];
        const error = worstError(got, reference(shape, query, k, v, stride, rows, all), D);
        assert(error <= BOUND.f32, `${tokens} tokens, ${rows} rows: ${error}`);
        // And f16 against the exact values stays within its own bound.
        const exact = worstError(got, reference(shape, query, keys, values, stride, rows, all), D);
        assert(exact <= BOUND[elements], `${tokens} tokens, ${rows} rows against f32 values: ${exact}`);
        assertEquals(await (await attention.attend(step)).read(), got, "the same bytes again");
      }
    });
  }
}

/** A selection of given lists on the GPU. */
async function selectionOf(
  gpu: Gpu,
  shape: { batch: number; heads: number; headWidth: number; kvHeads: number },
  rows: number,
  lists: readonly (readonly number[])[],
  listStride: number,
  weights: Float32Array | undefined,
): Promise<Selection> {
  const indices = new Uint32Array(lists.length * listStride).fill(0xffffffff);
  lists.forEach((list, ix) => indices.set(list, ix * listStride));
  const on = async (name: string, array: Uint32Array | Float32Array) => {
    const { buffer, bytes } = await gpu.upload(name, array);
    return { buffer, offset: 0, size: bytes };
  };
  const buffers = {
    indices: await on("indices", indices),
    lengths: await on("lengths", Uint32Array.from(lists, (list) => list.length)),
    ...(weights ? { weights: await on("weights", weights) } : {}),
  };
  const weightStride = weights ? weights.length / lists.length : 0;
  const layer: LayerShape = { ...shape, subvectors: 1, centroids: 1, augmented: false };
  return new Selection(layer, rows, { listStride, weightStride }, buffers, () => Promise.resolve({} as SelectionData));
}

for (const weighted of [false, true]) {
  gpuTest(
    `Attention: lists of any length, empty ones give zeros${weighted ? ", weights as log-weights" : ""}`,
    async (gpu) => {
      const shape = { batch: 2, heads: 4, kvHeads: 2, headWidth: 64 }, rows = 2, stride = 900, D = 64;
      const random = new Random(3), nLists = 2 * 4 * rows, listStride = 700;
      const keys = gaussian(4 * stride * D, 1), values = gaussian(4 * stride * D, 2), query = gaussian(nLists * D, 3);
      // Values of no token at all must not reach the result.
      for (let kv = 0; kv < 4; kv++) keys.fill(NaN, (kv * stride + 890) * D, (kv + 1) * stride * D);
      for (let kv = 0; kv < 4; kv++) values.fill(NaN, (kv * stride + 890) * D, (kv + 1) * stride * D);
      const lengths = [0, 1, 63, 64, 65, 255, 256, 257, 511, 512, 513, 700, 2, 0, 300, 17];
      const lists = lengths.map((length) => {
        const all = Array.from({ length: 890 }, (_, i) => i);
        for (let i = 0; i < length; i++) {
          const other = i + random.below(890 - i);
          [all[i], all[other]] = [all[other], all[i]];
        }
        return all.slice(0, length).sort((a, b) => a - b);
      });
      const weights = weighted
        ? Float32Array.from({ length: nLists * stride }, () => random.below(4) === 0 ? 0 : 0.1 + random.uniform())
        : undefined;
      if (weights) { for (const token of lists[4]) weights[4 * stride + token] = 0; // all excluded
       }
      const selection = await selectionOf(gpu, shape, rows, lists, listStride, weights);
      using keysOnGpu = await upload(gpu, "keys", keys, "f32");
      using valuesOnGpu = await upload(gpu, "values", values, "f32");
      using attention = await Attention.create({ ...shape, weights: weighted, device: gpu.device });
      const step = { query, keys: keysOnGpu.buffer, values: valuesOnGpu.buffer, stride, tokens: stride, selection };
      const got = await (await attention.attend(step)).read();
      const expected = reference(
        shape,
        query,
        keys,
        values,
        stride,
        rows,
        (list) => lists[list].map((token) => [token, weights ? weights[list * stride + token] : 1] as const),
      );
      const error = worstError(got, expected, D);
      assert(error <= BOUND.f32, String(error));
      assertEquals([...got.subarray(0, D)], new Array(D).fill(0));
      if (weighted) assertEquals([...got.subarray(4 * D, 5 * D)], new Array(D).fill(0));
      for (const { buffer } of Object.values(selection.buffers!)) buffer.destroy();
    },
  );
}

gpuTest("Attention: over an index's selection, recorded in the same pass", async (gpu) => {
  const shape = { heads: 4, kvHeads: 2, headWidth: 32 }, tokens = 600, D = 32;
  using index = await PqIndexer.create({
    ...shape,
    subvectors: 2,
    bits: 4,
    sinkSize: 4,
    windowSize: 16,
    heavySize: 40,
    device: gpu.device,
    weights: true,
    capacity: 700,
  });
  const keys = gaussian(2 * tokens * D, 1), values = gaussian(2 * 700 * D, 2), query = gaussian(4 * D, 3);
  await index.append(keys);
  await index.train();
  const cache = new Float32Array(2 * 700 * D);
  for (let kv = 0; kv < 2; kv++) cache.set(keys.subarray(kv * tokens * D, (kv + 1) * tokens * D), kv * 700 * D);
  using keysOnGpu = await gpu.upload("keys", cache);
  using valuesOnGpu = await gpu.upload("values", values);
  using queryOnGpu = await gpu.upload("query", query);
  using attention = await Attention.create({ ...shape, device: gpu.device });
  await attention.reserve(700);
  const encoder = gpu.device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  const selection = index.record(pass, { query: queryOnGpu.buffer });
  const step: AttentionStep = {
    query: queryOnGpu.buffer,
    keys: keysOnGpu.buffer,
    values: valuesOnGpu.buffer,
    stride: 700,
    tokens,
    selection,
  };
  const result = attention.record(pass, step);
  pass.end();
  gpu.device.queue.submit([encoder.finish()]);
  const got = await result.read(), { indices, lengths, listStride } = await selection.read();
  const listed = (list: number) =>
    [...indices.subarray(list * listStride, list * listStride + lengths[list])].map((token) => [token, 1] as const);
  const error = worstError(got, reference({ batch: 1, ...shape }, query, cache, values, 700, 1, listed), D);
  assert(error <= BOUND.f32 && lengths.every((length) => length === 60), String(error));

  // A decode loop that counts wrongly is told which call forgot what.
  for (
    const [given, why] of [[tokens - 1, "count the keys that its step appended"], [tokens + 1, "as newKeys"]] as const
  ) {
    await assertRejects(() => attention.attend({ ...step, tokens: given }), RangeError, why);
    const other = gpu.device.createCommandEncoder(), pass = other.beginComputePass();
    assertThrows(() => attention.record(pass, { ...step, tokens: given }), RangeError, `tokens is ${given}`);
    pass.end();
  }
  await assertRejects(() => attention.attend({ ...step, tokens: -1 }), RangeError, "tokens must be an integer");
  await assertRejects(() => attention.attend({ ...step, stride: tokens - 1 }), RangeError, "stride must be");

  using small = await gpu.upload("keys", new Float32Array(100));
  for (
    const [change, message] of [
      [{ keys: small.buffer }, "must hold"],
      [{ keys: cache }, "must be GPU buffers"],
      [{ stride: 500 }, "stride must be an integer that holds all tokens"],
      [{ selection: undefined, rows: 65 }, "rows must be an integer 1 to 64"],
      [{ query: new Float32Array(7) }, "query must be f32"],
      [{
        selection: new Selection(
          { batch: 1, heads: 3, kvHeads: 1 } as LayerShape,
          1,
          selection,
          selection.buffers,
          () => selection.read(),
        ),
      }, "1 x 4 lists"],
      [{
        selection: new Selection(
          { batch: 1, heads: 4, kvHeads: 2 } as LayerShape,
          1,
          selection,
          undefined,
          () => selection.read(),
        ),
      }, "lie on the GPU"],
    ] as const
  ) {
    await assertRejects(() => attention.attend({ ...step, ...change } as unknown as AttentionStep), Error, message);
  }
  assertEquals(await (await attention.attend(step)).read(), got, "as before after refused calls");
  await assertRejects(() => result.read(), RangeError, "there was one since");
  for (
    const [change, message] of [
      [{ headWidth: 36 }, "a multiple of 8"],
      [{ headWidth: 264 }, "at most 256"],
      [{ kvHeads: 3 }, "kvHeads must divide heads"],
      [{ heads: 0 }, "heads must be an integer"],
      [{ elements: "bf16" }, '"f32" or "f16"'],
    ] as const
  ) {
    await assertRejects(
      () =>
        Attention.create(
          { ...shape, ...change, device: gpu.device } as unknown as Parameters<typeof Attention.create>[0],
        ),
      RangeError,
      message,
    );
  }
});

gpuTest("Attention: what is reserved holds fewer rows and tokens, which may be more parts each", async (gpu) => {
  const shape = { heads: 32, kvHeads: 1, headWidth: 8 }, D = 8, stride = 5000;
  const keys = gaussian(stride * D, 1), values = gaussian(stride * D, 2);
  using keysOnGpu = await gpu.upload("keys", keys);
  using valuesOnGpu = await gpu.upload("values", values);
  for (const [tokens, rows] of [[512, 8], [400, 5], [5000, 3]]) {
    using attention = await Attention.create({ ...shape, device: gpu.device });
    await attention.reserve(tokens, rows);
    for (
      const [fewerTokens, fewerRows] of [[tokens, 1], [tokens, rows - 1], [Math.ceil(tokens / 3), 1], [tokens, rows]]
    ) {
      const query = gaussian(32 * fewerRows * D, 3);
      using queryOnGpu = await gpu.upload("query", query);
      const encoder = gpu.device.createCommandEncoder(), pass = encoder.beginComputePass();
      const given = { query: queryOnGpu.buffer, keys: keysOnGpu.buffer, values: valuesOnGpu.buffer };
      const result = attention.record(pass, { ...given, stride, tokens: fewerTokens, rows: fewerRows });
      pass.end();
      gpu.device.queue.submit([encoder.finish()]);
      const seen = (list: number) => fewerTokens - fewerRows + 1 + list % fewerRows;
      const all = (list: number) => Array.from({ length: seen(list) }, (_, token) => [token, 1] as const);
      const exact = reference({ batch: 1, ...shape }, query, keys, values, stride, fewerRows, all);
      assert(worstError(await result.read(), exact, D) <= BOUND.f32, `${fewerTokens} tokens, ${fewerRows} rows`);
    }
  }
});

gpuTest("Attention: what it is given is copied, checked and current, and what is gone is refused", async (gpu) => {
  const shape = { heads: 2, headWidth: 16 }, D = 16, tokens = 300;
  const codebook = { centroids: gaussian(2 * 16 * D, 1), tokens: 0 };
  const options = { ...shape, subvectors: 2, bits: 4, sinkSize: 2, windowSize: 4, heavySize: 8, device: gpu.device };
  using index = await PqIndexer.create({ ...options, codebook });
  await index.append(gaussian(2 * tokens * D, 2));
  using keys = await gpu.upload("keys", gaussian(2 * tokens * D, 2));
  using values = await gpu.upload("values", gaussian(2 * tokens * D, 3));
  const attention = await Attention.create({ ...shape, device: gpu.device });
  const step = { keys: keys.buffer, values: values.buffer, stride: tokens, tokens };
  const query = gaussian(2 * D, 4), other = gaussian(2 * D, 5);
  const expected = await (await attention.attend({ ...step, query })).read();
  const given = query.slice(), late = attention.attend({ ...step, query: given });
  const later = attention.attend({ ...step, query: other });
  given.fill(0);
  await late;
  assert((await (await later).read()).some((value, ix) => value !== expected[ix]), "calls take their turns");
  const result = await attention.attend({ ...step, query: query.slice() });
  assertEquals(await result.read(), expected);
  await attention.reserve(5000, 3);
  await assertRejects(() => result.read(), RangeError, "there was one since");

  const old = await index.select(query), current = await index.select(other);
  await attention.attend({ ...step, query, selection: current });
  for (
    const [change, message] of [
      [{ selection: old }, "valid until the index's next call"],
      [{ query: query.map((value, ix) => ix === 5 ? NaN : value) }, "query must be finite: value 5 is NaN"],
      [{ selection: current, rows: 2 }, "rows must be the selection's"],
      [{ tokens: 1, rows: 4 }, "every query row must be the row of a cached token"],
      [{ mask: 1 }, "mask is none of them"],
    ] as const
  ) {
    const wrong = { ...step, query, ...change } as unknown as AttentionStep;
    await assertRejects(() => attention.attend(wrong), Error, message);
  }
  const unknown = { ...shape, element: "f16", device: gpu.device } as unknown as Parameters<typeof Attention.create>[0];
  await assertRejects(() => Attention.create(unknown), TypeError, "element is none of them");
  assertEquals(await (await attention.attend({ ...step, query })).read(), expected);
  attention.destroy();
  assertThrows(() => attention.attend({ ...step, query }), TypeError, "it was destroyed");
  assertThrows(() => attention.reserve(1), TypeError, "it was destroyed");
});

for (const elements of ["f32", "f16"] as const) {
  gpuTest(`attend_parts and attend_merge: as their twins, ${elements}`, async (gpu) => {
    const shape: LayerShape = {
      batch: 1,
      heads: 4,
      kvHeads: 2,
      headWidth: 136,
      subvectors: 1,
      centroids: 1,
      augmented: false,
    };
    const base: StepShape = {
      nCoded: 0,
      nNew: 0,
      firstNewKey: 0,
      nNewKeys: 0,
      initOffset: 0,
      codedStride: 0,
      heavyStride: 0,
      listStride: 310,
      weightStride: 400,
      keyStride: 400,
      attended: 300,
      rows: [row(390, 0, 0, 0, 0), row(391, 0, 0, 0, 0)],
    };
    const random = new Random(1), lists = 8;
    const inputs = {
      query: gaussian(lists * 136, 1),
      keys: gaussian(2 * 400 * 136, 2),
      values: gaussian(2 * 400 * 136, 3),
      indices: Uint32Array.from({ length: lists * 310 }, () => random.below(390)),
      lengths: Uint32Array.from([0, 300, 64, 65, 1, 299, 128, 200]),
      weights: Float32Array.from({ length: lists * 400 }, () => Math.max(0, random.uniform() - 0.2)),
    };
    const words = (array: Float32Array) => elements === "f32" ? array : new Uint32Array(toHalf(array).buffer);
    for (const subgroupSize of gpu.subgroupSize > 0 ? [0, gpu.subgroupSize] : [0]) {
      for (
        const [invocations, mostRounds, weights] of [[64, 1, true], [128, 1, false], [64, 3, true], [
          64,
          8,
          false,
        ]] as const
      ) {
        const options: AttendOptions = {
          elements,
          tokens: "listed",
          weights,
          invocations,
          mostRounds,
          workgroups: 16,
          subgroupSize,
        };
        const given = { ...inputs, keys: words(inputs.keys), values: words(inputs.values) };
        const parts = await runKernel(gpu, attendParts(options), shape, base, given);
        assertClose(
          parts.gpu.partial,
          parts.twin.partial,
          (ix) => 2e-5 * (1 + Math.abs(parts.twin.partial[ix])),
          "partial",
        );
        const merged = await runKernel(gpu, attendMerge(options), shape, base, { partial: parts.gpu.partial });
        assertClose(merged.gpu.output, merged.twin.output, 2e-6, "output");
      }
    }
  });
}

gpuTest("Attention: the heads of a KV head attend to one pooled list, with weights and rows", async (gpu) => {
  const shape = { batch: 2, heads: 6, kvHeads: 2, headWidth: 16 }, D = 16, tokens = 500, rows = 2;
  const sizes = { sinkSize: 4, windowSize: 8, heavySize: 20, subvectors: 2, bits: 4 };
  using index = await PqIndexer.create({ ...shape, ...sizes, pooling: "groupMax", weights: true, device: gpu.device });
  const keys = gaussian(4 * tokens * D, 1), values = gaussian(4 * tokens * D, 2);
  await index.train(keys);
  const query = gaussian(12 * rows * D, 3);
  const selection = await index.select(query);
  const data = await selection.read();
  using keysOnGpu = await upload(gpu, "keys", keys, "f32");
  using valuesOnGpu = await upload(gpu, "values", values, "f32");
  const step = { query, keys: keysOnGpu.buffer, values: valuesOnGpu.buffer, stride: tokens, tokens, selection };
  for (const weights of [false, true]) {
    using attention = await Attention.create({ ...shape, weights, listHeads: 2, device: gpu.device });
    const output = await (await attention.attend(step)).read();
    const exact = reference(shape, query, keys, values, tokens, rows, (list) => {
      const shared = Math.floor(Math.floor(list / rows) / 3) * rows + list % rows;
      const at = shared * data.listStride;
      return Array.from(data.indices.subarray(at, at + data.lengths[shared]), (token) => [token, 1] as const);
    });
    assert(worstError(output, exact, D) < BOUND.f32);
  }
  using attention = await Attention.create({ ...shape, device: gpu.device });
  await assertRejects(() => attention.attend(step), RangeError, "2 x 6 lists per row (see listHeads): it has 2 x 2");
  await assertRejects(() => Attention.create({ ...shape, listHeads: 3 }), RangeError, "must be heads or kvHeads");
});
