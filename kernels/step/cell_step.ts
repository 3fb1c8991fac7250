/**
 * cell_step: a whole step in one dispatch, by cells. See `cell_step.wgsl`.
 *
 * @module
 */

import { type Kernel, reads, writes } from "../gpu/kernel.ts";
import { newKeys, phi } from "../layer/buffers.ts";
import { assignPacked, packedCodesBuffer } from "../quantize/assign_packed.ts";
import { CODING_BYTES, CODING_PARTS, workBeside } from "../quantize_topk_list/code_list.ts";
import { cellList, type CellListOptions } from "../score_topk_list/cell_list.ts";
import { nBeside } from "../shape.ts";

/** Makes lists by ranking cells and codes the new keys, a workgroup per list or word. */
export function cellStep(options: CellListOptions): Kernel {
  const list = cellList(options);
  return {
    name: "cell_step",
    wgsl: [
      ...list.wgsl.slice(0, -1),
      ...CODING_PARTS,
      "step/cell_step.wgsl",
    ],
    buffers: [
      ...list.buffers.slice(0, 6).map((use) => use.name === packedCodesBuffer.name ? writes(use) : use),
      reads(newKeys),
      reads(phi),
      ...list.buffers.slice(6),
    ],
    plan(shape) {
      const plan = list.plan(shape);
      return { ...plan, workgroupBytes: plan.workgroupBytes + CODING_BYTES };
    },
    work: (shape, step) => workBeside(list, shape, step),
    twin(shape, step, buffers) {
      list.twin(shape, step, buffers);
      if (nBeside(step) > 0) assignPacked.twin(shape, step, buffers);
    },
  };
}
