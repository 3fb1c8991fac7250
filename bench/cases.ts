/**
 * What is measured: the seed configuration and, from it, one factor at a time.
 *
 * @module
 */

import { SEED_WORKLOAD, type Workload } from "../experiments/inputs/workload.ts";
import { centroidWidth } from "../kernels/shape.ts";
import { resolveConfig } from "../indexer/config.ts";
import { e03By } from "../indexer/pipelines/e03_lookup.ts";
import { e07 } from "../indexer/pipelines/e07_tuned.ts";
import { e08 } from "../indexer/pipelines/e08_cells.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import { codedTokens, configOf } from "../experiments/inputs/workload.ts";

/** A workload and what it differs in. */
export interface Case {
  /** Which factor varies: "N", "heads", "K", "GQA", or a size of a pipeline. */
  readonly factor: string;
  /** Its value. */
  readonly value: number;
  /** The workload. */
  readonly workload: Workload;
  /** The pipelines that the case is about. Default: all. */
  readonly pipelines?: readonly Pipeline[];
}

function vary(factor: string, values: readonly number[], change: (value: number) => Partial<Workload>): Case[] {
  return values.map((value) => ({ factor, value, workload: { ...SEED_WORKLOAD, ...change(value) } }));
}

/** A pipeline at each of its sizes. */
function block(
  factor: string,
  values: readonly number[],
  make: (value: number) => Pipeline,
  change: Partial<Workload> = {},
): Case[] {
  return vary(factor, values, () => change).map((one) => ({ ...one, pipelines: [make(one.value)] }));
}

/** The seed configuration. */
export const SEED: Case = { factor: "N", value: SEED_WORKLOAD.tokens, workload: SEED_WORKLOAD };

/** Cases of a run: few on a software rasterizer, more on a GPU, all of the grid with `full`. */
export function casesFor(software: boolean, full: boolean): Case[] {
  const tokens = full
    ? [4096, 32_000, 131_072, 262_144, 1_048_576]
    : software
    ? [4096, 32_000]
    : [4096, 32_000, 131_072];
  const overN = vary("N", tokens, (tokens) => ({ tokens, weights: tokens < 2 ** 20 }));
  if (!full) return overN;
  return [
    ...overN,
    ...vary("heads", [8, 128], (heads) => ({ heads, kvHeads: heads })),
    ...vary("K", [64, 512, 1024, 2048], (heavySize) => ({ heavySize })),
    ...vary("GQA", [4, 8], (group) => ({ kvHeads: 32 / group })),
    ...block("e03 invocations", [64, 128, 256], (invocations) => e03By({ invocations, words: 4 })),
    ...block("e03 words", [1, 2, 8], (words) => e03By({ invocations: 256, words })),
    ...block("e07 invocations", [128, 256, 512, 1024], (invocations) => e07.tuned!({ invocations, mostChunks: 1 })),
    ...block("e07 invocations per list", [128, 256, 512, 1024], (listInvocations) => e07.tuned!({ listInvocations })),
    ...block("e08 invocations", [256, 512, 1024], (listInvocations) => e08.tuned!({ listInvocations })),
    ...block("e07 subgroups", [0], (subgroupSize) => e07.tuned!({ subgroupSize })),
    ...block("e07 chunks at N 131,072", [1, 4, 16], (mostChunks) => e07.tuned!({ mostChunks }), { tokens: 131_072 }),
    ...block("e07 lists at GQA 4", [1, 2, 4], (lists) => e07.tuned!({ lists }), { kvHeads: 8 }),
  ];
}

/**
 * Bytes of a step that reads every code: each candidate's codes, all centroids, the query and the new keys read once; the
 * list written once, and the weights that the old and the new list touch. No step that scores every key moves fewer. One
 * that ranks cells does, as it reads no code of a cached key.
 */
export function everyCodeBytes(workload: Workload): number {
  const { batch, heads, kvHeads, headWidth, subvectors, sinkSize, windowSize, heavySize } = workload;
  const { shape } = resolveConfig(configOf(workload));
  const codes = batch * kvHeads * subvectors * Math.max(0, codedTokens(workload) - windowSize);
  const centroids = 4 * batch * kvHeads * subvectors * shape.centroids * centroidWidth(shape);
  const vectors = 4 * headWidth * batch * (heads + kvHeads);
  const list = sinkSize + windowSize + heavySize;
  return codes + centroids + vectors + batch * heads * list * (workload.weights ? 12 : 4);
}
