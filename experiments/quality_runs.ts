/**
 * Quality of selections on a capture, for the experiments that vary one thing: codebooks that are trained on some of the
 * keys, all others appended, the last decode steps replayed and compared with exact attention.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { Gpu } from "../kernels/gpu/device.ts";
import { type Metric, type PqConfig, resolveConfig } from "../indexer/config.ts";
import { trainCentroids } from "../indexer/kmeans.ts";
import { PqIndexer } from "../indexer/pq_indexer.ts";
import type { Codebook } from "../indexer/reference.ts";
import { listOf } from "../indexer/selection.ts";
import { type Arguments, type Flag, UsageError } from "./cli.ts";
import { BUNDLED_CAPTURE, type Capture, keysOf, loadCapture, queryOf } from "./inputs/capture.ts";
import { provenance } from "./provenance.ts";
import { type Quality, QualityMeter } from "./quality.ts";

/** Flags that these experiments share. */
export const QUALITY_FLAGS = {
  capture: { value: "FILE", help: "safetensors: query [H, T, D], key, value [Hkv, N, D] (default: the bundled one)" },
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
  /** The capture's file name. */
  readonly input: string;
  readonly steps: number;
  readonly sinkSize: number;
  readonly windowSize: number;
  readonly seed: number;
  readonly iterations: number;
}

/** Integers of a flag, such as "2,4,8". */
export function integersOf(args: Arguments, flag: string, least: number, most: number): number[] {
  return args.text(flag)!.split(",").map((text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < least || value > most) {
      throw new UsageError(`Cannot use --${flag} ${text} as each must be an integer ${least} to ${most}`);
    }
    return value;
  });
}

/** Loads what the flags name. */
export async function setupFrom(args: Arguments): Promise<QualitySetup> {
  const sinkSize = args.integer("sink", 0, 2 ** 20), windowSize = args.integer("window", 0, 2 ** 20);
  const seed = args.integer("seed", 0, 2 ** 32 - 1), iterations = args.integer("iterations", 1, 1000);
  if (args.text("steps") !== undefined) args.integer("steps", 1, 2 ** 20);
  const path = args.text("capture") ?? fileURLToPath(BUNDLED_CAPTURE);
  const capture = await loadCapture(path);
  const steps = args.text("steps") === undefined ? capture.steps : args.integer("steps", 1, capture.steps);
  return { capture, input: path.split(/[\\/]/).at(-1)!, steps, sinkSize, windowSize, seed, iterations };
}

/** What stands beside the rows of such an experiment. */
export async function qualityProvenance(
  { capture, input, steps, sinkSize, windowSize, seed, iterations }: QualitySetup,
) {
  const { heads, kvHeads, headWidth, tokens } = capture;
  return {
    ...await provenance((await Gpu.shared().catch(() => undefined))?.info),
    input,
    capture: { heads, kvHeads, headWidth, tokens, steps },
    config: { sinkSize, windowSize },
    seed,
    iterations,
  };
}

/** The config of an index over a setup's capture. */
export function configFor(
  { capture, sinkSize, windowSize }: QualitySetup,
  rest: { subvectors: number; bits: number; heavySize: number; metric?: Metric },
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

/** Quality of the lists of the setup's steps with a codebook, all heads together and each. */
export async function measureQuality(
  setup: QualitySetup,
  config: PqConfig,
  codebook: Codebook,
): Promise<{ readonly all: Quality; readonly byHead: readonly Quality[] }> {
  const { capture, steps, sinkSize } = setup;
  const prompt = capture.tokens - steps;
  using index = await PqIndexer.create({ ...config, initOffset: sinkSize, capacity: capture.tokens, codebook });
  await index.append(keysOf(capture, 0, prompt));
  const meter = new QualityMeter(capture, index.config, sinkSize);
  for (let step = 0; step < steps; step++) {
    const query = capture.steps - steps + step, token = prompt + step;
    const selection = await index.step(queryOf(capture, query), keysOf(capture, token, token + 1));
    const data = await selection.read();
    meter.add(query, index.tokens, Array.from(data.lengths, (_, list) => listOf(data, list)));
  }
  return { all: meter.result(), byHead: meter.resultsByHead() };
}

/** "66.3 %", "–" where there is none. */
export function percent(share: number): string {
  return Number.isNaN(share) ? "–" : `${(100 * share).toFixed(1)} %`;
}
