/**
 * Quality of selections on a capture, for the experiments that vary one thing: codebooks that are trained on some of the
 * keys, all others appended, the last decode steps replayed and compared with exact attention.
 *
 * @module
 */

import { type Pooling, POOLINGS, poolsScores, type PqConfig, resolveConfig } from "../indexer/config.ts";
import { trainCentroids } from "../indexer/kmeans.ts";
import { CPU_PIPELINE, DEFAULT_PIPELINE } from "../indexer/pipelines/mod.ts";
import { MOST_SHORT } from "../kernels/refine/refine_list.ts";
import { PqIndexer } from "../indexer/pq_indexer.ts";
import type { Codebook } from "../indexer/reference.ts";
import { listOf } from "../indexer/selection.ts";
import { type Arguments, type Flag, openGpu, prepareOutput, Progress, UsageError } from "./cli.ts";
import {
  BUNDLED_CAPTURES,
  type Capture,
  captureName,
  capturePath,
  DEFAULT_CAPTURE,
  keysOf,
  loadCapture,
  loadValues,
  queryOf,
} from "./inputs/capture.ts";
import { writeReport } from "./json_rows.ts";
import { type Provenance, provenance } from "./provenance.ts";
import { type Quality, QualityMeter } from "./quality.ts";

/** Flags that these experiments share. */
export const QUALITY_FLAGS = {
  capture: {
    value: "FILE",
    help: `safetensors: query [H, T, D], key, value [Hkv, N, D]; or ${Object.keys(BUNDLED_CAPTURES).join(", ")}`,
    default: DEFAULT_CAPTURE as string,
  },
  steps: { value: "N", help: "decode steps to replay, the last ones (default: all of the capture)" },
  heavy: { value: "K,…", help: "heavy tokens", default: "128" },
  sink: { value: "S", help: "sink tokens", default: "4" },
  window: { value: "W", help: "window tokens", default: "128" },
  seed: { value: "N", help: "seed of the training", default: "0" },
  iterations: { value: "N", help: "most iterations of the training", default: "10" },
  json: { value: "FILE", help: "write rows and provenance as JSON" },
  out: { value: "FILE", help: "write the picture as SVG" },
} as const satisfies Record<string, Flag>;

/** What an experiment starts from. */
export interface QualitySetup {
  readonly capture: Capture;
  /** The capture's path. */
  readonly path: string;
  /** The capture's name: that of its file without the ending. */
  readonly input: string;
  readonly steps: number;
  readonly sinkSize: number;
  readonly windowSize: number;
  readonly seed: number;
  readonly iterations: number;
}

/** The ways of pooling that a flag names. */
function poolingsOf(args: Arguments): Pooling[] {
  return args.text("pooling")!.split(",").map((name) => {
    if (!POOLINGS.includes(name as Pooling)) {
      throw new UsageError(`Cannot use --pooling ${name} as each must be one of ${POOLINGS.join(", ")}`);
    }
    return name as Pooling;
  });
}

/** Loads what the flags name, of one capture. */
async function setupFrom(args: Arguments, named: string): Promise<QualitySetup> {
  const sinkSize = args.integer("sink", 0, 2 ** 20), windowSize = args.integer("window", 0, 2 ** 20);
  const seed = args.integer("seed", 0, 2 ** 32 - 1), iterations = args.integer("iterations", 1, 1000);
  if (args.text("steps") !== undefined) args.integer("steps", 1, 2 ** 20);
  const path = capturePath(named);
  const capture = await loadCapture(path);
  const steps = args.text("steps") === undefined ? capture.steps : args.integer("steps", 1, capture.steps);
  return { capture, path, input: captureName(path), steps, sinkSize, windowSize, seed, iterations };
}

/** A capture as it stands beside the rows that were measured on it. */
export interface CaptureRun {
  /** The capture's name, as in the rows. */
  readonly capture: string;
  /** H. */
  readonly heads: number;
  /** Hkv. */
  readonly kvHeads: number;
  /** D. */
  readonly headWidth: number;
  /** N. */
  readonly tokens: number;
  /** Decode steps that were replayed. */
  readonly steps: number;
  /** Commit of the project that measured it. */
  readonly commit: string;
  /** UTC time, ISO 8601. */
  readonly date: string;
}

/** What stands beside the rows of such an experiment. */
export interface QualityProvenance extends Provenance {
  readonly captures: readonly CaptureRun[];
  readonly config: { readonly sinkSize: number; readonly windowSize: number };
  readonly seed: number;
  readonly iterations: number;
}

async function qualityProvenance(setups: readonly QualitySetup[]): Promise<QualityProvenance> {
  const about = await provenance((await openGpu().catch(() => undefined))?.info);
  const { commit, date } = about;
  const [{ sinkSize, windowSize, seed, iterations }] = setups;
  const captures = setups.map(({ capture: { heads, kvHeads, headWidth, tokens }, input, steps }) => ({
    capture: input,
    heads,
    kvHeads,
    headWidth,
    tokens,
    steps,
    commit,
    date,
  }));
  return { ...about, captures, config: { sinkSize, windowSize }, seed, iterations };
}

/** The config of an index over a setup's capture. */
export function configFor(
  { capture, sinkSize, windowSize }: QualitySetup,
  rest: Pick<PqConfig, "metric" | "refine" | "pooling"> & { subvectors: number; bits: number; heavySize: number },
): PqConfig {
  const { heads, kvHeads, headWidth } = capture;
  return { heads, kvHeads, headWidth, sinkSize, windowSize, ...rest };
}

/** A codebook of the first tokens. */
export function trainOn(setup: QualitySetup, config: PqConfig, tokens: number): Codebook {
  const { capture, sinkSize, seed, iterations } = setup;
  const { shape } = resolveConfig(config);
  return trainCentroids(shape, keysOf(capture, 0, tokens), { seed, iterations, initOffset: sinkSize });
}

/**
 * Quality of the lists of the setup's steps with a codebook, all heads together and each. Lists are made by the CPU's
 * pipeline where the device is software.
 *
 * @param setup of which `sinkSize` is the first token that is coded
 * @param values f32 `[Hkv, N, D]`, to compare outputs as well
 */
export async function measureQuality(
  setup: Pick<QualitySetup, "capture" | "steps" | "sinkSize">,
  config: PqConfig,
  codebook: Codebook,
  values?: Float32Array,
): Promise<{ readonly all: Quality; readonly byHead: readonly Quality[] }> {
  const { capture, steps, sinkSize } = setup;
  const prompt = capture.tokens - steps;
  // The lists are the same but for rounding; a software device only compiles longer than the CPU takes for all of them.
  const gpu = await openGpu().catch(() => undefined);
  const pipeline = gpu && !gpu.info.isSoftware ? DEFAULT_PIPELINE : CPU_PIPELINE;
  using index = await PqIndexer.create({
    ...config,
    pipeline,
    initOffset: sinkSize,
    capacity: capture.tokens,
    codebook,
  });
  await index.append(keysOf(capture, 0, prompt));
  using held = pipeline.runsOn === "gpu" && index.config.refine > 1
    ? await gpu!.upload("keys", capture.key)
    : undefined;
  const cached = { keys: held?.buffer ?? capture.key, stride: capture.tokens };
  const options = index.config.refine > 1 ? { cached } : {};
  const meter = new QualityMeter(capture, index.config, sinkSize, values);
  for (let step = 0; step < steps; step++) {
    const query = capture.steps - steps + step, token = prompt + step;
    const selection = await index.step(queryOf(capture, query), keysOf(capture, token, token + 1), options);
    const data = await selection.read();
    // A pooled list is that of all heads of its group.
    const group = capture.heads / selection.heads;
    const lists = Array.from({ length: capture.heads }, (_, head) => listOf(data, Math.floor(head / group)));
    meter.add(query, index.tokens, lists);
  }
  return { all: meter.result(), byHead: meter.resultsByHead() };
}

/** Flags of the experiments that go over M × bits × K. */
export const GRID_FLAGS = {
  ...QUALITY_FLAGS,
  capture: { ...QUALITY_FLAGS.capture, value: "FILE,…" },
  subvectors: { value: "M,…", help: "subvectors per key", default: "2,4,8" },
  bits: { value: "N,…", help: "bits per code, 1 to 8", default: "4,6,8" },
  pooling: {
    value: "NAME,…",
    help: "lists of query heads (perQueryHead), or shared by a KV head's: groupSum, groupMax, groupSoftmax",
    default: "perQueryHead",
  },
  refine: { value: "R,…", help: "heavy tokens are the best by exact score of R·K; 1: no re-ranking", default: "1,4" },
} as const satisfies Record<string, Flag>;

/** One combination on one capture. */
export interface GridRow {
  /** The capture's name. */
  readonly capture: string;
  readonly subvectors: number;
  readonly bits: number;
  readonly heavySize: number;
  /** R. */
  readonly refine: number;
  readonly pooling: Pooling;
  /** M · bits: log2 of the number of different codes of a key. Codes are stored in more. */
  readonly bitsPerKey: number;
  /** Bytes of a key's codes per KV head as they are stored: one u8 per subvector, whatever the bits. */
  readonly bytesPerKey: number;
  readonly quality: Quality;
  readonly byHead: readonly Quality[];
}

/** Makes sure that what is asked for can be written, and loads what is asked about; the progress is that of the run. */
export async function beginRun(
  args: Arguments,
  subvectors: readonly number[],
  named = args.text("capture")!,
): Promise<{ setup: QualitySetup; progress: Progress }> {
  for (const file of ["json", "out"]) await prepareOutput(args.text(file));
  const progress = new Progress();
  progress.phase("load the capture");
  const setup = await setupFrom(args, named);
  const odd = subvectors.find((each) => setup.capture.headWidth % each !== 0);
  if (odd !== undefined) {
    throw new UsageError(
      `Cannot use --subvectors ${odd} as it must divide the capture's width, ${setup.capture.headWidth}`,
    );
  }
  return { setup, progress };
}

/**
 * Goes over captures × M × bits × K × R × pooling; a codebook serves all K, R and poolings. R·K that are too many, and re-ranking of scores
 * that are pooled one by one, are left out.
 */
export async function runGrid(
  args: Arguments,
  withValues: boolean,
): Promise<{ setups: QualitySetup[]; rows: GridRow[] }> {
  const setups: QualitySetup[] = [], rows: GridRow[] = [];
  for (const named of args.text("capture")!.split(",")) {
    const { setup, rows: own } = await runGridOn(args, named, withValues);
    if (setups.some(({ input }) => input === setup.input)) {
      throw new UsageError(`Cannot use two captures of one name as rows name theirs: both are ${setup.input}`);
    }
    setups.push(setup);
    rows.push(...own);
  }
  return { setups, rows };
}

async function runGridOn(
  args: Arguments,
  named: string,
  withValues: boolean,
): Promise<{ setup: QualitySetup; rows: GridRow[] }> {
  const all = args.integers("subvectors", 1, 4096), bits = args.integers("bits", 1, 8);
  const heavies = args.integers("heavy", 0, 4096), refines = args.integers("refine", 1, 4096);
  const poolings = poolingsOf(args);
  const { setup, progress } = await beginRun(args, all, named);
  const values = withValues ? await loadValues(setup.path, setup.capture) : undefined;
  const rows: GridRow[] = [];
  progress.phase("train and replay");
  let done = 0;
  for (const subvectors of all) {
    for (const each of bits) {
      const one = configFor(setup, { subvectors, bits: each, heavySize: 1 });
      const codebook = trainOn(setup, one, setup.capture.tokens - setup.steps);
      for (const heavySize of heavies) {
        for (const [refine, pooling] of refines.flatMap((refine) => poolings.map((name) => [refine, name] as const))) {
          progress.update(done++, all.length * bits.length * heavies.length * refines.length * poolings.length);
          if (refine > 1 && (refine * heavySize > MOST_SHORT || poolsScores({ pooling }))) continue;
          const config = configFor(setup, { subvectors, bits: each, heavySize, refine, pooling });
          const { all: quality, byHead } = await measureQuality(setup, config, codebook, values);
          const about = { subvectors, bits: each, heavySize, refine, pooling };
          rows.push({
            capture: setup.input,
            ...about,
            bitsPerKey: subvectors * each,
            bytesPerKey: subvectors,
            quality,
            byHead,
          });
        }
      }
    }
  }
  progress.done();
  return { setup, rows };
}

/** Writes rows and provenance where `--json` asks for it. */
export async function writeRows(
  args: Arguments,
  setups: readonly QualitySetup[],
  rows: readonly object[],
): Promise<void> {
  const path = args.text("json");
  if (path) await writeReport(path, { rows, provenance: await qualityProvenance(setups) });
}

/** The line of a picture that a row belongs to. A line's M says its bytes per key and head. */
export function lineOf({ capture, subvectors, refine, pooling }: GridRow, withCapture: boolean): string {
  const name = `M ${subvectors} (${subvectors} B), R ${refine}${pooling === "perQueryHead" ? "" : `, ${pooling}`}`;
  return withCapture ? `${capture}: ${name}` : name;
}

/** "66.3 %", "–" where there is none. */
export function percent(share: number): string {
  return Number.isNaN(share) ? "–" : `${(100 * share).toFixed(1)} %`;
}
