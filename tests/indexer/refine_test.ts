import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { resolveConfig } from "../../indexer/config.ts";
import { PIPELINES } from "../../indexer/pipelines/mod.ts";
import type { Pipeline } from "../../indexer/pipelines/pipeline.ts";
import { DEFAULT_DEVICE, planStep } from "../../indexer/pipelines/plan.ts";
import { type PqConfig, PqIndexer, type PqIndexerOptions } from "../../mod.ts";
import { Gpu } from "../../kernels/gpu/device.ts";
import { refineList } from "../../kernels/refine/refine_list.ts";
import { Random } from "../../indexer/kmeans.ts";
import { tied } from "../../experiments/inputs/synthetic.ts";
import { assertClose, gpuTest, hasGpu, runKernel, uniform } from "../support.ts";

/** Everything is an integer, so that scores tie heavily and every sum is exact: one right answer. */
interface Case {
  readonly config: PqConfig;
  readonly tokens: number;
  readonly rows: number;
}

const CASES: Record<string, Case> = {
  "GQA, two rows": {
    config: {
      batch: 2,
      heads: 4,
      kvHeads: 2,
      headWidth: 24,
      subvectors: 3,
      bits: 2,
      sinkSize: 5,
      windowSize: 9,
      heavySize: 7,
      refine: 3,
    },
    tokens: 300,
    rows: 2,
  },
  "a shortlist of all candidates": {
    config: {
      heads: 2,
      headWidth: 16,
      subvectors: 2,
      bits: 2,
      sinkSize: 4,
      windowSize: 6,
      heavySize: 30,
      refine: 8,
      initOffset: 0,
    },
    tokens: 120,
    rows: 1,
  },
  "ratio sizes, wide heads": {
    config: {
      heads: 1,
      headWidth: 256,
      subvectors: 4,
      bits: 3,
      sinkSize: 3,
      windowSize: { ratio: 0.05 },
      heavySize: { ratio: 0.1 },
      refine: 2,
    },
    tokens: 333,
    rows: 3,
  },
  "a long shortlist": {
    config: {
      heads: 2,
      kvHeads: 1,
      headWidth: 8,
      subvectors: 1,
      bits: 6,
      sinkSize: 0,
      windowSize: 1,
      heavySize: 150,
      refine: 4,
    },
    tokens: 1500,
    rows: 1,
  },
};

/** Lists and weights of some steps, each of which brings a key; the last without. */
async function runCase(
  { config, tokens, rows }: Case,
  options: Partial<PqIndexerOptions>,
  pipeline: Pipeline,
  gpu?: Gpu,
  gives = true,
) {
  const { shape } = resolveConfig(config), { headWidth: D } = shape;
  const nKv = shape.batch * shape.kvHeads, stride = tokens + 5;
  const all = tied(nKv * stride * D, 2, 1);
  const cut = (from: number, to: number) => {
    const part = new Float32Array(nKv * (to - from) * D);
    for (let kv = 0; kv < nKv; kv++) {
      part.set(all.subarray((kv * stride + from) * D, (kv * stride + to) * D), kv * (to - from) * D);
    }
    return part;
  };
  const codebook = { centroids: tied(nKv * D * shape.centroids, 2, 2) };
  using index = await PqIndexer.create({
    ...config,
    pipeline,
    device: gpu?.device,
    codebook,
    weights: true,
    ...options,
    initOffset: config.initOffset ?? 2,
  });
  await index.append(cut(0, tokens - 2));
  const half = options.refineElements === "f16";
  const held = pipeline.runsOn === "gpu"
    ? await gpu!.upload("cached keys", half ? new Uint32Array(new Float16Array(all).buffer) : all)
    : undefined;
  const cached = gives ? { cached: { keys: held?.buffer ?? all, stride } } : {};
  const seen: { lists: number[][]; weights: number[][] }[] = [];
  for (let k = 0; k < 3; k++) {
    const query = tied(shape.batch * shape.heads * rows * D, 2, 10 + k);
    const selection = k < 2
      ? await index.step(query, cut(tokens - 2 + k, tokens - 1 + k), cached)
      : await index.select(query, cached);
    const data = await selection.read();
    const lists = Array.from(
      data.lengths,
      (length, list) => [...data.indices.subarray(list * data.listStride).subarray(0, length)],
    );
    const weights = lists.map((_, list) => {
      const row = data.weights!.subarray(list * data.weightStride, (list + 1) * data.weightStride);
      return [...row.keys()].filter((token) => row[token] === 1).concat(
        row.some((w) => w !== 0 && w !== 1) ? [-1] : [],
      );
    });
    seen.push({ lists, weights });
  }
  held?.destroy();
  return seen;
}

for (const [name, one] of Object.entries(CASES)) {
  Deno.test(`refine, ${name}: the reference re-ranks, and the lists are others than without`, async () => {
    const [e00] = PIPELINES;
    const refined = await runCase(one, {}, e00);
    assertEquals(refined.map(({ lists }) => lists), refined.map(({ weights }) => weights));
    const config = { ...one.config, refine: 1 };
    const plain = await runCase({ ...one, config }, {}, e00, undefined, false);
    assert(plain.some(({ lists }, k) => JSON.stringify(lists) !== JSON.stringify(refined[k].lists)));
    await assertRejects(() => runCase({ ...one, config }, {}, e00), TypeError, "create the index with refine");
  });
  for (const pipeline of PIPELINES.slice(1)) {
    if (pipeline.halfTables) continue; // its tables are rounded, so its shortlists are others
    const test = async (gpu?: Gpu) => {
      const expected = await runCase(one, {}, PIPELINES[0]);
      assertEquals(await runCase(one, {}, pipeline, gpu), expected);
      if (pipeline.id === "e08" || pipeline.id === "e01") {
        assertEquals(await runCase(one, { refineElements: "f16" }, pipeline, gpu), expected, "f16 keys");
      }
    };
    if (pipeline.runsOn === "cpu") {
      Deno.test(`refine, ${name}: ${pipeline.id} lists what the reference lists`, () => test());
    } else gpuTest(`refine, ${name}: ${pipeline.id} lists what the reference lists`, test);
  }
}

gpuTest("refine_list does what its twin does, at any sizes", async (gpu) => {
  for (
    const [D, mostShort, nHeavy, elements, invocations] of [[40, 21, 5, "f32", 64], [136, 300, 100, "f16", 128], [
      8,
      1030,
      40,
      "f32",
      64,
    ]] as const
  ) {
    const shape = { batch: 1, heads: 4, kvHeads: 2, headWidth: D, subvectors: 1, centroids: 2, augmented: false };
    const nTokens = 1400,
      rows = [0, 1].map((r) => ({
        nTokens: nTokens - 1 + r,
        nSink: 3,
        nHeavy,
        windowBegin: nTokens - 10 + r,
        candBegin: 0,
        candEnd: nTokens - 10 + r,
        listLength: 3 + nHeavy + 9,
        nShort: mostShort,
      }));
    const step = {
      nCoded: nTokens - 2,
      nNew: 0,
      firstNewKey: 0,
      nNewKeys: 0,
      initOffset: 2,
      codedStride: 1408,
      heavyStride: nHeavy,
      listStride: nHeavy + 30,
      weightStride: 1411,
      keyStride: nTokens + 3,
      attended: mostShort + 20,
      shortStride: mostShort,
      clearsPrevious: false,
      rows,
    };
    const kernel = refineList({ elements, mostShort, weights: true, invocations, subgroupSize: 0 });
    const short = new Uint32Array(8 * step.attended);
    for (let list = 0; list < 8; list++) {
      const picked = Array.from({ length: mostShort }, (_, j) => 3 + Math.floor(j * 1380 / mostShort) + (j * list) % 2);
      short.set([
        0,
        1,
        2,
        ...picked.sort((a, b) => a - b),
        ...Array.from({ length: 9 }, (_, j) => rows[list % 2].windowBegin + j),
      ], list * step.attended);
    }
    const keys = uniform(2 * step.keyStride * D, 3);
    const { gpu: got, twin } = await runKernel(gpu, kernel, shape, step, {
      query: uniform(8 * D, 4),
      keys: elements === "f32" ? keys : new Uint32Array(new Float16Array(keys).buffer),
      shortIndices: short,
      shortLengths: new Uint32Array(8).fill(mostShort + 12),
      lengths: new Uint32Array(8),
      weights: new Float32Array(8 * step.weightStride),
    });
    for (let list = 0; list < 8; list++) {
      const range = [list * step.listStride, list * step.listStride + 12 + nHeavy] as const;
      assertEquals([...got.indices.subarray(...range)], [...twin.indices.subarray(...range)], `list ${list}`);
    }
    assertEquals(got.lengths, twin.lengths);
    assertClose(got.weights, twin.weights, 0, "weights");
  }
});

Deno.test("refine: what is refused, and what a plan says", async () => {
  const config = { heads: 2, headWidth: 16, sinkSize: 2, windowSize: 2, heavySize: 4, bits: 1, refine: 2 } as const;
  for (
    const [options, message] of [
      [{ refine: 0 }, "refine must be an integer 1 to 4096"],
      [{ refine: 1.5 }, "refine is 1.5"],
      [{ refine: 1025 }, "refine x heavySize must be at most 4096: they are 1025 x 4"],
      [{ headWidth: 20 }, "a multiple of 8, at most 256: headWidth is 20"],
      [{ refineElements: "f8" as "f16" }, '"f32" or "f16"'],
    ] as const
  ) assertThrows(() => resolveConfig({ ...config, ...options }), RangeError, message);
  const ratio = { ...config, heavySize: { ratio: 0.5 }, refine: 4, pipeline: "cpu" };
  using large = await PqIndexer.create(ratio);
  await assertRejects(() => large.reserve(6000), RangeError, "refine x K must be at most 4096: they are 4 x 3000");

  using index = await PqIndexer.create({ ...config, pipeline: "cpu" });
  await index.append(uniform(2 * 50 * 16, 1));
  const query = uniform(32, 2), keys = uniform(2 * 50 * 16, 1);
  await assertRejects(() => index.select(query), TypeError, "this index re-ranks (refine 2): give the cached keys");
  await assertRejects(
    () => index.select(query, { cached: { keys, stride: 47 } }),
    RangeError,
    "must be an integer ≥ 48",
  );
  await assertRejects(
    () => index.select(query, { cached: { keys, stride: 51 } }),
    RangeError,
    "1632 values: length is 1600",
  );
  const lists = await (await index.select(query, { cached: { keys, stride: 50 } })).read();
  assertEquals([...lists.lengths], [8, 8]);

  const resolved = resolveConfig({ heads: 32, headWidth: 128, refine: 4, refineElements: "f16" });
  for (const pipeline of PIPELINES.filter(({ runsOn }) => runsOn === "gpu")) {
    const plan = planStep(pipeline, { config: resolved, device: DEFAULT_DEVICE, weights: true, tokens: 32000 });
    assertEquals(plan.kernels.at(-1)!.name, "refine_list"); // 16 KiB of workgroup memory hold no more
    assertEquals(plan.buffers.shortLengths, 4 * 32);
    assert(!("keys" in plan.buffers));
  }
});

if (hasGpu) {
  gpuTest("refine: cached keys on the GPU are checked; a recorded step re-ranks in the same pass", async (gpu) => {
    const config = { heads: 2, headWidth: 16, sinkSize: 2, windowSize: 2, heavySize: 4, bits: 1, refine: 2 } as const;
    using index = await PqIndexer.create({ ...config, device: gpu.device });
    const keys = uniform(2 * 50 * 16, 1);
    await index.train(keys);
    using held = await gpu.upload("cached keys", keys);
    using query = await gpu.upload("query", uniform(32, 2));
    const typed = { cached: { keys, stride: 50 } }, cached = { keys: held.buffer, stride: 50 };
    await assertRejects(() => index.select(uniform(32, 2), typed), TypeError, "must be a GPU buffer: upload them once");
    await assertRejects(
      () => index.select(uniform(32, 2), { cached: { ...cached, stride: 60 } }),
      RangeError,
      "must hold 7680 bytes",
    );
    const expected = await (await index.select(query.buffer, { cached })).read();
    await index.reserve(50);
    let selection;
    await gpu.submit("test", (encoder) => {
      const pass = encoder.beginComputePass();
      assertThrows(() => index.record(pass, { query: query.buffer }), TypeError, "re-ranks");
      selection = index.record(pass, { query: query.buffer, cached });
      pass.end();
    });
    assertEquals((await selection!.read()).indices, expected.indices);
    assert(index.operations.at(-1)!.startsWith("cell_"), "in the dispatch that makes the shortlist");
  });
}

/** A random case that re-ranks; three shapes only, as every one is compiled. */
function randomCase(random: Random): Case {
  const shapes = [
    { heads: 4, kvHeads: 2, headWidth: 16, subvectors: 2, bits: 2 },
    { batch: 2, heads: 2, kvHeads: 1, headWidth: 24, subvectors: 3, bits: 5 },
    { heads: 2, headWidth: 8, subvectors: 1, bits: 7 },
  ];
  const refine = 2 + random.below(4), size = (most: number) => random.below(most + 1);
  return {
    config: {
      ...shapes[random.below(shapes.length)],
      pooling: random.below(2) === 0 ? "perQueryHead" : "groupSum",
      sinkSize: size(12),
      windowSize: random.below(3) === 0 ? { ratio: random.uniform() / 4 } : size(40),
      heavySize: random.below(4) === 0 ? { ratio: random.uniform() / 5 } : size(60),
      initOffset: size(20),
      refine,
    },
    tokens: 30 + random.below(random.below(2) === 0 ? 100 : 1200),
    rows: 1 + random.below(3),
  };
}

Deno.test("refine: cpu lists what the reference lists in 100 random cases", async () => {
  const random = new Random(11);
  for (let k = 0; k < 100; k++) {
    const one = randomCase(random);
    const expected = await runCase(one, {}, PIPELINES[0]);
    assertEquals(await runCase(one, {}, PIPELINES[1]), expected, JSON.stringify(one));
  }
});

gpuTest("refine: e03 and e08 list what the reference lists in 12 random cases", async (gpu) => {
  const random = new Random(12);
  for (let k = 0; k < 12; k++) {
    const one = randomCase(random);
    const expected = await runCase(one, {}, PIPELINES[0]);
    for (const id of ["e03", "e08"]) {
      const pipeline = PIPELINES.find((pipeline) => pipeline.id === id)!;
      assertEquals(await runCase(one, {}, pipeline, gpu), expected, `${id}: ${JSON.stringify(one)}`);
    }
  }
});

Deno.test("refine: NaN cached keys are refused; a state keeps what lists depend on, and options may change it", async () => {
  const config = { heads: 4, kvHeads: 2, headWidth: 16, sinkSize: 2, windowSize: 2, heavySize: 4, bits: 1 } as const;
  const kept = { refine: 2, refineElements: "f16", pooling: "groupSum", tolerance: 0.25, pipeline: "cpu" } as const;
  using index = await PqIndexer.create({ ...config, ...kept });
  const keys = uniform(2 * 50 * 16, 1), query = uniform(64, 2), cached = { keys, stride: 50 };
  await index.append(keys);
  const bytes = await index.save();
  using loaded = await PqIndexer.load(bytes, { pipeline: "cpu" });
  const { refine, refineElements, pooling } = loaded.config;
  assertEquals({ refine, refineElements, pooling }, { refine: 2, refineElements: "f16", pooling: "groupSum" });
  const expected = await (await index.select(query, { cached })).read();
  assertEquals(await (await loaded.select(query, { cached })).read(), expected);
  assertEquals(loaded.codebook, index.codebook, "trained with the same tolerance");
  using other = await PqIndexer.load(bytes, { pipeline: "cpu", refine: 1, pooling: "groupMax" });
  assertEquals([other.config.refine, other.config.pooling], [1, "groupMax"]);
  await assertRejects(() => PqIndexer.load(bytes, { subvectors: 4 }), RangeError, "subvectors is 2 in its state");
  const broken = keys.map((x, ix) => ix === 70 ? NaN : x);
  const select = () => index.select(query, { cached: { keys: broken, stride: 50 } });
  await assertRejects(select, RangeError, "cached keys must be finite: value 70 is NaN");
});
