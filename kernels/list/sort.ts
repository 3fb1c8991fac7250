/**
 * sort: lists in ascending order. See `sort.wgsl`.
 *
 * @module
 */

import { type Kernel, plainPlan, writes } from "../gpu/kernel.ts";
import { indices } from "../layer/buffers.ts";
import { nLists } from "../shape.ts";

const INVOCATIONS = 256;

/** Sorts every list by token. */
export const sort: Kernel = {
  name: "sort",
  wgsl: ["layer/layer.wgsl", "topk/bitonic.wgsl", "list/sort.wgsl"],
  buffers: [writes(indices)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const lists = nLists(shape, step);
    return { workgroups: lists, bytesMoved: lists * step.listStride * 16 };
  },
  twin(shape, step, { indices }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      const at = list * step.listStride;
      const length = step.rows[list % step.rows.length].listLength;
      indices.subarray(at, at + length).sort();
    }
  },
};
