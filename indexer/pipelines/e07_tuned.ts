/**
 * e07 tuned: large tiles that a workgroup scores into registers, and sizes chosen per device and shape. From e06.
 *
 * What changes, and what each was worth in the seed configuration on an NVIDIA H200 while it was built (score_tiles in
 * a pass of its own was 45 µs with tiles of 2,048 tokens):
 * - Tiles of 8,192 tokens: a quarter of the tables, four times fewer candidates. 45 to 27.
 * - Sixteen invocations share a table entry: neighbours read neighbouring columns. With the next, 27 to 17.
 * - One histogram between the extremes of the ranks in place of digits, and ranks in registers.
 * - No loops in the hot path: one iteration of a loop costs 30 to 50 ns there, as the compiler's guard against endless
 *   loops keeps it from being unrolled. 17 to 12.
 * - Tiles grow with the tokens, to one wave of workgroups: a long tile remembers its groups' best ranks only, and scores
 *   the few groups again that can hold one of the best.
 * - A bound that does not trust neighbours to differ: with one from contiguous groups, real keys, which are clustered, took
 *   the slow path nearly always. A histogram of ranks above the lowest best of a block of groups holds for any data.
 * - The list compares the few members of the last bin with each other, a pair per invocation, instead of a second
 *   histogram: 20.4 to 18.3 for the step.
 * - Lost: copies of the table against bank conflicts (no gain), f16 entries (e07h).
 *
 * Measured (GPU pass, `bench/results/`): 18.3 µs after 56.3, 26.2 after 176 at 131,072 tokens, 30.7 after 327 at 262,144, 76.9
 * after 1,187 at 1,048,576 (weights off). An empty pass takes 3.7 of it and a second dispatch 1.7; score_tiles 7.8 and code_list
 * 5.7 beyond their own passes. On llvmpipe (2 cores), where nothing else ran, 26 ms after 125: 4.9 × the baseline in that run.
 *
 * @module
 */

import { assignMany } from "../../kernels/quantize/assign_many.ts";
import { assignFirst, codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import { scoreTiles, type ScoreTilesOptions, tilingOf } from "../../kernels/score_topk/score_tiles.ts";
import { refuse } from "../config.ts";
import { checkTuning, type Tuning, TUNING_NAMES } from "../tuning.ts";
import { tilePays } from "./e04_fused_topk.ts";
import { withList } from "./e05_fused_list.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { E06, twoDispatches } from "./e06_fused_step.ts";
import { gpuPipeline, type GpuPipelineDef, plainKernelsOf } from "./gpu_layer.ts";
import type { Pipeline, PlanContext } from "./pipeline.ts";

/** Sizes that do well without measuring: large workgroups and long tiles, smaller ones where workgroup memory is short. */
export function defaultTuning(context: PlanContext): Tuning {
  const { device } = context;
  const { limits, subgroupSize } = device;
  const { isSoftware } = device.info;
  const most = Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX);
  const at = (invocations: number, mostChunks: number): Tuning => ({
    invocations,
    mostChunks,
    workgroups: isSoftware ? 16 : 128,
    listInvocations: Math.min(isSoftware ? 64 : 512, invocations),
    lists: 1,
    subgroupSize,
  });
  for (let invocations = Math.min(512, most); invocations > 64; invocations /= 2) {
    const tuning = [16, 1].map((chunks) => at(invocations, chunks)).find((tuning) => fits(context, tuning));
    if (tuning) return tuning;
  }
  return at(64, 1);
}

type Entries = ScoreTilesOptions["entries"];

function kernelsAt(
  { config, device, weights }: PlanContext,
  given: Tuning,
  entries: Entries,
): readonly Kernel[] {
  const { subgroupSize, listInvocations: invocations } = given;
  // A long tile's groups that matter must find an invocation each.
  const takesMany = typeof config.heavySize !== "number" || config.heavySize > given.invocations;
  const tuning = takesMany ? { ...given, mostChunks: 1 } : given;
  const tiles = [false, true].slice(0, tuning.mostChunks > 1 ? 2 : 1).map((isLong) =>
    scoreTiles({ ...tuning, entries }, isLong)
  );
  return twoDispatches(tiles, { tiling: tilingOf(tuning), invocations, subgroupSize }, { device, weights });
}

function fits(context: PlanContext, tuning: Tuning, entries: Entries = "f32"): boolean {
  const { limits } = context.device;
  const most = Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX);
  return kernelsAt(context, tuning, entries).every((kernel) => {
    const { workgroupBytes, invocations } = kernel.plan(context.config.shape);
    return workgroupBytes <= limits.maxComputeWorkgroupStorageSize && invocations <= most;
  });
}

function canHave(context: PlanContext, tuning: Tuning, entries: Entries): boolean {
  return fits(context, tuning, entries) && tilePays(context.config, tilingOf(tuning).chunk);
}

/**
 * The kernels for given sizes. Pure.
 *
 * @throws {RangeError} for sizes that no kernel, not this device or not this shape can have
 */
export function tunedKernels(context: PlanContext, tuning: Tuning, entries: Entries = "f32"): readonly Kernel[] {
  const action = "plan e07 with these sizes", { subgroupSize } = context.device;
  checkTuning(action, tuning);
  if (tuning.subgroupSize !== 0 && tuning.subgroupSize !== subgroupSize) {
    refuse(action, `subgroups of this device have ${subgroupSize} invocations`, JSON.stringify(tuning));
  }
  if (!canHave(context, tuning, entries)) {
    refuse(
      action,
      "they must fit the device, K be a quarter of a chunk at most, and scores not be pooled one by one",
      JSON.stringify(tuning),
    );
  }
  return kernelsAt(context, tuning, entries);
}

/** The kernels for given sizes, or for the default ones where a shape or device cannot have those. Pure. */
export function tunedOrDefaultKernels(context: PlanContext, tuning: Tuning): readonly Kernel[] {
  return canHave(context, tuning, "f32") ? kernelsAt(context, tuning, "f32") : defaultKernels(context);
}

/** The kernels for the default sizes; e06's where a shape or device can have none. Pure. */
export function defaultKernels(context: PlanContext, entries: Entries = "f32"): readonly Kernel[] {
  const tuning = defaultTuning(context);
  return canHave(context, tuning, entries) ? kernelsAt(context, tuning, entries) : plainKernelsOf(E06, context);
}

const PORTABLE: ScoreTilesOptions = {
  entries: "f32",
  mostChunks: 1,
  workgroups: 1,
  invocations: 256,
  lists: 1,
  subgroupSize: 0,
};

/** The iteration as data, to derive others from. */
export const E07: GpuPipelineDef = {
  ...E06,
  id: "e07",
  title: "tuned",
  change: "large tiles scored into registers, grown to one wave of workgroups; sizes per device and shape",
  kernels: withList(
    [assignMany, assignFirst, scoreTiles(PORTABLE, false)],
    (weights) => codeList({ tiling: tilingOf(PORTABLE), invocations: 256, subgroupSize: 0, weights }),
    true,
  ),
  kernelsFor: (context) => defaultKernels(context),
};

/** A pipeline whose sizes can be chosen. */
export function tunablePipeline(def: GpuPipelineDef, entriesOf: (context: PlanContext) => Entries): Pipeline {
  const tuned = (tuning: Partial<Tuning>) =>
    gpuPipeline({
      ...def,
      kernelsFor: (context) => tunedKernels(context, { ...defaultTuning(context), ...tuning }, entriesOf(context)),
    });
  const tunes = (context: PlanContext) =>
    canHave(context, defaultTuning(context), entriesOf(context)) ? TUNING_NAMES : [];
  return { ...gpuPipeline(def), tuned: (tuning) => ({ ...tuned(tuning), tuning }), defaultTuning, tunes };
}

/** The tuned step. */
export const e07: Pipeline = tunablePipeline(E07, () => "f32");
