/**
 * Measures every pipeline, verified first: `deno task bench`. On a host without the tasks: `deno run -A bench/bench.ts`.
 *
 * @module
 */

import type { Gpu } from "../kernels/gpu/device.ts";
import { GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { agreesToTheByte, PIPELINES } from "../indexer/pipelines/mod.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import {
  bold,
  type Command,
  dim,
  openGpu,
  prepareOutput,
  Progress,
  runCommand,
  UsageError,
  verdict,
  wrap,
} from "../experiments/cli.ts";
import { gaussian } from "../experiments/inputs/synthetic.ts";
import { drawState, openIndex, type Workload, type WorkloadState } from "../experiments/inputs/workload.ts";
import { writeReport } from "../experiments/json_rows.ts";
import { Bench } from "../experiments/measure.ts";
import { verifySteps } from "../experiments/verify_steps.ts";
import { type Provenance, provenance } from "../experiments/provenance.ts";
import { summarize, type Summary } from "../experiments/stats.ts";
import { type Case, casesFor, everyCodeBytes, SEED } from "./cases.ts";

/** One pipeline on one case. All times in µs. */
export interface BenchRow {
  readonly factor: string;
  readonly value: number;
  readonly workload: Workload;
  readonly id: string;
  readonly title: string;
  readonly dispatches: number;
  /** Lists and weights as the oracle's, or codes, lists and weights to the byte as those of the first GPU pipeline. */
  readonly verified: boolean;
  readonly problem: string;
  /** The step in one pass, codes in the cache; none on the CPU. */
  readonly gpuUs: Summary | null;
  /** The same without a new key. */
  readonly gpuWithoutKeyUs: Summary | null;
  /** The same on so many layers by turns that no cache holds their state; at the seed configuration only. */
  readonly gpuColdUs: Summary | null;
  /** Per layer, 32 layers in one pass; at the seed configuration only. */
  readonly gpuPerLayerUs: Summary | null;
  /** A step that makes the postings anew, as one in a thousand does; only where there are postings. */
  readonly gpuRefreshUs: Summary | null;
  /** Submit to idle; on the CPU the whole call. */
  readonly wallUs: Summary;
  /** Submit to idle of an empty pass, in turns with the steps. */
  readonly wallEmptyUs: Summary | null;
  /** Per step, 32 steps in one submit, to idle. */
  readonly amortizedUs: Summary | null;
  /** Mean of each operation in a pass of its own. */
  readonly operations: readonly { readonly name: string; readonly us: number; readonly share: number }[];
  /** Bytes that the kernels of a step read and write, each access once. */
  readonly bytesMoved: number;
  /** Bytes of a step that reads every code once; a pipeline that ranks cells moves fewer, see `bytesMoved`. */
  readonly bytesLeast: number;
}

/** What a run of the bench writes. */
export interface BenchReport {
  readonly rows: readonly BenchRow[];
  /** GB/s read and written by a kernel that copies 256 MiB; 0 without a GPU. */
  readonly copyGBs: number;
  /** µs of a pass that holds nothing. */
  readonly emptyPassUs: number;
  readonly seed: number;
  readonly provenance: Provenance;
  /** What a reader must know beside the rows: cases that are missing, and why. */
  readonly note?: string;
}

const COMMAND: Command = {
  name: "bench steps",
  summary: "Measures a step of every pipeline, verified first; from the seed configuration, one factor at a time.",
  flags: {
    full: { value: "", help: "the whole grid: N to 1,048,576, heads, K, GQA, block sizes" },
    pipelines: { value: "IDS", help: "only these, with commas: e01,e07" },
    samples: { value: "N", help: "timed steps per pipeline and case (default: 200, 5 on a software rasterizer)" },
    json: { value: "FILE", help: "write the results; on a GPU also without it, to bench/results/" },
  },
};

const DATA_SEED = 1;

/** Columns of the table; negative: left-aligned. */
const WIDTHS = [-16, 6, 9, 7, 9, 8, 8, 10, 8, 9];

/** What the columns are, in lines of at most 100. */
const LEGEND = [
  "disp.: dispatches of a step; GPU: the whole step in one pass by timestamps, codes in the cache; sd: its",
  "standard deviation; no key: the same step without a new key; cold: on so many layers by turns that no",
  "cache holds their codes; layer: per layer, 32 layers in one pass; wall: from submit to idle, on a CPU the",
  "whole call; empty: the same of an empty pass, measured in turns with the steps; amort.: wall time per step",
  "of 32 steps in one submit, the host's encoding included; –: not measured, as there is no GPU or cold and",
  "layer are measured at the seed configuration only. Below a row: each kernel in a pass of its own. ✓: lists",
  "and weights are the oracle's, and on a GPU the bytes of the first pipeline.",
].map((text) => wrap(text, 110)).join("\n");

/** "nvidia-h200-2026-11-21.json" */
function fileName({ adapter, date }: Provenance): string {
  const name = adapter.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  return `${name}-${date.slice(0, 10)}.json`;
}

const orNull = (samples: readonly number[]): Summary | null => samples.length > 0 ? summarize(samples) : null;

async function measureGpu(
  gpu: Gpu,
  pipeline: Pipeline,
  { factor, value, workload }: Case,
  state: WorkloadState,
  samples: number,
  problem: string,
): Promise<BenchRow> {
  const software = gpu.info.isSoftware, isSeed = factor === SEED.factor && value === SEED.value;
  const pairs = software ? 3 : isSeed ? 1000 : 100;
  const room = 2 * samples + pairs + 10 * 8 * 32 + 200;
  using bench = await Bench.open(gpu, pipeline, workload, state, { steps: room });
  const bytesMoved = bench.indexes[0].bytesPerStep(); // before steps make the index longer
  await bench.warmUp(software ? 0 : 500);
  const gpuUs = orNull(await bench.gpuSteps(bench.affordable(samples, 300)));
  const gpuWithoutKeyUs = orNull(await bench.gpuSteps(bench.affordable(samples, 300), false));
  const totals = await bench.gpuOperations(software ? 2 : bench.affordable(60, 100));
  const wall = await bench.wall(bench.affordable(pairs, 500));
  const many = software ? 2 : bench.affordable(10 * 256, 300, 16);
  const amortizedUs = orNull(
    many >= 256 ? await bench.amortized(Math.floor(many / 256)) : await bench.amortized(1, Math.min(32, many), 1),
  );
  let gpuColdUs: Summary | null = null, gpuPerLayerUs: Summary | null = null;
  if (isSeed && !software) {
    const stateBytes = state.codes.length + state.centroids.byteLength;
    using cold = await Bench.open(gpu, pipeline, workload, state, {
      count: Math.ceil(2 ** 27 / stateBytes),
      steps: 400,
    });
    await cold.warmUp(500);
    gpuColdUs = orNull(await cold.gpuSteps(cold.affordable(samples, 300)));
    using layers = await Bench.open(gpu, pipeline, workload, state, { count: 32, steps: 200 });
    await layers.warmUp(500);
    gpuPerLayerUs = orNull((await layers.gpuLayers(40, 32)).map((us) => us / 32));
  }
  const hasRefresh = bench.hasPostings && !software && workload.tokens > 4096;
  const gpuRefreshUs = hasRefresh ? orNull(await bench.gpuRefreshes(20)) : null;
  const total = [...totals.values()].reduce((sum, us) => sum + us, 0);
  return {
    factor,
    value,
    workload,
    id: pipeline.id,
    title: pipeline.title,
    dispatches: bench.dispatches,
    verified: problem === "",
    problem,
    gpuUs,
    gpuWithoutKeyUs,
    gpuColdUs,
    gpuPerLayerUs,
    gpuRefreshUs,
    wallUs: summarize(wall.step),
    wallEmptyUs: summarize(wall.empty),
    amortizedUs,
    operations: [...totals].map(([name, us]) => ({ name, us, share: us / total })),
    bytesMoved,
    bytesLeast: everyCodeBytes(workload),
  };
}

async function measureCpu(
  pipeline: Pipeline,
  { factor, value, workload }: Case,
  state: WorkloadState,
  samples: number,
  problem: string,
): Promise<BenchRow> {
  // Until every thread's code is compiled for good.
  const mostWarm = 600, warmMs = 600;
  using index = await openIndex(workload, state, pipeline, undefined, Math.max(samples, 50) + mostWarm);
  const { batch, heads, kvHeads, headWidth } = workload;
  const query = gaussian(batch * heads * headWidth, 5), newKeys = gaussian(batch * kvHeads * headWidth, 6);
  const since = performance.now();
  for (let k = 0; k < mostWarm && performance.now() - since < warmMs; k++) await index.step(query, newKeys);
  const times: number[] = [];
  for (let k = 0; k < Math.max(samples, 50); k++) {
    const begin = performance.now();
    await index.step(query, newKeys);
    times.push((performance.now() - begin) * 1e3);
  }
  return {
    factor,
    value,
    workload,
    id: pipeline.id,
    title: pipeline.title,
    dispatches: 0,
    verified: problem === "",
    problem,
    gpuUs: null,
    gpuWithoutKeyUs: null,
    gpuColdUs: null,
    gpuPerLayerUs: null,
    gpuRefreshUs: null,
    wallUs: summarize(times),
    wallEmptyUs: null,
    amortizedUs: null,
    operations: [],
    bytesMoved: 0,
    bytesLeast: everyCodeBytes(workload),
  };
}

/** µs of a pass that holds nothing. */
async function emptyPass(gpu: Gpu): Promise<number> {
  const pipeline = PIPELINES.findLast(({ runsOn }) => runsOn === "gpu")!;
  const workload: Workload = { ...SEED.workload, heads: 1, kvHeads: 1, tokens: 4096 };
  using bench = await Bench.open(gpu, pipeline, workload, drawState(workload, 1), { steps: 8 });
  await bench.warmUp(100);
  const samples = await bench.gpuEmpty(60);
  return samples.length > 0 ? summarize(samples).median : 0;
}

function printHead({ factor, value, workload }: Case): void {
  const { heads, kvHeads, tokens, subvectors, bits, heavySize } = workload;
  console.log(
    `\n${bold(`${factor} ${value.toLocaleString("en")}`)}: ${heads} heads on ${kvHeads} KV, ${
      tokens.toLocaleString("en")
    } tokens, M ${subvectors}, ${bits} bits, K ${heavySize}, weights ${workload.weights ? "on" : "off"}; µs, medians`,
  );
  console.log(
    bold(line(["iteration", "disp.", "GPU", "sd", "no key", "cold", "layer", "wall", "empty", "amort."])),
  );
}

function line(cells: readonly string[]): string {
  return cells.map((cell, ix) => WIDTHS[ix] < 0 ? cell.padEnd(-WIDTHS[ix]) : cell.padStart(WIDTHS[ix])).join("")
    .trimEnd();
}

function printRow(row: BenchRow): void {
  const number = (value: number | undefined) =>
    value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 1000 ? 1 : 0 });
  const median = (summary: Summary | null) => number(summary?.median);
  console.log(
    line([
      `${row.id} ${row.title}`,
      row.dispatches ? String(row.dispatches) : "–",
      median(row.gpuUs),
      number(row.gpuUs?.sd),
      median(row.gpuWithoutKeyUs),
      median(row.gpuColdUs),
      median(row.gpuPerLayerUs),
      median(row.wallUs),
      median(row.wallEmptyUs),
      median(row.amortizedUs),
    ]) + "  " + verdict(row.verified ? "✓" : "✗ WRONG", row.verified),
  );
  const parts = row.operations.filter(({ us }) => us > 0).map(({ name, us }) => `${name} ${us.toFixed(1)}`);
  if (row.gpuRefreshUs) parts.push(`with new postings ${row.gpuRefreshUs.median.toFixed(1)}`);
  const shares = parts.join(" · ");
  if (shares) {
    const text = `    ${shares}`;
    console.log(dim(text.length <= 100 ? text : text.slice(0, text.lastIndexOf(" · ", 97)) + " · …"));
  }
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const ids = args.text("pipelines")?.split(",");
    const unknown = ids?.find((id) => !PIPELINES.some((pipeline) => pipeline.id === id));
    if (unknown !== undefined) {
      throw new UsageError(
        `Cannot use --pipelines ${unknown} as the pipelines are ${PIPELINES.map(({ id }) => id).join(", ")}`,
      );
    }
    if (args.text("samples") !== undefined) args.integer("samples", 1, 100_000);
    await prepareOutput(args.text("json"));
    const gpu = await openGpu().catch((error) => {
      if (!(error instanceof GpuUnavailableError)) throw error;
      const lost = PIPELINES.filter(({ id, runsOn }) => runsOn === "gpu" && ids?.includes(id)).map(({ id }) => id);
      if (lost.length > 0) throw new GpuUnavailableError(`Cannot measure ${lost.join(", ")}. ${error.message}`);
      console.log("No GPU: measuring the pipelines on the CPU.");
      return undefined;
    });
    const software = gpu?.info.isSoftware ?? true;
    const samples = args.text("samples") ? args.integer("samples", 1, 100_000) : software ? 5 : 200;
    const about = await provenance(gpu?.info);
    console.log(`Adapter: ${about.adapter}${software ? " (software: its times say nothing about a GPU)" : ""}`);
    const progress = new Progress();
    const rows: BenchRow[] = [];
    const copyGBs = gpu ? await Bench.copyBandwidth(gpu, software ? 2 ** 24 : 2 ** 28) ?? 0 : 0;
    const emptyPassUs = gpu ? await emptyPass(gpu) : 0;
    if (gpu) {
      console.log(`copy ${copyGBs.toFixed(0)} GB/s (read and written), empty pass ${emptyPassUs.toFixed(1)} µs`);
    }
    const path = args.text("json") ?? (software ? undefined : `bench/results/${fileName(about)}`);
    // After every case, so that a run that is cut short leaves what it has.
    const write = async () => {
      const report: BenchReport = { rows, copyGBs, emptyPassUs, seed: DATA_SEED, provenance: about };
      if (path) await writeReport(path, report);
    };
    let done = 0;
    const cases = casesFor(software, args.has("full"));
    const isWanted = ({ id, runsOn }: Pipeline) =>
      (runsOn === "cpu" || gpu !== undefined) && (ids ? ids.includes(id) : id !== "e00");
    const pipelinesOf = (one: Case) => (one.pipelines ?? PIPELINES).filter(isWanted);
    const total = cases.reduce((sum, one) => sum + pipelinesOf(one).length, 0);
    for (const one of cases) {
      if (pipelinesOf(one).length === 0) continue;
      const label = `${one.factor} ${one.value.toLocaleString("en")}`;
      progress.phase(`${label}: draw the state`);
      const state = drawState(one.workload, DATA_SEED);
      let first: string | undefined;
      printHead(one);
      for (const pipeline of pipelinesOf(one)) {
        progress.phase(`${label}: ${pipeline.id} ${pipeline.title}`);
        progress.update(done++, total);
        const checked = await verifySteps(pipeline, one.workload, state, gpu, first).catch((error) => {
          // A size that this device cannot have.
          if (!(one.pipelines && error instanceof RangeError)) throw error;
          progress.done();
          console.log(dim(`left out: ${error.message}`));
          return undefined;
        });
        if (!checked) continue;
        const { problem, bytes } = checked;
        if (agreesToTheByte(pipeline) && problem === "") first ??= bytes; // what others are compared with is right
        const row = pipeline.runsOn === "gpu"
          ? await measureGpu(gpu!, pipeline, one, state, samples, problem)
          : await measureCpu(pipeline, one, state, samples, problem);
        rows.push(row);
        progress.done();
        printRow(row);
      }
      await write();
    }
    console.log(dim(`\n${LEGEND}`));
    if (path) console.log(`\nwritten: ${path}`);
    const failed = rows.filter((row) => !row.verified);
    for (const row of failed) console.error(`error: ${row.id} is wrong at ${row.factor} ${row.value}: ${row.problem}`);
    return failed.length === 0 ? 0 : 1;
  });
}
