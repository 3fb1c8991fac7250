/**
 * e05 fused list: merge, offset, concat, sort, zeros and scatter become one kernel. From e04.
 *
 * Why it should help: candidates come in the order of their tokens, so an ordered compaction puts the heavy
 * tokens between sink and window and nothing is sorted: five dispatches go, and with them two bitonic
 * sorts of log² steps. The digits of the merge are searched by all invocations at once in histograms of
 * 2,048 bins, not by one in a loop over 256. Weights stay from step to step: only what the list before had is
 * cleared, 4 · (S + W + K) bytes per list instead of 4 · N.
 *
 * Predicted: merge 79, four list kernels and sort 44 and weights 13 µs become one kernel of about 25.
 * Measured (seed configuration; GPU pass) on an NVIDIA H200: 70.5 µs after 169; merge_list takes 15.4 in a pass of its own, of
 * which 3.7 are the pass.
 *
 * The plan keeps e04's kernels where that falls back to e03's.
 *
 * @module
 */

import { assignMany } from "../../kernels/quantize/assign_many.ts";
import { assignPacked } from "../../kernels/quantize/assign_packed.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { candidates, candidatesBytes, TILE, TILING } from "../../kernels/score_topk/candidates.ts";
import { mergeList } from "../../kernels/topk_list/merge_list.ts";
import { E04, tilePays } from "./e04_fused_topk.ts";
import { gpuPipeline, type GpuPipelineDef, plainKernelsOf, zerosUnlessListed } from "./gpu_layer.ts";
import type { Pipeline, PlanContext } from "./pipeline.ts";

/** Kernels that make a list of candidates, with weights or without. */
export function withList(before: readonly Kernel[], list: (weights: boolean) => Kernel, weights: boolean): Kernel[] {
  return weights ? [...before, zerosUnlessListed, list(true)] : [...before, list(false)];
}

const list = (weights: boolean) => mergeList({ tiling: TILING, weights, invocations: 256, subgroupSize: 0 });
const BEFORE = [assignMany, assignPacked, candidates];

/** Whether tiles of e04 to e06 fit the device and pay. */
export function tilesFit({ config, device }: PlanContext, bytes: number): boolean {
  return bytes <= device.limits.maxComputeWorkgroupStorageSize && tilePays(config, TILE);
}

/** The iteration as data, to derive others from. */
export const E05: GpuPipelineDef = {
  ...E04,
  id: "e05",
  title: "fused list",
  change: "merge, list and weights in one kernel; nothing is sorted, weights are cleared by the old list",
  kernels: withList(BEFORE, list, true),
  weightKernels: [],
  kernelsFor: (context) =>
    tilesFit(context, candidatesBytes(context.config.shape))
      ? withList(BEFORE, list, context.weights)
      : plainKernelsOf(E04, context),
};

/** Merge and list fused. */
export const e05: Pipeline = gpuPipeline(E05);
