/**
 * e06 fused step: the new keys are coded in the dispatch that makes the lists. From e05.
 *
 * Why it should help: candidates end where the window begins, so nothing of this step needs the codes of its
 * own new keys while the window is longer than they are; the lists keep few of a GPU's cores busy, and coding
 * runs beside them: a dependent dispatch goes, two are left. Sixteen invocations share a centroid, so that the
 * chain of a distance is d / 16 + 4 long. Where a new key is a candidate, it is coded first, as in e05.
 *
 * Predicted: the 12.5 µs that assign_packed takes beside its pass, and 1.7 for the dispatch, go.
 * Measured (seed configuration; GPU pass) on an NVIDIA H200: 56.3 µs after 70.5, and as much, 56.2, without a new key: coding is
 * hidden. Beside the tiles, where it was tried first, it cost 3 µs: workgroups of 1,024 leave no room for others. On
 * llvmpipe, which has nothing idle, a step with a new key is slower than e05: it loses there.
 *
 * @module
 */

import { assignFirst, codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import { assignMany } from "../../kernels/quantize/assign_many.ts";
import { assignPacked } from "../../kernels/quantize/assign_packed.ts";
import { candidates, candidatesBytes, TILING } from "../../kernels/score_topk/candidates.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { mergeList, type MergeListOptions } from "../../kernels/topk_list/merge_list.ts";
import { E05, tilesFit, withList } from "./e05_fused_list.ts";
import { gpuPipeline, type GpuPipelineDef, plainKernelsOf } from "./gpu_layer.ts";
import type { Pipeline, PlanContext } from "./pipeline.ts";

/** Kernels that score by `tiles` and then make lists: with coding beside the lists where a kernel may bind that much. */
export function twoDispatches(
  tiles: readonly Kernel[],
  options: Omit<MergeListOptions, "weights">,
  { device, weights }: Pick<PlanContext, "device" | "weights">,
): Kernel[] {
  const beside = codeList({ ...options, weights });
  const fits = beside.buffers.length <= device.limits.maxStorageBuffersPerShaderStage;
  return fits
    ? withList([assignMany, assignFirst, ...tiles], () => beside, weights)
    : withList([assignMany, assignPacked, ...tiles], () => mergeList({ ...options, weights }), weights);
}

const LIST = { tiling: TILING, invocations: 256, subgroupSize: 0 };

/** The iteration as data, to derive others from. */
export const E06: GpuPipelineDef = {
  ...E05,
  id: "e06",
  title: "fused step",
  change: "new keys are coded beside the lists: two dispatches are left",
  kernels: withList([assignMany, assignFirst, candidates], (weights) => codeList({ ...LIST, weights }), true),
  kernelsFor: (context) =>
    tilesFit(context, candidatesBytes(context.config.shape))
      ? twoDispatches([candidates], LIST, context)
      : plainKernelsOf(E05, context),
};

/** The whole step in two dispatches. */
export const e06: Pipeline = gpuPipeline(E06);
