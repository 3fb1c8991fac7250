/**
 * concat: sink, heavy and window tokens in one list. See `concat.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { lengths } from "../layer/buffers.ts";
import { heavy } from "./offset.ts";
import { nLists } from "../shape.ts";

/** u32 `[B, H, rows, listStride]`: sink, heavy and window tokens in this order */
export const unsorted: BufferDef = {
  name: "unsorted",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.listStride,
};

const INVOCATIONS = 256;

/** Joins the parts of every list and writes its length. */
export const concat: Kernel = {
  name: "concat",
  wgsl: ["layer/layer.wgsl", "list/concat.wgsl"],
  buffers: [reads(heavy), writes(unsorted), writes(lengths)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = nLists(shape, step) * step.listStride;
    return perElement(elements, INVOCATIONS, elements * 8);
  },
  twin(shape, step, { heavy, unsorted, lengths }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      const row = step.rows[list % step.rows.length];
      const sink = Array.from({ length: row.nSink }, (_, j) => j);
      const picked = heavy.subarray(list * step.heavyStride, list * step.heavyStride + row.nHeavy);
      const window = Array.from({ length: row.nTokens - row.windowBegin }, (_, j) => row.windowBegin + j);
      unsorted.set([...sink, ...picked, ...window], list * step.listStride);
      lengths[list] = row.listLength;
    }
  },
};
