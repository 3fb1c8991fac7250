/**
 * e07 tuned: large workgroups that keep ranks in registers, and sizes chosen per device and shape. From e06.
 *
 * @module
 */

import { assignFirst, codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import { scoreTiles, scoreTilesBytes, type ScoreTilesOptions, tilingOf } from "../../kernels/score_topk/score_tiles.ts";
import { tilePays } from "./e04_fused_topk.ts";
import { withList } from "./e05_fused_list.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { E06, twoDispatches } from "./e06_fused_step.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf } from "./gpu_layer.ts";
import type { Pipeline, PlanContext } from "./pipeline.ts";

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
    listInvocations: Math.min(device.info.isSoftware ? 64 : 512, most),
    replicas: 1,
    lists: 1,
    subgroupSize: device.subgroupSize,
  };
}

/** The kernels for given sizes where they fit the device, else e06's. Pure. */
export function tunedKernels(context: PlanContext, tuning: Tuning): readonly Kernel[] {
  const { config, device } = context;
  const bytes = scoreTilesBytes(config.shape, tuning);
  const fits = bytes <= device.limits.maxComputeWorkgroupStorageSize;
  if (!fits || !tilePays(config, tilingOf(tuning).tile)) return kernelsOf(E06, context);
  const { subgroupSize, listInvocations: invocations } = tuning;
  return twoDispatches(scoreTiles(tuning), { tiling: tilingOf(tuning), invocations, subgroupSize }, context);
}

const PORTABLE: Tuning = { invocations: 256, listInvocations: 256, replicas: 1, lists: 1, subgroupSize: 0 };

/** The iteration as data, to derive others from. */
export const E07: GpuPipelineDef = {
  ...E06,
  id: "e07",
  title: "tuned",
  change: "large tiles with ranks in registers; sizes chosen per device and shape",
  kernels: withList(
    [assignFirst, scoreTiles(PORTABLE)],
    (weights) => codeList({ tiling: tilingOf(PORTABLE), invocations: 256, subgroupSize: 0, weights }),
    true,
  ),
  kernelsFor: (context) => tunedKernels(context, defaultTuning(context)),
};

/** A pipeline like e07 with sizes of the caller's. */
export function tunedPipeline(tuning: Partial<Tuning>): Pipeline {
  return gpuPipeline({
    ...E07,
    kernelsFor: (context) => tunedKernels(context, { ...defaultTuning(context), ...tuning }),
  });
}

/** The tuned step. */
export const e07: Pipeline = gpuPipeline(E07);
