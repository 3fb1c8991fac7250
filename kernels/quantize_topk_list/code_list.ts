/**
 * code_list: lists of candidates and codes of the new keys in one dispatch. See `code_list.wgsl`.
 *
 * @module
 */

import { type Kernel, reads, writes } from "../gpu/kernel.ts";
import { centroids, newKeys, phi } from "../layer/buffers.ts";
import { assignPacked, packedCodesBuffer } from "../quantize/assign_packed.ts";
import { nBeside } from "../shape.ts";
import { rowsBytes, rowsPart } from "../topk/scan.ts";
import { mergeList, type MergeListOptions } from "../topk_list/merge_list.ts";

/** Codes the step's new keys where {@linkcode codeList} cannot. */
export const assignFirst: Kernel = {
  ...assignPacked,
  work: (shape, step) => nBeside(step) > 0 ? { workgroups: 0, bytesMoved: 0 } : assignPacked.work(shape, step),
};

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
      "quantize/nearest.wgsl",
      "quantize/distance_part.wgsl",
      "quantize/nearest_rows.wgsl",
      "quantize/code_word.wgsl",
      "quantize_topk_list/code_list.wgsl",
    ],
    buffers: [...lists, reads(newKeys), reads(centroids), reads(phi), writes(packedCodesBuffer), ...weights],
    plan(shape) {
      const plan = merge.plan(shape);
      return { ...plan, workgroupBytes: plan.workgroupBytes + rowsBytes(options) + 48 };
    },
    work(shape, step) {
      const list = merge.work(shape, step);
      if (nBeside(step) === 0) return list;
      const coding = assignPacked.work(shape, step);
      return {
        workgroups: list.workgroups + coding.workgroups,
        bytesMoved: list.bytesMoved + coding.bytesMoved,
      };
    },
    twin(shape, step, buffers) {
      if (nBeside(step) > 0) assignPacked.twin(shape, step, buffers);
      merge.twin(shape, step, buffers);
    },
  };
}
