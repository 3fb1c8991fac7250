import { assert, assertEquals } from "@std/assert";
import { type Check, checkCodes, checkKept, checkSelection, judgeExchanges } from "../../indexer/checks.ts";
import { capacityFor, initOffsetAt, resolveConfig, resolveRows, type Size } from "../../indexer/config.ts";
import { Random } from "../../indexer/kmeans.ts";
import { E01 } from "../../indexer/pipelines/e01_baseline.ts";
import { E04 } from "../../indexer/pipelines/e04_fused_topk.ts";
import { E03 } from "../../indexer/pipelines/e03_lookup.ts";
import { GpuLayer, gpuPipeline, type GpuPipelineDef, kernelsOf } from "../../indexer/pipelines/gpu_layer.ts";
import { agreesToTheByte, PIPELINES } from "../../indexer/pipelines/mod.ts";
import type { Pipeline } from "../../indexer/pipelines/pipeline.ts";
import { DEFAULT_DEVICE } from "../../indexer/pipelines/plan.ts";
import { PqIndexer, type PqIndexerOptions } from "../../indexer/pq_indexer.ts";
import type { DeviceFacts } from "../../kernels/gpu/device.ts";
import { WGSL_FILES } from "../../kernels/wgsl_files.ts";
import { clustered, gaussian, tied } from "../../experiments/inputs/synthetic.ts";
import { replay } from "../../experiments/replay.ts";
import { gpuTest, hasGpu } from "../support.ts";

/** Appends, steps and checks everything (unless its bytes are known to be right); returns what is wrong first, or "". */
async function runAndCheck(
  options: PqIndexerOptions & { batch: number; kvHeads: number },
  make: (count: number, seed: number) => Float32Array,
  tokens: number,
  rows: number,
  known?: string,
): Promise<{ firstError: string; lists: Check | undefined; bytes: string }> {
  const D = options.headWidth;
  using index = await PqIndexer.create(options);
  const nKv = options.batch * options.kvHeads;
  await index.append(make(nKv * tokens * D, 1));
  const before = await index.readCodes();
  const query = make(options.batch * options.heads * rows * D, 2), newKeys = make(nKv * rows * D, 3);
  const data = await (await index.step(query, newKeys)).read();
  const codes = await index.readCodes();
  const n = index.codedTokens;
  const listed = Array.from(
    data.lengths,
    (length, list) => data.indices.subarray(list * data.listStride, list * data.listStride + length).join(),
  );
  const weighed = Array.from(
    data.lengths,
    (_, list) => data.weights?.subarray(list * data.weightStride, list * data.weightStride + index.tokens).join(),
  );
  const bytes = `${codes.join()};${listed.join(";")};${weighed.join(";")}`;
  if (bytes === known) return { firstError: "", lists: undefined, bytes };
  const checks = [checkSelection({
    config: index.config,
    initOffset: index.initOffset ?? initOffsetAt(index.config, index.tokens),
    codebook: index.codebook,
    codes,
    nTokens: index.tokens,
    query,
    weights: options.weights ?? false,
    halfTables: index.pipeline.halfTables,
  }, data)];
  if (index.codebook && n >= rows) {
    const newest = new Uint8Array(codes.length / n * rows);
    for (let row = 0; row < codes.length / n; row++) {
      newest.set(codes.subarray((row + 1) * n - rows, (row + 1) * n), row * rows);
    }
    checks.push(checkCodes(index.config.shape, index.codebook, newKeys, newest));
    if (before.length > 0) checks.push(checkKept(index.config.shape, before, codes));
  }
  const firstError = checks.find((check) => check.errors > 0)?.firstError ?? "";
  return { firstError, lists: checks[0], bytes };
}

/** What a plan may depend on, with these limits. */
const facts = (limits: GPUSupportedLimits): DeviceFacts => ({
  ...DEFAULT_DEVICE,
  limits,
  info: { isSoftware: true },
});

/** Cases of the property test; more with PROPERTY_CASES=N, all drawn from their numbers. */
const CASES = Number(Deno.env.get("PROPERTY_CASES") ?? 80);

/** Layers that the cases share: compiling for each case would take longer than running it. */
const LAYERS = [
  { batch: 2, kvHeads: 3, heads: 6, subvectors: 5, headWidth: 35, bits: 4, metric: "euclidean" },
  { batch: 1, kvHeads: 1, heads: 1, subvectors: 1, headWidth: 1, bits: 1, metric: "euclidean" },
  { batch: 1, kvHeads: 2, heads: 32, subvectors: 2, headWidth: 64, bits: 6, metric: "euclidean" },
  { batch: 1, kvHeads: 1, heads: 2, subvectors: 16, headWidth: 256, bits: 8, metric: "euclidean" },
  { batch: 3, kvHeads: 1, heads: 5, subvectors: 3, headWidth: 51, bits: 3, metric: "ip" },
  { batch: 1, kvHeads: 2, heads: 2, subvectors: 2, headWidth: 256, bits: 7, metric: "ip" },
  { batch: 1, kvHeads: 3, heads: 3, subvectors: 7, headWidth: 7, bits: 2, metric: "euclidean" },
  { batch: 2, kvHeads: 2, heads: 8, subvectors: 4, headWidth: 72, bits: 5, metric: "euclidean" },
] as const;

Deno.test({
  name: `every pipeline is right in ${CASES} random cases, and the f32 pipelines on the GPU agree to the byte`,
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const lists = new Map<string, Check[]>(), seen = { ip: 0, rows: 0, ratio: 0, weights: 0, long: 0, untrained: 0 };
    for (let seed = 0; seed < CASES; seed++) {
      const random = new Random(seed);
      const pick = <T>(values: readonly T[]): T => values[random.below(values.length)];
      const layer = LAYERS[seed % LAYERS.length];
      const size = (most: number): Size =>
        random.below(4) === 0 ? { ratio: random.below(60) / 100 } : random.below(most);
      const hasCodebook = random.below(12) > 0; // training takes most of the time, and has tests of its own
      const make = pick([gaussian, (count: number, s: number) => tied(count, 1 + seed % 3, s)]);
      const C = 2 ** layer.bits, columns = layer.headWidth / layer.subvectors + Number(layer.metric === "ip");
      const groups = layer.batch * layer.kvHeads * layer.subvectors;
      const codebook = {
        centroids: make(groups * C * columns, seed),
        ...(layer.metric === "ip" ? { phi: new Float32Array(groups).fill(3) } : {}),
        tokens: 0,
      };
      const options = {
        ...layer,
        sinkSize: size(40),
        windowSize: size(60),
        heavySize: size(pick([2, 40, 400])),
        initOffset: hasCodebook || random.below(3) === 0 ? random.below(50) : undefined,
        weights: random.below(2) === 0,
        capacity: random.below(300),
        iterations: 2,
      };
      const tokens = 20 + random.below(pick([60, 700, 700, hasCodebook && seed % 5 === 0 ? 9000 : 300]));
      const rows = pick([1, 1, 2, 5]);
      seen.ip += Number(layer.metric === "ip");
      seen.rows += Number(rows > 1);
      seen.ratio += Number(typeof options.heavySize !== "number");
      seen.weights += Number(options.weights);
      seen.long += Number(tokens > 1000);
      seen.untrained += Number(!hasCodebook);
      let gpuBytes: string | undefined;
      for (const pipeline of PIPELINES.filter((pipeline) => hasGpu || pipeline.runsOn === "cpu")) {
        // The same bytes as those of a pipeline that is right are right.
        const known = agreesToTheByte(pipeline) ? gpuBytes : undefined;
        const all = { ...options, pipeline, ...(hasCodebook ? { codebook } : {}) };
        const result = await runAndCheck(all, make, tokens, rows, known);
        const what = `seed ${seed}, ${pipeline.id}, ${tokens} tokens, ${rows} rows, ${JSON.stringify(options)}`;
        assertEquals(result.firstError, "", what);
        if (result.lists) lists.set(pipeline.id, [...lists.get(pipeline.id) ?? [], result.lists]);
        if (agreesToTheByte(pipeline)) assertEquals((gpuBytes ??= result.bytes) === result.bytes, true, what);
      }
    }
    for (const [id, checks] of lists) assertEquals(judgeExchanges(checks).firstError, "", id);
    if (CASES >= 80) {
      for (const [what, cases] of Object.entries(seen)) assert(cases >= 2, `${cases} cases of ${what}`);
    }
  },
});

/** A pipeline like e01 with one WGSL file changed. */
function mutant(path: string, from: string, to: string): Pipeline {
  assert(WGSL_FILES[path].includes(from), `${path} holds ${from}`);
  return gpuPipeline({
    ...E01,
    id: "mutant",
    wgslFiles: { ...WGSL_FILES, [path]: WGSL_FILES[path].replaceAll(from, to) },
  });
}

/** Every step overwrites a code of long ago: lists stay right for these codes, so only the codes tell. */
const OLDER = mutant(
  "quantize/assign.wgsl",
  "+ i] = code;",
  "+ i] = code;\n      if (params.n_new < 9u && params.n_coded > 40u) { codes[group * params.coded_stride + params.n_coded - 34u] = 0u; }",
);

const without = (name: string): GpuPipelineDef => ({
  ...E01,
  kernels: E01.kernels.filter((kernel) => kernel.name !== name),
  weightKernels: E01.weightKernels.filter((kernel) => kernel.name !== name),
});

const OPTIONS = {
  batch: 1,
  heads: 4,
  kvHeads: 2,
  headWidth: 12,
  subvectors: 3,
  bits: 2,
  sinkSize: 3,
  windowSize: 5,
  heavySize: 30,
  weights: true,
};

gpuTest("the checks fail for a pipeline that is broken in any one place", async () => {
  const ties = (count: number, seed: number) => tied(count, 1, seed);
  // Integer centroids, so that distances tie as well.
  const codebook = { centroids: tied(2 * 3 * 4 * 4, 1, 9), tokens: 0 };
  const run = async (pipeline: Pipeline) =>
    (await runAndCheck({ ...OPTIONS, pipeline, codebook }, ties, 300, 2)).firstError;
  assertEquals(await run(gpuPipeline(E01)), "");
  const mutants: [string, Pipeline][] = [
    ["ties go to odd tokens", mutant("topk/mask.wgsl", "rank_of(scores[at])", "rank_of(scores[at]) | (i & 1u)")],
    [
      "one entry is wrong",
      mutant(
        "list/concat.wgsl",
        "if (j >= n_before_window) {",
        "if (j == n_sink) { token = 250u; } else if (j >= n_before_window) {",
      ),
    ],
    [
      "the last list is short",
      mutant("list/concat.wgsl", "lengths[list_ix] = length;", "lengths[list_ix] = length - list_ix / 7u;"),
    ],
    ["lists are not sorted", gpuPipeline(without("sort"))],
    ["nothing is returned", gpuPipeline({ ...E01, kernels: E01.kernels.slice(0, 1) })],
    ["weights stay 0", gpuPipeline(without("scatter"))],
    [
      "old weights stay",
      gpuPipeline({
        ...without("zeros"),
        wgslFiles: {
          ...WGSL_FILES,
          "list/scatter.wgsl": WGSL_FILES["list/scatter.wgsl"].replace("] = 1.0", " + 1u] = 1.0"),
        },
      }),
    ],
    ["a subvector is left out", mutant("score/sum.wgsl", "m < SUBVECTORS", "m + 1u < SUBVECTORS")],
    ["window tokens are candidates", mutant("topk/mask.wgsl", "i < params.rows[r].cand_end", "true")],
    [
      "equal distances go to the higher centroid",
      mutant("quantize/nearest_of_key.wgsl", "other < wg_number", "other > wg_number"),
    ],
    ["every list reads KV head 0", mutant("layer/layer.wgsl", "(query_head % HEADS) / (HEADS / KV_HEADS)", "0u")],
    ["new keys are not coded", gpuPipeline(without("assign"))],
    ["a step changes an older code", OLDER],
  ];
  for (const [what, pipeline] of mutants) assert(await run(pipeline) !== "", `not noticed: ${what}`);
});

gpuTest("any operation of a step may run as its TypeScript twin, with the same result", async (gpu) => {
  const config = resolveConfig({ ...OPTIONS, initOffset: 3 });
  const n = 250, rows = resolveRows(config, 3, n + 4, 2);
  const codes = Uint8Array.from(tied(6 * n, 1, 1), (value) => value + 1);
  const centroids = tied(2 * 3 * 4 * 4, 3, 2);
  const query = tied(4 * 2 * 12, 3, 3), newKeys = tied(2 * 1 * 12, 3, 4);
  const layer = await GpuLayer.create(E01, { config, weights: true, gpu });
  await layer.reserve(capacityFor(config, 400, 2), 0);
  layer.setCodebook({ centroids });
  const step = { nCoded: n + 1, nNew: 1, firstNewKey: 0, nNewKeys: 1, initOffset: 3, rows, query, newKeys };
  const run = async (onCpu: readonly string[] | undefined) => {
    layer.importCodes(codes, n);
    const selection = onCpu ? await layer.bisect(step, new Set(onCpu)) : await layer.run(step);
    return { data: await selection!.read(), codes: await layer.exportCodes(n + 1) };
  };
  const expected = await run(undefined);
  assertEquals(await run([]), expected);
  for (const operation of layer.operations) assertEquals(await run([operation]), expected, operation);
  assertEquals(await run(layer.operations), expected);
  layer.destroy();
});

gpuTest("a replay notices a pipeline that is broken in any one place", async (gpu) => {
  const [heads, kvHeads, headWidth, tokens, steps] = [4, 2, 12, 120, 3];
  const capture = {
    heads,
    kvHeads,
    headWidth,
    tokens,
    steps,
    query: gaussian(heads * steps * headWidth, 1),
    key: gaussian(kvHeads * tokens * headWidth, 2),
    metadata: {},
  };
  const config = { heads, kvHeads, headWidth, subvectors: 3, bits: 2, sinkSize: 3, windowSize: 5, heavySize: 30 };
  const codebook = { centroids: gaussian(2 * 3 * 4 * 4, 3) };
  const errorsOf = async (pipeline: Pipeline) => {
    const result = await replay({ capture, config, initOffset: 3, codebook, steps, gpu }, pipeline, () => {});
    return result.check.errors + Number(result.reproducible === false);
  };
  for (const pipeline of PIPELINES) assertEquals(await errorsOf(pipeline), 0, pipeline.id);
  assert(await errorsOf(OLDER) > 0, "not noticed: a step changes an older code");
  // Right in the verified run, other bytes in the timed one, which records: one heavy token less.
  const fickle: Pipeline = {
    ...gpuPipeline(E01),
    create: async (context) => {
      const layer = await gpuPipeline(E01).create(context);
      const record = layer.record.bind(layer);
      layer.record = (target, step) =>
        record(target, {
          ...step,
          rows: step.rows.map((row) => ({ ...row, nHeavy: row.nHeavy - 1, listLength: row.listLength - 1 })),
        });
      return layer;
    },
  };
  const test = { capture, config, initOffset: 3, codebook, steps, gpu };
  const result = await replay(test, fickle, () => {});
  assertEquals([result.check.errors, result.reproducible], [0, false]);
  const digests = await Promise.all(
    PIPELINES.filter(agreesToTheByte).map(async (each) => (await replay(test, each, () => {})).digest),
  );
  assertEquals(new Set(digests).size, 1, "all GPU pipelines give the same bytes");
  const unweighted = (await replay(test, gpuPipeline(without("scatter")), () => {})).digest;
  assert(unweighted !== digests[0], "weights are part of the digest");
  for (const name of ["assign", "sort", "scatter", "sum"]) {
    assert(await errorsOf(gpuPipeline(without(name))) > 0, `not noticed: no ${name}`);
  }
});

gpuTest("e03 takes another plan where the table exceeds workgroup memory, and stays right", async () => {
  const adapter = (await navigator.gpu.requestAdapter())!;
  const device = await adapter.requestDevice(); // the default limits: 16 KiB
  const config = resolveConfig({ heads: 2, headWidth: 40, subvectors: 20, bits: 8 });
  const names = (limits: GPUSupportedLimits) =>
    kernelsOf(E03, { config, device: facts(limits), weights: false }).map((kernel) => kernel.name);
  assertEquals(
    names({ ...device.limits, maxComputeWorkgroupStorageSize: 20 * 256 * 4 } as GPUSupportedLimits)[2],
    "score_lookup",
  );
  assertEquals(names(device.limits)[2], "score"); // after the two that code keys
  const result = await runAndCheck(
    {
      batch: 1,
      kvHeads: 2,
      heads: 2,
      headWidth: 40,
      subvectors: 20,
      bits: 8,
      sinkSize: 2,
      windowSize: 3,
      heavySize: 20,
      device,
      pipeline: "e03",
      codebook: { centroids: gaussian(2 * 20 * 256 * 2, 1), tokens: 0 },
    },
    gaussian,
    400,
    2,
  );
  assertEquals(result.firstError, "");
});

gpuTest(
  "every pipeline is right over several tiles and agrees to the byte, on tied, clustered and Gaussian keys",
  async () => {
    const makes = {
      tied: (count: number, seed: number) => tied(count, 1, seed),
      clustered: (count: number, seed: number) => clustered(count / 12, 12, 6, 0.05, seed),
      gaussian,
    };
    for (const [kind, make] of Object.entries(makes)) {
      for (const heavySize of [0, 1, 100, 512, 513, 3000]) {
        const bytes = new Set<string>();
        for (const pipeline of PIPELINES.filter(({ runsOn }) => runsOn === "gpu")) {
          const codebook = { centroids: make(2 * 3 * 16 * 4, 9), tokens: 0 };
          const options = { ...OPTIONS, bits: 4, heavySize, pipeline, codebook };
          const { firstError, bytes: got } = await runAndCheck(options, make, 5000, 2);
          assertEquals(firstError, "", `${pipeline.id}, ${kind}, K ${heavySize}`);
          if (agreesToTheByte(pipeline)) bytes.add(got);
        }
        assertEquals(bytes.size, 1, `${kind}, K ${heavySize}`);
      }
    }
  },
);

Deno.test("e04 fuses where a tile pays and fits, and keeps e03's kernels elsewhere", () => {
  const names = (config: object, bytes: number) =>
    kernelsOf(E04, {
      config: resolveConfig({ heads: 2, headWidth: 64, ...config }),
      device: facts({ maxComputeWorkgroupStorageSize: bytes } as GPUSupportedLimits),
      weights: false,
    }).map((kernel) => kernel.name).slice(2, 4); // after the two that code keys
  assertEquals(names({}, 32768), ["candidates", "merge"]);
  assertEquals(names({ heavySize: 512 }, 32768), ["candidates", "merge"]);
  assertEquals(names({ heavySize: 513 }, 32768), ["score_lookup", "mask"]);
  assertEquals(names({ heavySize: { ratio: 0.001 } }, 32768), ["score_lookup", "mask"]);
  assertEquals(names({ subvectors: 32, bits: 8 }, 32768), ["score_lookup", "mask"]);
  assertEquals(names({ subvectors: 32, bits: 8 }, 16384), ["score", "mask"]);
});
