/**
 * What is measured: the seed configuration and, from it, one factor at a time.
 *
 * @module
 */

import { SEED_WORKLOAD, type Workload } from "../experiments/inputs/workload.ts";
import { centroidWidth } from "../kernels/shape.ts";
import { resolveConfig } from "../indexer/config.ts";
import { codedTokens, configOf } from "../experiments/inputs/workload.ts";

/** A workload and what it differs in. */
export interface Case {
  /** Which factor varies: "N", "heads", "K", "GQA". */
  readonly factor: string;
  /** Its value. */
  readonly value: number;
  /** The workload. */
  readonly workload: Workload;
}

function vary(factor: string, values: readonly number[], change: (value: number) => Partial<Workload>): Case[] {
  return values.map((value) => ({ factor, value, workload: { ...SEED_WORKLOAD, ...change(value) } }));
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
  ];
}

/**
 * Bytes that no implementation of a step can do without: every code of a candidate, all centroids, the query and the
 * new keys read once; the list written once, and the weights that the old and the new list touch.
 */
export function leastBytes(workload: Workload): number {
  const { batch, heads, kvHeads, headWidth, subvectors, sinkSize, windowSize, heavySize } = workload;
  const { shape } = resolveConfig(configOf(workload));
  const codes = batch * kvHeads * subvectors * Math.max(0, codedTokens(workload) - windowSize);
  const centroids = 4 * batch * kvHeads * subvectors * shape.centroids * centroidWidth(shape);
  const vectors = 4 * headWidth * batch * (heads + kvHeads);
  const list = sinkSize + windowSize + heavySize;
  return codes + centroids + vectors + batch * heads * list * (workload.weights ? 12 : 4);
}
