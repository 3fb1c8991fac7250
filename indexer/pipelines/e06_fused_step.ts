/**
 * e06 fused step: the new keys are coded in the dispatch that makes the lists. From e05.
 *
 * Why it should help: candidates end where the window begins, so nothing of this step needs the codes of its
 * own new keys while the window is longer than they are; the lists keep few of a GPU's cores busy, and coding
 * runs beside them: a dependent dispatch goes, two are left. Sixteen invocations share a centroid, so that the
 * chain of a distance is d / 16 + 4 long. Where a new key is a candidate, it is coded first, as in e05.
 *
 * @module
 */

import { assignFirst, codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import { candidates, candidatesBytes, TILING } from "../../kernels/score_topk/candidates.ts";
import { E05, tilesFit, withList } from "./e05_fused_list.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

const list = (weights: boolean) => codeList({ tiling: TILING, weights, invocations: 256, subgroupSize: 0 });
const BEFORE = [assignFirst, candidates];

/** The iteration as data, to derive others from. */
export const E06: GpuPipelineDef = {
  ...E05,
  id: "e06",
  title: "fused step",
  change: "new keys are coded beside the lists: two dispatches are left",
  kernels: withList(BEFORE, list, true),
  kernelsFor: (context) =>
    tilesFit(context, candidatesBytes(context.config.shape))
      ? withList(BEFORE, list, context.weights)
      : kernelsOf(E05, context),
};

/** The whole step in two dispatches. */
export const e06: Pipeline = gpuPipeline(E06);
