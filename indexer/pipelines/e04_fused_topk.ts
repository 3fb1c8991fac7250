/**
 * e04 fused top-K: score, mask and the top-K of a tile of 2,048 tokens in one kernel, then a merge of the
 * tiles' candidates. The score tensor is never stored. From e03.
 *
 * Why it should help: the top-K of e01 reads n ranks five times with one workgroup per list; here every
 * tile ranks its own tokens in workgroup memory, n / 2,048 workgroups per list, and the merge reads
 * K·n / 2,048 candidates (1,024 instead of 16,384 at K 128). 4·n bytes of scores, 8·n of mask and 20·n of
 * top-K become 8·K·n / 2,048 written and six times half of that read.
 *
 * Measured (walkthrough: 4 heads, 16,384 tokens, M 8, 8 bits; GPU pass): 137 µs after 213 on an NVIDIA H200. In
 * passes of their own candidates takes 33 µs (score_lookup 26, mask 5) and merge 65 (topk 147): the merge
 * reads a sixteenth of the entries but keeps topk's serial search of 4 · 256 digits and its sort through
 * storage, which do not shrink with them. Seed configuration: 169 µs after 289, candidates 44 and merge 79.
 *
 * The plan keeps e03's kernels where a tile would not pay (K above a quarter of a tile, or K a ratio, which
 * grows with N) or does not fit workgroup memory.
 *
 * @module
 */

import { candidates, candidatesBytes, TILE } from "../../kernels/score_topk/candidates.ts";
import { merge } from "../../kernels/score_topk/merge.ts";
import { poolsScores, type ResolvedConfig } from "../config.ts";
import { E03 } from "./e03_lookup.ts";
import { gpuPipeline, type GpuPipelineDef } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

const REPLACED = new Set(["score_lookup", "mask"]);
const KERNELS = E03.kernels.filter(({ name }) => !REPLACED.has(name))
  .flatMap((kernel) => kernel.name === "topk" ? [candidates, merge] : [kernel]);

/**
 * Whether tiles can pick what lists take of them, and a tile is much larger than that: K a quarter of it at most, no ratio,
 * and no scores that are pooled after they are stored.
 */
export function tilePays(config: ResolvedConfig, tile: number): boolean {
  const { heavySize } = config;
  return typeof heavySize === "number" && heavySize <= tile / 4 && !poolsScores(config);
}

/** The iteration as data, to derive others from. */
export const E04: GpuPipelineDef = {
  ...E03,
  id: "e04",
  title: "fused top-K",
  change: "score and top-K of a tile of 2,048 tokens in one kernel, then a merge: scores are never stored",
  kernels: KERNELS,
  kernelsFor(context) {
    const fits = candidatesBytes(context.config.shape) <= context.device.limits.maxComputeWorkgroupStorageSize;
    return fits && tilePays(context.config, TILE) ? KERNELS : E03.kernelsFor!(context);
  },
};

/** Score and top-K fused. */
export const e04: Pipeline = gpuPipeline(E04);
