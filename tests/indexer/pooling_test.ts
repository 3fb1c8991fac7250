import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { checkSelection } from "../../indexer/checks.ts";
import { type Pooling, resolveConfig } from "../../indexer/config.ts";
import { PIPELINES } from "../../indexer/pipelines/mod.ts";
import type { Pipeline } from "../../indexer/pipelines/pipeline.ts";
import { listOf, type PqConfig, PqIndexer, type SelectionData } from "../../mod.ts";
import type { Gpu } from "../../kernels/gpu/device.ts";
import { POOLED, poolMax, poolSoftmax, sumQueries } from "../../kernels/pool/pool.ts";
import { viewed } from "../../kernels/gpu/kernel.ts";
import { mask } from "../../kernels/topk/mask.ts";
import { tied } from "../../experiments/inputs/synthetic.ts";
import { assertClose, gpuTest, ODD_SHAPE, oddStep, runKernel, uniform } from "../support.ts";

const GROUPED: PqConfig = {
  batch: 2,
  heads: 6,
  kvHeads: 2,
  headWidth: 24,
  subvectors: 2,
  bits: 3,
  sinkSize: 5,
  windowSize: 9,
  heavySize: 20,
};

/** Two steps with a key each and a selection without, on integers, which leave one right answer, or on any numbers. */
async function run(config: PqConfig, pipeline: Pipeline, gpu: Gpu | undefined, integers: boolean, rows = 2) {
  const { shape } = resolveConfig(config), nKv = shape.batch * shape.kvHeads, D = shape.headWidth, tokens = 400;
  const draw = (count: number, seed: number) => integers ? tied(count, 2, seed) : uniform(count, seed);
  const codebook = { centroids: draw(nKv * D * shape.centroids, 2) };
  using index = await PqIndexer.create({
    ...config,
    pipeline,
    device: gpu?.device,
    codebook,
    weights: true,
    initOffset: 3,
  });
  await index.append(draw(nKv * tokens * D, 1));
  const cached = draw(nKv * (tokens + 8) * D, 7);
  using held = pipeline.runsOn === "gpu" && index.config.refine > 1 ? await gpu!.upload("cached", cached) : undefined;
  const options = index.config.refine > 1 ? { cached: { keys: held?.buffer ?? cached, stride: tokens + 8 } } : {};
  const seen: SelectionData[] = [];
  for (let k = 0; k < 3; k++) {
    const query = draw(shape.batch * shape.heads * rows * D, 10 + k);
    const selection = k < 2
      ? await index.step(query, draw(nKv * D, 20 + k), options)
      : await index.select(query, options);
    assertEquals(selection.heads, index.config.listShape.heads);
    const data = await selection.read();
    seen.push(data);
    if (index.config.refine > 1) continue;
    const check = checkSelection({
      config: index.config,
      initOffset: 3,
      codebook,
      codes: await index.readCodes(),
      nTokens: index.tokens,
      query,
      weights: true,
    }, data);
    assertEquals([check.errors, check.firstError], [0, ""]);
    assertEquals(check.checked, shape.batch * index.config.listShape.heads * rows);
  }
  return seen.map((data) => Array.from(data.lengths, (_, list) => [...listOf(data, list)]));
}

for (const pooling of ["groupSum", "groupMax", "groupSoftmax"] as const) {
  const config: PqConfig = { ...GROUPED, pooling };
  Deno.test(`${pooling}: the reference's lists are others than those of single heads, one per KV head`, async () => {
    const pooled = await run(config, PIPELINES[0], undefined, true);
    const single = await run(GROUPED, PIPELINES[0], undefined, true);
    assertEquals([pooled[0].length, single[0].length], [8, 24]);
    assert(pooled.some((lists, k) => lists.every((list, ix) => `${list}` !== `${single[k][ix * 3]}`)));
  });
  for (const pipeline of PIPELINES.slice(1)) {
    if (pipeline.halfTables) continue;
    const test = async (gpu?: Gpu) => {
      await run(config, pipeline, gpu, false, 1);
      if (pooling === "groupSoftmax") return; // exp rounds also where scores do not
      const expected = await run(config, PIPELINES[0], undefined, true);
      assertEquals(await run(config, pipeline, gpu, true), expected);
    };
    if (pipeline.runsOn === "cpu") Deno.test(`${pooling}: ${pipeline.id} is right`, () => test());
    else gpuTest(`${pooling}: ${pipeline.id} is right`, test);
  }
}

Deno.test("groupSum and re-ranking: the exact score is that of the summed query, on every pipeline of the CPU", async () => {
  const config: PqConfig = { ...GROUPED, pooling: "groupSum", refine: 3 };
  const [e00, cpu] = PIPELINES;
  const expected = await run(config, e00, undefined, true);
  assertEquals(await run(config, cpu, undefined, true), expected);
  const plain = await run({ ...config, refine: 1 }, e00, undefined, true);
  assert(JSON.stringify(plain) !== JSON.stringify(expected));
});

for (const id of ["e01", "e05", "e08"]) {
  gpuTest(`groupSum and re-ranking: ${id} lists what the reference lists`, async (gpu) => {
    const config: PqConfig = { ...GROUPED, pooling: "groupSum", refine: 3 };
    const pipeline = PIPELINES.find((pipeline) => pipeline.id === id)!;
    assertEquals(await run(config, pipeline, gpu, true), await run(config, PIPELINES[0], undefined, true));
  });
}

gpuTest("pooling kernels do what their twins do, NaN and infinities included", async (gpu) => {
  const step = oddStep(300, 20), lists = ODD_SHAPE.batch * ODD_SHAPE.heads * 2;
  const scores = uniform(lists * step.codedStride, 1).map((x, ix) =>
    ix % 97 === 0 ? NaN : ix % 89 === 0 ? -Infinity : 9 * x
  );
  const max = await runKernel(gpu, poolMax, ODD_SHAPE, step, { scores });
  for (let list = 0; list < lists / 2; list++) {
    const row = [list * step.codedStride, list * step.codedStride + step.nCoded] as const;
    assertClose(max.gpu.pooledScores.subarray(...row), max.twin.pooledScores.subarray(...row), 0, `list ${list}`);
  }
  const numbers = scores.map((x) => Number.isNaN(x) ? 0 : x);
  const soft = await runKernel(gpu, poolSoftmax, ODD_SHAPE, step, { scores: numbers });
  assertClose(soft.gpu.pooledScores, soft.twin.pooledScores, 1e-6, "softmax, and what lies outside of the candidates");
  const query = uniform(lists * ODD_SHAPE.headWidth, 3);
  const sum = await runKernel(gpu, sumQueries, ODD_SHAPE, step, { query });
  assertClose(sum.gpu.pooledQuery, sum.twin.pooledQuery, 0, "summed queries");
});

Deno.test("viewed: a kernel sees another shape, its buffers have other names, and views compose", () => {
  const narrow = viewed(mask, POOLED), step = oddStep(300, 20);
  assertEquals(narrow.buffers.map(({ name }) => name), ["pooledScores", "ranks"]);
  assertEquals(narrow.buffers[0].elements(ODD_SHAPE, step) * 2, mask.buffers[0].elements(ODD_SHAPE, step));
  const twice = viewed(viewed(mask, { step: (step) => ({ ...step, nCoded: 7 }) }), {
    step: (step) => ({ ...step, nCoded: 2 * step.nCoded }),
  });
  assertEquals(twice.view!.step!(step).nCoded, 7);
  assertEquals(viewed(viewed(mask, { step: (step) => step }), POOLED).view!.shape, POOLED.shape);
});

Deno.test("pooling: what is refused, and what is the same", async () => {
  assertThrows(
    () => resolveConfig({ ...GROUPED, pooling: "mean" as Pooling }),
    RangeError,
    '"groupSoftmax": pooling is "mean"',
  );
  assertThrows(
    () => resolveConfig({ ...GROUPED, pooling: "groupMax", refine: 2 }),
    RangeError,
    'needs pooling "perQueryHead" or "groupSum"',
  );
  const { pooling, shape, listShape } = resolveConfig({ heads: 4, headWidth: 8, pooling: "groupMax" });
  assertEquals([pooling, listShape], ["perQueryHead", shape]);
  using index = await PqIndexer.create({ ...GROUPED, pooling: "groupSum", pipeline: "cpu" });
  await assertRejects(() => index.select(uniform(48, 1)), RangeError, "a multiple of 288 values");
});
