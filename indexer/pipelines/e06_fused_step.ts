/**
 * e06 fused step: the new keys are coded in the dispatch that scores the tiles. From e05.
 *
 * Why it should help: candidates end where the window begins, so no tile needs the codes of the step's new
 * keys while the window is longer than they are; coding runs beside scoring and a dependent dispatch goes.
 * Two are left. Where a candidate shares a word of codes with a new key, they are coded first, as in e05.
 *
 * @module
 */

import { TILING } from "../../kernels/score_topk/candidates.ts";
import { assignFirst, codeCandidates, codeCandidatesBytes } from "../../kernels/quantize_score_topk/code_candidates.ts";
import { mergeList } from "../../kernels/topk_list/merge_list.ts";
import { E05, tilesFit, withList } from "./e05_fused_list.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

const list = (weights: boolean) => mergeList({ tiling: TILING, weights, invocations: 256, subgroupSize: 0 });
const BEFORE = [assignFirst, codeCandidates];

/** The iteration as data, to derive others from. */
export const E06: GpuPipelineDef = {
  ...E05,
  id: "e06",
  title: "fused step",
  change: "new keys are coded beside the tiles: two dispatches are left",
  kernels: withList(BEFORE, list, true),
  kernelsFor: (context) =>
    tilesFit(context, codeCandidatesBytes(context.config.shape))
      ? withList(BEFORE, list, context.weights)
      : kernelsOf(E05, context),
};

/** The whole step in two dispatches. */
export const e06: Pipeline = gpuPipeline(E06);
