/**
 * assign_many: codes of many new keys at once, four per word. See `assign_many.wgsl`.
 *
 * @module
 */

import { type Kernel, layerOverrides } from "../gpu/kernel.ts";
import { codesMany, type LayerShape, subWidth } from "../shape.ts";
import { assignPacked } from "./assign_packed.ts";

/** Invocations per workgroup: keys that it codes. */
const INVOCATIONS = 128;

/** Columns of centroids in workgroup memory at a time. */
const CHUNK_COLUMNS = 2048;

/** Centroids in workgroup memory at a time; each has whole blocks of 16 columns. */
function chunkOf(shape: LayerShape): number {
  return Math.max(1, Math.min(shape.centroids, Math.floor(CHUNK_COLUMNS / paddedWidth(shape))));
}

function paddedWidth(shape: LayerShape): number {
  return Math.ceil(subWidth(shape) / 16) * 16;
}

/** Codes the step's new keys where they are many. */
export const assignMany: Kernel = {
  ...assignPacked,
  name: "assign_many",
  wgsl: ["layer/layer.wgsl", "layer/columns.wgsl", "quantize/nearest.wgsl", "quantize/assign_many.wgsl"],
  plan(shape) {
    const chunk = chunkOf(shape);
    return {
      overrides: { ...layerOverrides(shape), WG: INVOCATIONS, CHUNK: chunk },
      invocations: INVOCATIONS,
      workgroupBytes: 4 * chunk * paddedWidth(shape) + Math.ceil(chunk / 4) * 16 + 4 * INVOCATIONS,
    };
  },
  work(shape, step) {
    if (!codesMany(shape, step)) return { workgroups: 0, bytesMoved: 0 };
    const groups = shape.batch * shape.kvHeads * shape.subvectors;
    const firstWord = Math.floor((step.nCoded - step.nNew) / 4);
    const tiles = Math.ceil((Math.ceil(step.nCoded / 4) - firstWord) / (INVOCATIONS / 4));
    const centroids = shape.centroids * subWidth(shape) * 4;
    return {
      workgroups: groups * tiles,
      bytesMoved: groups * (step.nNew * (subWidth(shape) * 4 + 1) + tiles * centroids),
    };
  },
};
