/**
 * e07 tuned: large workgroups that keep ranks in registers, and sizes chosen per device and shape. From e06.
 *
 * @module
 */

import { assignFirst, codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import { scoreTiles, scoreTilesBytes, type ScoreTilesOptions, tilingOf } from "../../kernels/score_topk/score_tiles.ts";
import { tilePays } from "./e04_fused_topk.ts";
import { withList } from "./e05_fused_list.ts";
import { E06 } from "./e06_fused_step.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf, type PlanContext } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

/** What is tuned. Speed depends on it; results do not. */
export interface Tuning extends ScoreTilesOptions {
  /** Invocations of code_list, one workgroup per list; a power of two. */
  readonly listInvocations: number;
}

/** Sizes that do well without measuring. */
export function defaultTuning({ device }: PlanContext): Tuning {
  const most = device.limits.maxComputeInvocationsPerWorkgroup;
  return {
    invocations: Math.min(512, most),
    listInvocations: Math.min(device.info.isSoftware ? 64 : 1024, most),
    replicas: 1,
    lists: 1,
    subgroupSize: device.subgroupSize,
  };
}

/** The kernels for given sizes. */
export function tunedKernels(tuning: Tuning, weights: boolean) {
  const { subgroupSize, listInvocations: invocations } = tuning;
  const list = (weights: boolean) => codeList({ tiling: tilingOf(tuning), weights, invocations, subgroupSize });
  return withList([assignFirst, scoreTiles(tuning)], list, weights);
}

const PORTABLE: Tuning = { invocations: 256, listInvocations: 256, replicas: 1, lists: 1, subgroupSize: 0 };

/** The iteration as data, to derive others from. */
export const E07: GpuPipelineDef = {
  ...E06,
  id: "e07",
  title: "tuned",
  change: "large tiles with ranks in registers; sizes chosen per device and shape",
  kernels: tunedKernels(PORTABLE, true),
  kernelsFor: (context) => tunedPlan(context, defaultTuning(context)),
};

/** The kernels for given sizes where they fit the device, else e06's. */
export function tunedPlan(context: PlanContext, tuning: Tuning) {
  const bytes = scoreTilesBytes(context.config.shape, tuning);
  const fits = bytes <= context.device.limits.maxComputeWorkgroupStorageSize;
  return fits && tilePays(context.config, tilingOf(tuning).tile)
    ? tunedKernels(tuning, context.weights)
    : kernelsOf(E06, context);
}

/** The tuned step. */
export const e07: Pipeline = gpuPipeline(E07);
