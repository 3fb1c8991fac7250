import { assert, assertEquals, assertRejects } from "@std/assert";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import { lloyd, Random, trainCentroids } from "../../indexer/kmeans.ts";
import { trainOnGpu } from "../../indexer/trainer.ts";
import { Gpu } from "../../kernels/gpu/device.ts";
import { centroidWidth, type LayerShape, type StepShape } from "../../kernels/shape.ts";
import { trainShape, TrainView } from "../../kernels/train/train.ts";
import { trainingKernels } from "../../kernels/train/training.ts";
import { clustered } from "../../experiments/inputs/synthetic.ts";
import { gpuTest, uniform } from "../support.ts";

const SHAPE: LayerShape = {
  batch: 1,
  heads: 2,
  kvHeads: 2,
  headWidth: 32,
  subvectors: 2,
  centroids: 16,
  augmented: false,
};
const OPTIONS = {
  heads: 2,
  headWidth: 32,
  subvectors: 2,
  bits: 4,
  sinkSize: 4,
  windowSize: 8,
  heavySize: 5,
  trainOn: "gpu",
} as const;

/** Tokens from … to … of keys `[2, n, 32]`. */
function cut(keys: Float32Array, from: number, to: number): Float32Array {
  const each = keys.length / 2;
  const parts = [0, 1].map((kv) => keys.subarray(kv * each + from * 32, kv * each + to * 32));
  const joined = new Float32Array(parts[0].length * 2);
  parts.forEach((part, kv) => joined.set(part, kv * part.length));
  return joined;
}

/** The view of a training's buffers after its start, in plain TypeScript. */
function startOf(
  shape: LayerShape,
  step: StepShape,
  keys: Float32Array | Uint32Array,
  seed: number,
  elements: "f32" | "f16",
) {
  const options = { elements, tolerance: 0, startInvocations: 64 };
  const kernels = trainingKernels(options).start;
  const groups = shape.kvHeads * shape.subvectors;
  const buffers: Record<string, Float32Array | Uint32Array> = {
    keys,
    state: Uint32Array.from({ length: 4 * groups }, (_, i) => i % 4 === 3 ? seed + (i >> 2) : 0),
  };
  for (const use of kernels.flatMap(({ buffers }) => buffers)) {
    buffers[use.name] ??= new (use.type === "f32" ? Float32Array : Uint32Array)(use.elements(shape, step));
  }
  for (const kernel of kernels) {
    if (kernel.work(shape, step).workgroups > 0) kernel.twin(shape, step, buffers);
    if (kernel.name === "largest_norms") buffers.phi = new Float32Array(buffers.phi.buffer);
  }
  return new TrainView(shape, step, buffers, options);
}

/** Distortion of f64 iterations from the start that the GPU has. */
function exactDistortion(view: TrainView, shape: LayerShape, step: StepShape, group: number, iterations: number) {
  const width = centroidWidth(shape), points = new Float32Array(step.nNew * width);
  for (let slot = 0; slot < step.nNew; slot++) points.set(view.relative(group, slot)!, slot * width);
  const start = Array.from({ length: shape.centroids }, (_, c) => view.modelValues(group, c)).flat();
  return { points, exact: lloyd(points, width, Float64Array.from(start), iterations) };
}

const TRAINED: Record<string, LayerShape> = {
  "euclidean": SHAPE,
  "ip": { ...SHAPE, augmented: true },
};

for (const [name, shape] of Object.entries(TRAINED)) {
  gpuTest(
    `training on the GPU is as good as f64 iterations from the same start: ${name}`,
    async (gpu) => {
      const { augmented, headWidth } = shape, n = 1500, initOffset = 20;
      const keys = clustered(2 * n, headWidth, 60, 0.4, 5);
      using held = await gpu.upload("keys", keys);
      const options = { seed: 9, initOffset, iterations: 8, maxKeysPerCentroid: 60 };
      const found = await trainOnGpu(gpu, shape, { keys: held.buffer, tokens: n }, options);
      const again = await trainOnGpu(gpu, shape, { keys: held.buffer, tokens: n }, options);
      assertEquals(found, again, "the same bytes");
      assertEquals(found.sampled, 960);

      const step = trainShape(n, initOffset, n - initOffset, found.sampled);
      const view = startOf(shape, step, keys, 9, "f32");
      for (let group = 0; group < 4; group++) {
        const { exact } = exactDistortion(view, shape, step, group, 8);
        const ratio = found.distortions[group] / exact;
        assert(ratio > 0.99 && ratio < 1.01, `group ${group}: ${found.distortions[group]} for ${exact}`);
      }
      if (augmented) {
        const { phi } = trainCentroids(shape, keys, { initOffset });
        found.phi!.forEach((value, ix) => assert(Math.abs(value / phi![ix] - 1) < 1e-6));
      }
    },
  );
}

gpuTest(
  "train: typed arrays, f16, GPU buffers and keys in several parts give one codebook and one set of codes",
  async (gpu) => {
    const n = 1000, half = Float16Array.from(uniform(2 * n * 32, 1)), keys = Float32Array.from(half);
    using held = await gpu.upload("keys", keys);
    using heldHalf = await gpu.upload("f16 keys", new Uint32Array(half.buffer));
    using some = await gpu.upload("some keys", cut(keys, 301, 650));
    using more = await gpu.upload("more keys", cut(keys, 650, 707));
    const ways: Record<string, (index: PqIndexer) => Promise<void>> = {
      "an array": (index) => index.train(keys),
      "an f16 array": (index) => index.train(half),
      "a buffer": (index) => index.train(held.buffer, { tokens: n }),
      "an f16 buffer": (index) => index.train(heldHalf.buffer, { tokens: n, elements: "f16" }),
      "parts": async (index) => {
        await index.append(cut(keys, 0, 301));
        await index.append(some.buffer, { tokens: 349 });
        await index.append(more.buffer, { tokens: 57 });
        await index.truncate(700); // within the last part
        await index.train(cut(keys, 700, n));
      },
      "one part on the GPU": async (index) => {
        await index.append(held.buffer, { tokens: n });
        await index.train();
      },
    };
    let first: { centroids: Float32Array; codes: Uint8Array } | undefined;
    for (const [name, train] of Object.entries(ways)) {
      using index = await PqIndexer.create({ ...OPTIONS, device: gpu.device });
      await train(index);
      assertEquals(index.tokens, n);
      const found = { centroids: index.codebook!.centroids, codes: await index.readCodes() };
      first ??= found;
      assertEquals(found, first, name);
      for (const again of [half, heldHalf.buffer, held.buffer]) {
        await index.retrain(again, again === heldHalf.buffer ? { elements: "f16" } : {});
        assertEquals({ centroids: index.codebook!.centroids, codes: await index.readCodes() }, first, `${name}, again`);
      }
    }
  },
);

gpuTest(
  "training by slices of KV heads, where one binding cannot hold all keys, gives the same codebook",
  async (gpu) => {
    using own = await Gpu.create();
    const shape = { ...SHAPE, heads: 6, kvHeads: 6 }, n = 400;
    const keys = uniform(6 * n * 32, 1);
    const train = async (on: Gpu) => {
      using held = await on.upload("keys", keys);
      return await trainOnGpu(on, shape, { keys: held.buffer, tokens: n }, { seed: 3 });
    };
    const whole = await train(gpu), limits = own.limits as { maxStorageBufferBindingSize: number };
    limits.maxStorageBufferBindingSize = 4 * n * 32 * 4 + 100;
    const sliced = await train(own);
    assertEquals({ ...sliced, workBytes: 0 }, { ...whole, workBytes: 0 });
    assert(sliced.workBytes < whole.workBytes);
    limits.maxStorageBufferBindingSize = n * 32 * 4 - 4;
    await assertRejects(
      () => train(own),
      RangeError,
      "one binding of this device holds at most 51196 bytes: the keys of 1",
    );
  },
);

gpuTest("training: what is refused, and what is left out", async (gpu) => {
  const n = 40,
    train = async (keys: Float32Array, options = {}, shape = SHAPE) => {
      using held = await gpu.upload("keys", keys);
      return await trainOnGpu(gpu, shape, { keys: held.buffer, tokens: keys.length / 64 }, options);
    };
  const keys = uniform(2 * n * 32, 2);
  for (
    const [given, options, message] of [
      [keys.subarray(0, 15 * 64), {}, "at least C keys from initOffset on: C is 16, keys are 15"],
      [keys.subarray(0, 64), {}, "C is 16, keys are 1 (1 tokens, initOffset 0)"],
      [keys, { initOffset: 30 }, "C is 16, keys are 10 (40 tokens, initOffset 30)"],
      [keys, { iterations: 0 }, "iterations must be an integer ≥ 1"],
      [keys, { tolerance: 1 }, "tolerance must be a share"],
      [keys, { maxKeysPerCentroid: 0.5 }, "maxKeysPerCentroid must be an integer ≥ 1"],
      [keys.map((x, ix) => ix % 64 === 3 && ix >= 32 * n ? NaN : x), {}, undefined],
      [
        keys.map((x, ix) => ix % 32 === 3 && ix >= 32 * n + 15 * 32 ? Infinity : x),
        {},
        "at least C finite keys: C is 16, KV head 1 has 15",
      ],
      [keys.map(() => NaN), {}, "at least C finite keys: C is 16, KV head 0 has 0"],
    ] as const
  ) {
    if (message) await assertRejects(() => train(given, options), RangeError, message);
    else assert((await train(given, options)).centroids.every(Number.isFinite), "NaN keys are left out");
  }
  const large = keys.map((x, ix) => ix === 70 ? 3e38 : x);
  await assertRejects(() => train(large, {}, { ...SHAPE, augmented: true }), RangeError, "must be finite in f32");
  const constant = await train(keys.map(() => 2.5));
  assert(constant.centroids.every((x) => x === 2.5), "constant keys");
  assertEquals([...constant.distortions], [0, 0, 0, 0]);
});

gpuTest("training: stops by tolerance, tells of every iteration, re-seeds empty clusters", async (gpu) => {
  const n = 600, keys = clustered(2 * n, 32, 40, 0.05, 3);
  using held = await gpu.upload("keys", keys);
  const given = { keys: held.buffer, tokens: n };
  const told: string[] = [];
  const onProgress = (done: number, total: number) => told.push(`${done}/${total}`);
  const all = await trainOnGpu(gpu, SHAPE, given, { iterations: 50, onProgress });
  assertEquals(told.length, 50);
  assertEquals(told.at(-1), "50/50");
  assert(all.iterations.every((made) => made < 50), `converged after ${all.iterations}`);
  const early = await trainOnGpu(gpu, SHAPE, given, { iterations: 50, tolerance: 0.2 });
  assert(early.iterations.every((made, group) => made >= 2 && made <= all.iterations[group]));
  assert(early.iterations.some((made, group) => made < all.iterations[group]), `${early.iterations}`);
  // 16 clusters far apart, of which a start of few points finds less than all: every one must get a centroid.
  const corners = Float32Array.from({ length: 2 * n * 32 }, (_, ix) => {
    const key = Math.floor(ix / 32) % 16;
    return 10 * (key >> (ix % 4) & 1) + 0.01 * Math.sin(ix);
  });
  using heldCorners = await gpu.upload("corners", corners);
  const { distortions } = await trainOnGpu(gpu, SHAPE, { keys: heldCorners.buffer, tokens: n }, { iterations: 30 });
  assert(distortions.every((distortion) => distortion < 16 * n * 0.01 ** 2), `${distortions}`);
});

gpuTest("PqIndexer: a training that fails leaves the index as it was; options are checked", async (gpu) => {
  const keys = uniform(2 * 100 * 32, 1);
  using index = await PqIndexer.create({ ...OPTIONS, device: gpu.device, initOffset: 0 });
  await index.append(cut(keys, 0, 10));
  await assertRejects(() => index.train(cut(keys, 10, 13)), RangeError, "C is 16, keys are 13");
  assertEquals([index.tokens, index.codebook], [10, undefined]);
  using half = await gpu.upload("f16 keys", new Uint32Array(new Float16Array(keys).buffer));
  const asHalf = { tokens: 100, elements: "f16" } as const;
  await assertRejects(() => index.train(half.buffer, asHalf), RangeError, "f16 keys must be all there are: 10 tokens");
  await assertRejects(
    () => index.train(half.buffer, { tokens: 101, elements: "f16" }),
    RangeError,
    "must hold 12928 bytes",
  );
  await assertRejects(() => index.train(keys, { elements: "f16" }), RangeError, "give a Float16Array");
  await assertRejects(
    () => index.train(half.buffer, { tokens: 1, elements: "f8" as "f16" }),
    RangeError,
    '"f32" or "f16"',
  );
  await index.train(cut(keys, 10, 100));
  const before = { codes: await index.readCodes(), centroids: index.codebook!.centroids };
  await assertRejects(() => index.train(), RangeError, "there must be none yet; to replace it, call retrain()");
  await assertRejects(() => index.retrain(half.buffer), RangeError, "must hold 25600 bytes");
  using broken = await gpu.upload("NaN", new Float32Array(2 * 100 * 32).fill(NaN));
  await assertRejects(() => index.retrain(broken.buffer), RangeError, "finite keys");
  assertEquals({ codes: await index.readCodes(), centroids: index.codebook!.centroids }, before);
  await assertRejects(
    () => PqIndexer.create({ ...OPTIONS, pipeline: "cpu" }),
    RangeError,
    "needs a pipeline that runs there",
  );
  await assertRejects(
    () => PqIndexer.create({ ...OPTIONS, trainOn: "tpu" as "gpu" }),
    RangeError,
    'must be "gpu" or "cpu"',
  );
  await assertRejects(() => PqIndexer.create({ ...OPTIONS, tolerance: -1 }), RangeError, "tolerance must be a share");
});

gpuTest("PqIndexer on the GPU: training on nothing, on no more keys, on a sample without finite keys", async (gpu) => {
  using index = await PqIndexer.create({ ...OPTIONS, device: gpu.device });
  await assertRejects(() => index.train(), RangeError, "C is 16, keys are 0 (0 tokens");
  await index.append(uniform(2 * 50 * 32, 1));
  await index.truncate(0);
  await assertRejects(() => index.train(), RangeError, "keys are 0");
  await index.append(uniform(2 * 50 * 32, 1));
  await index.train(new Float32Array(0));
  assertEquals([index.tokens, index.codedTokens], [50, 46]);
  const keys = new Float32Array(2 * 1000 * 32).fill(NaN);
  keys.fill(1, 0, 20 * 32).fill(1, 1000 * 32, 1020 * 32);
  using held = await gpu.upload("keys", keys);
  const few = { maxKeysPerCentroid: 4 };
  await assertRejects(
    () => trainOnGpu(gpu, SHAPE, { keys: held.buffer, tokens: 1000 }, few),
    RangeError,
    "in the sample",
  );
});

/** Keys of a shape of one KV head, f32 `[n, D]`, that lose their small structure where |x|² − 2xc + |c|² cancels. */
const CANCELLING: Readonly<
  Record<string, { width: number; bits: number; keyAt: (i: number, random: Random) => number[] }>
> = {
  "(±8000, ±1)": { width: 2, bits: 2, keyAt: (i) => [i & 1 ? 8000 : -8000, i & 2 ? 1 : -1] },
  "wide blobs": {
    width: 8,
    bits: 4,
    keyAt: (i, random) =>
      Array.from({ length: 8 }, (_, j) => (i >> j % 2 & 1 ? 3000 : -3000) + 2 * random.uniform() - 1),
  },
  "f16 keys at ±4000": {
    width: 8,
    bits: 4,
    // f16 has steps of 2 and 4 there.
    keyAt: (i, random) => Array.from({ length: 8 }, () => (i & 1 ? 4000 : -4000) + 4 * random.below(8)),
  },
  "one outlier at 1e6": {
    width: 8,
    bits: 4,
    keyAt: (i, random) => Array.from({ length: 8 }, () => i === 777 ? 1e6 : 2 * random.uniform() - 1),
  },
};

for (const [name, { width, bits, keyAt }] of Object.entries(CANCELLING)) {
  gpuTest(`training on the GPU keeps small structure between far blobs: ${name}`, async (gpu) => {
    const n = 2000, random = new Random(11), isHalf = name.startsWith("f16");
    const keys = Float32Array.from(Array.from({ length: n }, (_, i) => keyAt(i, random)).flat());
    const shape: LayerShape = { ...SHAPE, heads: 1, kvHeads: 1, headWidth: width, subvectors: 1, centroids: 2 ** bits };
    const held = isHalf ? new Uint32Array(Float16Array.from(keys).buffer) : keys;
    using buffer = await gpu.upload("keys", held);
    for (const seed of [1, 2, 3, 4]) {
      const options = { seed, initOffset: 0, iterations: 20, maxKeysPerCentroid: n };
      const elements = isHalf ? "f16" : "f32";
      const found = await trainOnGpu(gpu, shape, { keys: buffer.buffer, tokens: n, elements }, options);
      const step = trainShape(n, 0, n, found.sampled);
      const { exact } = exactDistortion(startOf(shape, step, held, seed, elements), shape, step, 0, 20);
      let total = 0;
      for (let i = 0; i < n; i++) {
        let nearest = Infinity;
        for (let c = 0; c < shape.centroids; c++) {
          let sum = 0;
          for (let j = 0; j < width; j++) sum += (keys[i * width + j] - found.centroids[c * width + j]) ** 2;
          nearest = Math.min(nearest, sum);
        }
        total += nearest;
      }
      // 1e-4 of a structure of size 1: f32 sums of values at 8,000.
      assert(
        total / n <= 1.01 * exact / n + 1e-4,
        `seed ${seed}: ${total / n} per key on the GPU, ${exact / n} in f64`,
      );
    }
  });
}
