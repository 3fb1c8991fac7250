/**
 * e07 tuned: large workgroups that keep ranks in registers, and sizes chosen per device and shape. From e06.
 *
 * @module
 */

import { assignFirst } from "../../kernels/quantize_score_topk/code_candidates.ts";
import {
  codeTiles,
  codeTilesBytes,
  type CodeTilesOptions,
  tilingOf,
} from "../../kernels/quantize_score_topk/code_tiles.ts";
import { mergeList } from "../../kernels/topk_list/merge_list.ts";
import { tilePays } from "./e04_fused_topk.ts";
import { withList } from "./e05_fused_list.ts";
import { E06 } from "./e06_fused_step.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf, type PlanContext } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

/** What is tuned. Speed depends on it; results do not. */
export interface Tuning extends CodeTilesOptions {
  /** Invocations of merge_list, one workgroup per list; a power of two. */
  readonly mergeInvocations: number;
}

/** Sizes that do well without measuring. */
export function defaultTuning({ config, device }: PlanContext): Tuning {
  const { shape } = config;
  const most = device.limits.maxComputeInvocationsPerWorkgroup;
  const invocations = Math.min(device.info.isSoftware ? 256 : 1024, most);
  const base: Tuning = {
    invocations,
    mergeInvocations: Math.min(device.info.isSoftware ? 256 : 1024, most),
    words: 2,
    replicas: 1,
    lists: 1,
    subgroupSize: device.subgroupSize,
  };
  let replicas = device.info.isSoftware ? 1 : 32;
  while (replicas > 1 && 4 * shape.subvectors * shape.centroids * replicas > 16384) replicas /= 2;
  return { ...base, replicas };
}

/** The kernels for given sizes. */
export function tunedKernels(tuning: Tuning, weights: boolean) {
  const list = (weights: boolean) =>
    mergeList({
      tiling: tilingOf(tuning),
      weights,
      invocations: tuning.mergeInvocations,
      subgroupSize: tuning.subgroupSize,
    });
  return withList([assignFirst, codeTiles(tuning)], list, weights);
}

const PORTABLE: Tuning = {
  invocations: 256,
  mergeInvocations: 256,
  words: 2,
  replicas: 1,
  lists: 1,
  subgroupSize: 0,
};

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
  const bytes = codeTilesBytes(context.config.shape, tuning);
  const fits = bytes <= context.device.limits.maxComputeWorkgroupStorageSize;
  return fits && tilePays(context.config, tilingOf(tuning).tile)
    ? tunedKernels(tuning, context.weights)
    : kernelsOf(E06, context);
}

/** The tuned step. */
export const e07: Pipeline = gpuPipeline(E07);
