/**
 * e07 tuned: large workgroups that keep ranks in registers, and sizes chosen per device and shape. From e06.
 *
 * What changes, and what each was worth in the seed configuration on an NVIDIA H200 (score_tiles in a pass of its own was 45 µs
 * with tiles of 2,048 tokens):
 * - Tiles of 8,192 tokens: a quarter of the tables, four times fewer candidates. 45 to 27.
 * - Sixteen invocations share a table entry: neighbours read neighbouring columns. With the next, 27 to 17.
 * - One histogram between the extremes of the ranks in place of digits, and ranks in registers; only tokens that reach a
 *   bound taken from the invocations' best are looked at again.
 * - No loops in the hot path: one iteration of a loop costs 30 to 50 ns there, as the compiler's guard against endless
 *   loops keeps it from being unrolled. 17 to 12.
 * - Table copies without bank conflicts (replicas): no gain, and 3 µs lost when a loop wrote them. Kept as a size.
 *
 * Measured (GPU pass): 17.9 µs after 54.3, 28.3 after 170 at 131,072 tokens, 142 after 1,207 at 1,048,576 (weights off; 16.5
 * is what the bytes would take at copy speed; by our count scoring takes some 20 instructions per token).
 * By leaving stages out, shortly before the final form: an empty pass and a second dispatch take 6.3 of the 17.9, the table 1.5, scores 1.6, the bound 0.7, keeping
 * candidates 1 to 2, the list 4.6. On llvmpipe 11.7 ms after 58, 5.7 × the baseline.
 *
 * @module
 */

import { assignFirst, codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import { scoreTiles, type ScoreTilesOptions, tilingOf } from "../../kernels/score_topk/score_tiles.ts";
import { refuse } from "../config.ts";
import { checkTuning, type Tuning } from "../tuning.ts";
import { tilePays } from "./e04_fused_topk.ts";
import { withList } from "./e05_fused_list.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { E06, twoDispatches } from "./e06_fused_step.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf } from "./gpu_layer.ts";
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
  const most = context.device.limits.maxComputeWorkgroupStorageSize;
  return kernelsAt(context, tuning, entries).every((kernel) =>
    kernel.plan(context.config.shape).workgroupBytes <= most
  );
}

/**
 * The kernels for given sizes where they fit the device, else e06's. Pure.
 *
 * @throws {RangeError} for sizes that no kernel can have
 */
export function tunedKernels(context: PlanContext, tuning: Tuning, entries: Entries = "f32"): readonly Kernel[] {
  checkTuning("plan e07", tuning);
  const { subgroupSize } = context.device;
  if (tuning.subgroupSize !== 0 && tuning.subgroupSize !== subgroupSize) {
    refuse("plan e07", `subgroups of this device have ${subgroupSize} invocations`, JSON.stringify(tuning));
  }
  return fits(context, tuning, entries) && tilePays(context.config, tilingOf(tuning).chunk)
    ? kernelsAt(context, tuning, entries)
    : kernelsOf(E06, context);
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
  change: "large tiles with ranks in registers; sizes chosen per device and shape",
  kernels: withList(
    [assignFirst, scoreTiles(PORTABLE, false)],
    (weights) => codeList({ tiling: tilingOf(PORTABLE), invocations: 256, subgroupSize: 0, weights }),
    true,
  ),
  kernelsFor: (context) => tunedKernels(context, defaultTuning(context)),
};

/** A pipeline with sizes; `kernelsFor` takes them. */
export function tunablePipeline(
  def: GpuPipelineDef,
  kernelsFor: (context: PlanContext, tuning: Tuning) => readonly Kernel[],
): Pipeline {
  return {
    ...gpuPipeline(def),
    tuned: (tuning) => ({
      ...gpuPipeline({
        ...def,
        kernelsFor: (context) => kernelsFor(context, { ...defaultTuning(context), ...tuning }),
      }),
      tuning,
    }),
  };
}

/** The tuned step. */
export const e07: Pipeline = tunablePipeline(E07, tunedKernels);
