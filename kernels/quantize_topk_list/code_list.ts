/**
 * code_list: lists of candidates and codes of the new keys in one dispatch. See `code_list.wgsl`.
 *
 * @module
 */

import { type Kernel, type KernelWork, reads, writes } from "../gpu/kernel.ts";
import { centroids, newKeys, phi } from "../layer/buffers.ts";
import { assignPacked, packedCodesBuffer } from "../quantize/assign_packed.ts";
import { type LayerShape, nBeside, type StepShape } from "../shape.ts";
import { rowsBytes, rowsPart } from "../topk/scan.ts";
import { mergeList, type MergeListOptions } from "../topk_list/merge_list.ts";

/** Codes the step's new keys where {@linkcode codeList} cannot. */
export const assignFirst: Kernel = {
  ...assignPacked,
  work: (shape, step) => nBeside(step) > 0 ? { workgroups: 0, bytesMoved: 0 } : assignPacked.work(shape, step),
};

/** The WGSL parts that code a word of new keys with a large workgroup; `layer/columns.wgsl` and add_rows come before. */
export const CODING_PARTS: readonly string[] = [
  "quantize/nearest.wgsl",
  "quantize/distance_part.wgsl",
  "quantize/nearest_rows.wgsl",
  "quantize/code_word.wgsl",
];

/** Bytes of workgroup memory that they take beside add_rows. */
export const CODING_BYTES = 48;

/** Work of a kernel that makes lists and codes the new keys beside them. */
export function workBeside(list: Kernel, shape: LayerShape, step: StepShape): KernelWork {
  const lists = list.work(shape, step);
  if (nBeside(step) === 0) return lists;
  const coding = assignPacked.work(shape, step);
  return { workgroups: lists.workgroups + coding.workgroups, bytesMoved: lists.bytesMoved + coding.bytesMoved };
}

/** Makes lists of candidates and codes the new keys, a workgroup per list or word. */
export function codeList(options: MergeListOptions): Kernel {
  const merge = mergeList(options);
  const lists = merge.buffers.slice(0, 4), weights = merge.buffers.slice(4);
  return {
    name: "code_list",
    wgsl: [
      ...merge.wgsl.slice(0, -1),
      "layer/columns.wgsl",
      rowsPart(options),
      ...CODING_PARTS,
      "quantize_topk_list/code_list.wgsl",
    ],
    buffers: [...lists, reads(newKeys), reads(centroids), reads(phi), writes(packedCodesBuffer), ...weights],
    plan(shape) {
      const plan = merge.plan(shape);
      return { ...plan, workgroupBytes: plan.workgroupBytes + rowsBytes(options) + CODING_BYTES };
    },
    work: (shape, step) => workBeside(merge, shape, step),
    twin(shape, step, buffers) {
      if (nBeside(step) > 0) assignPacked.twin(shape, step, buffers);
      merge.twin(shape, step, buffers);
    },
  };
}
