/**
 * e08 cells: ranks the C^M combinations of codes, not the keys. From e07.
 *
 * What changes: all keys of a cell (combination of codes) have one score, so a list needs no more scores than there are
 * cells, 4,096 at M 2 and 6 bits, however many tokens are cached. Postings say which tokens are in each cell; the best cells'
 * tokens are read from there. New tokens join a tail that is ranked one by one; when it has 1,000, three kernels make
 * the postings anew. Everything is one dispatch of a workgroup per list, as nothing is left to share out: no
 * candidates are written and read again.
 *
 * Predicted (seed configuration, NVIDIA H200): 3.7 µs for an empty pass, 1.7 less than e07 for the dispatch that is gone,
 * and code_list's time without its reading of candidates: 12 µs, at any number of tokens.
 * Measured (GPU pass, `bench/results/`): 11.9 µs after 18.3; 12.1 after 26.2 at 131,072 tokens, 11.9 after 30.7 at 262,144,
 * 11.7 after 76.8 at 1,048,576 (weights off); 3.8 per layer where 32 layers share a pass, after 10.5; 13.0 on cold caches, 18.0
 * at 128 heads. From the first version, 13.4, on: a table filled without idle quarters, and old lists cleared later, 0.4, no barrier for storage 0.6
 * (an invocation replaces the list entries that it read, and clears a weight only if nothing sets it), order by counting lower
 * tokens in place of a bitmap 0.2, loops and searches written out 0.5. A software rasterizer codes in a dispatch of its own.
 *
 * What it costs: four bytes per token and KV head for the postings, beside M for the codes, and C^M words per 4,096 tokens
 * (16 such at most) while they are made. A step that makes them anew takes 287 µs at 32,000 tokens, 667 at 131,072 and 4,767
 * at 1,048,576: one in a thousand steps, so 0.3, 0.7 and 4.8 µs per step. At K 512 ordering takes nearly all that
 * is saved (23.0 after 25.1 µs); beyond, the plan keeps e07. Where two cells tie at the cut (equal centroids, a query of
 * zeros), every list goes over all of its candidates with one workgroup, and the time does grow with them.
 *
 * A shortlist to re-rank (`refine`) needs neither order nor another dispatch: the workgroup that took it reads its keys, ranks
 * them exactly and chooses. Measured: R 4 adds 5.8 µs with f16 keys, where a dispatch of its own, after the list of a
 * shortlist in order, added 20.
 *
 * Where there are more than 4,096 cells, K is above 512 or a ratio, the sink is a ratio, a shortlist does not fit workgroup
 * memory, or a device binds less memory than the postings need, the plan keeps e07's kernels.
 *
 * @module
 */

import { assignFirst } from "../../kernels/quantize_topk_list/code_list.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { LEAST_INVOCATIONS, MOST_CELLS, nCells, POSTING_KERNELS, postings } from "../../kernels/postings/postings.ts";
import type { LayerShape, StepShape } from "../../kernels/shape.ts";
import { assignMany } from "../../kernels/quantize/assign_many.ts";
import { assignPacked } from "../../kernels/quantize/assign_packed.ts";
import { cellList, MOST_HEAVY } from "../../kernels/score_topk_list/cell_list.ts";
import { cellStep } from "../../kernels/step/cell_step.ts";
import { poolsScores, refuse } from "../config.ts";
import { checkTuning, type Tuning } from "../tuning.ts";
import { withList } from "./e05_fused_list.ts";
import {
  defaultKernels as defaultTiles,
  E07,
  e07,
  tunedKernels as tunedTiles,
  tunedOrDefaultKernels,
} from "./e07_tuned.ts";
import { gpuPipeline, type GpuPipelineDef, kernelsOf } from "./gpu_layer.ts";
import type { Pipeline, PlanContext } from "./pipeline.ts";

const ACTION = "plan e08 with these sizes";

/** A cache of this many tokens must work on every device that can hold its codes. */
const MANY_TOKENS = 2 ** 20;

/** Whether a step by cells exists for a config, whatever the device. */
function hasCells(config: PlanContext["config"]): boolean {
  const { shape, sinkSize, heavySize } = config;
  return !poolsScores(config) && nCells(shape) <= MOST_CELLS && typeof sinkSize === "number" &&
    typeof heavySize === "number" && heavySize <= MOST_HEAVY;
}

function cellKernels({ config, device, weights }: PlanContext, tuning: Tuning): readonly Kernel[] {
  const { refine, refineElements: elements } = config, mostHeavy = config.heavySize as number;
  const reRanked = refine > 1 ? { elements, mostShort: refine * mostHeavy } : undefined;
  const options = { mostHeavy, reRanked, invocations: tuning.listInvocations, subgroupSize: tuning.subgroupSize };
  // A software device has nothing idle beside the lists, and codes faster in small workgroups.
  const codesBeside = !device.info.isSoftware &&
    cellStep({ ...options, weights }).buffers.length <= device.limits.maxStorageBuffersPerShaderStage;
  return codesBeside
    ? withList([assignMany, assignFirst, ...POSTING_KERNELS], () => cellStep({ ...options, weights }), weights)
    : withList([assignMany, assignPacked, ...POSTING_KERNELS], () => cellList({ ...options, weights }), weights);
}

function fits(context: PlanContext, tuning: Tuning): boolean {
  const { limits } = context.device;
  const most = Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX);
  return tuning.listInvocations >= LEAST_INVOCATIONS && cellKernels(context, tuning).every((kernel) => {
    const { workgroupBytes, invocations } = kernel.plan(context.config.shape);
    return workgroupBytes <= limits.maxComputeWorkgroupStorageSize && invocations <= most;
  });
}

/** The sizes that do well without measuring: the largest workgroups, smaller ones in software. */
function defaultTuning(context: PlanContext): Tuning {
  const tiles = e07.defaultTuning!(context);
  if (!hasCells(context.config)) return tiles;
  const at = (listInvocations: number): Tuning => ({ ...tiles, listInvocations });
  const sizes = context.device.info.isSoftware ? [512, LEAST_INVOCATIONS] : [1024, 512, LEAST_INVOCATIONS];
  return sizes.map(at).find((tuning) => fits(context, tuning)) ?? tiles;
}

/** Whether a step goes by cells, as long as a binding holds the postings. */
function takesCells(context: PlanContext): boolean {
  return hasCells(context.config) && fits(context, defaultTuning(context));
}

/** A kernel that finds work, and takes memory, only in steps that it applies to. */
function onlyIf(kernel: Kernel, applies: (shape: LayerShape, step: StepShape) => boolean): Kernel {
  return {
    ...kernel,
    buffers: kernel.buffers.map((use) => ({
      ...use,
      elements: (shape, step) => applies(shape, step) ? use.elements(shape, step) : 0,
    })),
    work: (shape, step) => applies(shape, step) ? kernel.work(shape, step) : { workgroups: 0, bytesMoved: 0 },
  };
}

/** Step by cells while a binding holds the postings, by tiles beyond. */
function withTiles(
  context: PlanContext,
  tuning: Tuning,
  tiles: NonNullable<GpuPipelineDef["kernelsFor"]>,
): readonly Kernel[] {
  const { config, device } = context, cells = cellKernels(context, tuning);
  const isSmall = (shape: LayerShape, step: Pick<StepShape, "codedStride">) =>
    4 * postings.elements(shape, step as StepShape) <= device.limits.maxStorageBufferBindingSize;
  if (isSmall(config.shape, { codedStride: MANY_TOKENS })) return cells;
  return [
    ...cells.map((kernel) => onlyIf(kernel, isSmall)),
    ...kernelsOf({ ...E07, kernelsFor: tiles }, context).map((kernel) =>
      onlyIf(kernel, (shape, step) => !isSmall(shape, step))
    ),
  ];
}

/** The iteration as data, to derive others from. */
export const E08: GpuPipelineDef = {
  ...E07,
  id: "e08",
  title: "cells",
  change: "ranks the C^M combinations of codes, not the keys: one dispatch, whatever the number of tokens",
  kernels: withList(
    [assignMany, assignFirst, ...POSTING_KERNELS],
    (weights) => cellStep({ mostHeavy: 128, invocations: LEAST_INVOCATIONS, subgroupSize: 0, weights }),
    true,
  ),
  kernelsFor: (context) =>
    takesCells(context) ? withTiles(context, defaultTuning(context), defaultTiles) : defaultTiles(context),
  reRanks: takesCells,
};

function tunedKernels(context: PlanContext, sizes: Partial<Tuning>): readonly Kernel[] {
  const tuning = { ...defaultTuning(context), ...sizes };
  if (!takesCells(context)) return tunedTiles(context, tuning);
  checkTuning(ACTION, tuning);
  const { subgroupSize } = context.device;
  if (tuning.subgroupSize !== 0 && tuning.subgroupSize !== subgroupSize) {
    refuse(ACTION, `subgroups of this device have ${subgroupSize} invocations`, JSON.stringify(tuning));
  }
  if (tuning.listInvocations < LEAST_INVOCATIONS) {
    refuse(
      ACTION,
      `listInvocations must be at least ${LEAST_INVOCATIONS}`,
      `listInvocations is ${tuning.listInvocations}`,
    );
  }
  if (!fits(context, tuning)) {
    const { limits } = context.device;
    const bytes = Math.max(
      ...cellKernels(context, tuning).map((kernel) => kernel.plan(context.config.shape).workgroupBytes),
    );
    refuse(
      ACTION,
      `a workgroup must fit the device, which has ${limits.maxComputeInvocationsPerWorkgroup} invocations and ` +
        `${limits.maxComputeWorkgroupStorageSize} bytes of workgroup memory`,
      `listInvocations is ${tuning.listInvocations}, and they need ${bytes} bytes`,
    );
  }
  // Beyond the postings, sizes of tiles matter; those that cannot be had there are no reason to refuse the cells.
  return withTiles(context, tuning, (at) => tunedOrDefaultKernels(at, tuning));
}

/** The step by cells. */
export const e08: Pipeline = {
  ...gpuPipeline(E08),
  tuned: (tuning) => ({ ...gpuPipeline({ ...E08, kernelsFor: (context) => tunedKernels(context, tuning) }), tuning }),
  defaultTuning,
  tunes: (context) => takesCells(context) ? ["listInvocations", "subgroupSize"] : e07.tunes!(context),
};
