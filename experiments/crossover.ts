/**
 * From how many cached tokens on does an index pay? Times dense attention against a step of the index with attention over
 * what it selects, on the GPU: `deno task crossover`. On a host without the tasks: `deno run -A experiments/crossover.ts`.
 *
 * @module
 */

import { Attention } from "../indexer/attention.ts";
import { trainCentroids } from "../indexer/kmeans.ts";
import { type TrainKeys, trainOnGpu } from "../indexer/trainer.ts";
import { PassTimer } from "../kernels/gpu/timing.ts";
import { DEFAULT_PIPELINE } from "../indexer/pipelines/mod.ts";
import type { PqIndexer } from "../indexer/pq_indexer.ts";
import type { Gpu } from "../kernels/gpu/device.ts";
import {
  type Arguments,
  bold,
  type Command,
  dim,
  openGpu,
  prepareOutput,
  Progress,
  runCommand,
  UsageError,
  wrap,
} from "./cli.ts";
import { CONFIG_FLAGS, configFrom } from "./config_flags.ts";
import { gaussian } from "./inputs/synthetic.ts";
import { drawState, openIndex, SEED_WORKLOAD, type Workload } from "./inputs/workload.ts";
import { writeReport } from "./json_rows.ts";
import { TIMED_ROUND, timePasses } from "./measure.ts";
import { type Provenance, provenance } from "./provenance.ts";
import { summarize } from "./stats.ts";

/** One number of cached tokens. Times are medians, µs of GPU time per layer and decode step. */
export interface CrossoverRow {
  /** N. */
  readonly tokens: number;
  /** Dense attention. */
  readonly denseUs: number;
  /** The index's step: code the new keys, select. */
  readonly indexUs: number;
  /** Attention over the selection, in a pass of its own: with the index's own pass it is more than both in one. */
  readonly sparseUs: number;
  /** Both in one pass. */
  readonly bothUs: number;
  /** Training of the whole layer, ms of GPU time; on a software device of the host, from the time of one head. */
  readonly trainingMs: number;
  /** Both, and the training shared out among the steps it serves. */
  readonly withTrainingUs: number;
}

/** What a run writes. */
export interface CrossoverReport {
  readonly rows: readonly CrossoverRow[];
  /** Where both cost as much as dense attention, between the rows; undefined if one is cheaper everywhere. */
  readonly crossover: number | undefined;
  /** The same with the training. */
  readonly crossoverWithTraining: number | undefined;
  /** Steps that share a training. */
  readonly steps: number;
  /** The pipeline. */
  readonly pipeline: string;
  readonly provenance: Provenance;
}

/** The command; what draws it adds `--out`. */
export const COMMAND: Command = {
  name: "crossover",
  summary: "Times dense attention against the index with sparse attention, over the number of cached tokens.",
  flags: {
    ...CONFIG_FLAGS,
    tokens: {
      value: "N,…",
      help: "numbers of cached tokens (default 1024 to 131072 by 2; in software 1024,4096,12000)",
    },
    steps: { value: "N", help: "decode steps that share a training", default: "1000" },
    samples: { value: "N", help: "timed passes each (default 60; in software 3)" },
    json: { value: "FILE", help: "write the results" },
  },
};

/** Where `ys` reaches `zs` from above, by log-linear interpolation over `xs`; undefined where it does not cross. */
export function crossing(xs: readonly number[], ys: readonly number[], zs: readonly number[]): number | undefined {
  const gap = (ix: number) => Math.log(ys[ix] / zs[ix]); // above 0: the index costs more
  for (let ix = 1; ix < xs.length; ix++) {
    if (gap(ix - 1) > 0 && gap(ix) <= 0) {
      const share = gap(ix - 1) / (gap(ix - 1) - gap(ix));
      return Math.exp(Math.log(xs[ix - 1]) + share * Math.log(xs[ix] / xs[ix - 1]));
    }
  }
  return undefined;
}

/**
 * Median µs of each kind of pass. Half of the samples are taken in order and half in reverse, so that clocks that rise or
 * fall favor none.
 */
async function medians(samples: number, kinds: readonly ((samples: number) => Promise<number[]>)[]): Promise<number[]> {
  const all: number[][] = kinds.map(() => []);
  const half = Math.ceil(samples / 2);
  for (let ix = 0; ix < kinds.length; ix++) all[ix].push(...await kinds[ix](half));
  for (let ix = kinds.length - 1; ix >= 0; ix--) all[ix].push(...await kinds[ix](half));
  return all.map((times) => summarize(times).median);
}

/** ms that training a layer takes where its keys are trained on. */
async function trainingMs(gpu: Gpu, workload: Workload, given: TrainKeys): Promise<number> {
  const { tokens, headWidth, subvectors, bits, batch, kvHeads, sinkSize } = workload;
  const one = { batch: 1, heads: 1, kvHeads: 1, headWidth, subvectors, centroids: 2 ** bits, augmented: false };
  using timer = gpu.info.isSoftware ? undefined : await PassTimer.create(gpu, 1);
  if (timer) {
    const shape = { ...one, batch, heads: kvHeads, kvHeads };
    await trainOnGpu(gpu, shape, given, { initOffset: sinkSize, iterations: 100 }); // compiles, and raises the clocks
    await trainOnGpu(gpu, shape, given, {
      initOffset: sinkSize,
      beginPass: (encoder, label) => timer.beginPass(encoder, label),
    });
    return (await timer.read())[0].us / 1e3;
  }
  const keys = gaussian(tokens * headWidth, 5);
  const begin = performance.now();
  trainCentroids(one, keys, { initOffset: sinkSize });
  return (performance.now() - begin) * batch * kvHeads;
}

/** Measures one number of tokens. */
export async function measureRow(
  gpu: Gpu,
  workload: Workload,
  samples: number,
  steps: number,
): Promise<CrossoverRow> {
  const { batch, heads, kvHeads, headWidth: D, tokens } = workload;
  const room = TIMED_ROUND, stride = tokens + room;
  const words = new Uint32Array(batch * kvHeads * stride * D / 2);
  // Halves near 1: what they are does not matter for time, but that they are numbers does.
  for (let i = 0; i < words.length; i++) words[i] = 0x3c003c00 | (Math.imul(i, 2654435761) >>> 0 & 0x01ff01ff);
  using keys = await gpu.upload("keys", words);
  using values = await gpu.upload("values", words);
  using query = await gpu.upload("query", gaussian(batch * heads * D, 3));
  using newKeys = await gpu.upload("new keys", gaussian(batch * kvHeads * D, 4));
  using attention = await Attention.create({
    batch,
    heads,
    kvHeads,
    headWidth: D,
    elements: "f16",
    device: gpu.device,
  });
  const cache = { query: query.buffer, keys: keys.buffer, values: values.buffer, stride };
  await attention.reserve(stride);
  const settleAttention = () => attention.reserve(1);
  const state = drawState(workload, 1);
  const open = () => openIndex(workload, state, DEFAULT_PIPELINE, gpu.device, room);
  const step = (index: PqIndexer, pass: GPUComputePassEncoder) =>
    index.record(pass, { query: query.buffer, newKeys: newKeys.buffer });
  // What a submit appended is taken back before the next, so that N stays what it is said to be.
  using first = await open();
  using second = await open();
  const settle = async () => {
    await second.truncate(tokens);
    await settleAttention();
  };
  // A selection that stays, for attention alone.
  using third = await open();
  const fixed = await third.step(query.buffer, newKeys.buffer);
  const [denseUs, indexUs, sparseUs, bothUs] = await medians(samples, [
    (count) =>
      timePasses(gpu, count, settleAttention, (pass) => {
        attention.record(pass, { ...cache, tokens });
      }),
    (count) =>
      timePasses(gpu, count, () => first.truncate(tokens), (pass) => {
        step(first, pass);
      }),
    (count) =>
      timePasses(gpu, count, settleAttention, (pass) => {
        attention.record(pass, { ...cache, tokens: third.tokens, selection: fixed });
      }),
    (count) =>
      timePasses(gpu, count, settle, (pass) => {
        const selection = step(second, pass);
        attention.record(pass, { ...cache, tokens: second.tokens, selection });
      }),
  ]);
  const training = await trainingMs(gpu, workload, { keys: keys.buffer, tokens, stride, elements: "f16" });
  return {
    tokens,
    denseUs,
    indexUs,
    sparseUs,
    bothUs,
    trainingMs: training,
    withTrainingUs: bothUs + training * 1e3 / steps,
  };
}

/** Runs the command, and prints and writes what it measured. */
export async function runCrossover(args: Arguments): Promise<CrossoverReport> {
  const { config, given } = configFrom(args);
  const { sinkSize, windowSize, heavySize } = config;
  if (typeof sinkSize !== "number" || typeof windowSize !== "number" || typeof heavySize !== "number") {
    throw new UsageError("Cannot compare sizes that are shares as the drawn states have fixed ones: give numbers");
  }
  if (config.shape.headWidth % 8 !== 0 || config.shape.headWidth > 256) {
    throw new UsageError(
      `Cannot attend as --head-width must be a multiple of 8, at most 256: it is ${config.shape.headWidth}`,
    );
  }
  const gpu = await openGpu(), software = gpu.info.isSoftware;
  const least = sinkSize + windowSize + heavySize + config.shape.centroids + 1;
  const usual = software ? [1024, 4096, 12_000] : [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];
  const all = args.integers("tokens", least, 2 ** 20, usual).toSorted((a, b) => a - b);
  const samples = args.text("samples") ? args.integer("samples", 1, 1000) : software ? 3 : 60;
  const steps = args.integer("steps", 1, 2 ** 30);
  await prepareOutput(args.text("json"));
  const about = await provenance(gpu.info);
  console.log(`Adapter: ${about.adapter}${software ? " (software: its times say nothing about a GPU)" : ""}`);
  console.log(bold("        N     dense     index    sparse      both   × dense   training   with it"));
  const progress = new Progress(), rows: CrossoverRow[] = [];
  for (const tokens of all) {
    progress.phase(`N ${tokens.toLocaleString("en")}`);
    const workload: Workload = { ...SEED_WORKLOAD, ...given, sinkSize, windowSize, heavySize, tokens, weights: false };
    const row = await measureRow(gpu, workload, samples, steps);
    rows.push(row);
    progress.done();
    const micros = (us: number) => us.toLocaleString("en", { maximumFractionDigits: us < 1000 ? 1 : 0 }).padStart(10);
    console.log(
      tokens.toLocaleString("en").padStart(9) +
        [row.denseUs, row.indexUs, row.sparseUs, row.bothUs].map(micros).join("") +
        `${(row.bothUs / row.denseUs).toFixed(2)}`.padStart(10) +
        `${row.trainingMs.toFixed(0)} ms`.padStart(11) + micros(row.withTrainingUs),
    );
  }
  const column = (of: (row: CrossoverRow) => number) => rows.map(of);
  const at = (of: (row: CrossoverRow) => number) =>
    crossing(column((row) => row.tokens), column(of), column((row) => row.denseUs));
  const report: CrossoverReport = {
    rows,
    crossover: at((row) => row.bothUs),
    crossoverWithTraining: at((row) => row.withTrainingUs),
    steps,
    pipeline: DEFAULT_PIPELINE.id,
    provenance: about,
  };
  const say = (what: string, crossover: number | undefined, of: (row: CrossoverRow) => number) => {
    const last = rows[rows.length - 1];
    const where = crossover
      ? `from ${Math.round(crossover).toLocaleString("en")} tokens on`
      : of(last) < last.denseUs
      ? `at all of these`
      : `at none of these`;
    console.log(`${what} pays ${where}.`);
  };
  console.log();
  say("Selecting and attending sparsely", report.crossover, (row) => row.bothUs);
  say(
    `With a training for every ${steps} steps, it`,
    report.crossoverWithTraining,
    (row) => row.withTrainingUs,
  );
  console.log(dim(wrap(
    `µs of GPU time per layer and step, medians of ${samples}; f16 keys and values; pipeline ${report.pipeline}; index: ` +
      `code the new keys and select; sparse: attention over a selection alone; both: the two in one pass, so once the cost of a pass; training: ${
        software ? "one head's time on this host, times the heads" : "GPU time of the whole layer"
      }`,
    100,
  )));
  const json = args.text("json");
  if (json) await writeReport(json, report);
  return report;
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    await runCrossover(args);
    return 0;
  });
}
