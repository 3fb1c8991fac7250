/**
 * concat: sink, heavy and window tokens in one list. See `concat.wgsl`.
 *
 * @module
 */

import { type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { indices, lengths } from "../layer/buffers.ts";
import { heavy } from "./offset.ts";
import { nLists } from "../shape.ts";

const INVOCATIONS = 256;

/** Joins the parts of every list and writes its length. */
export const concat: Kernel = {
  name: "concat",
  wgsl: ["layer/layer.wgsl", "list/concat.wgsl"],
  buffers: [reads(heavy), writes(indices), writes(lengths)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = nLists(shape, step) * step.listStride;
    return perElement(elements, INVOCATIONS, elements * 8);
  },
  twin(shape, step, { heavy, indices, lengths }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      const row = step.rows[list % step.rows.length];
      const sink = Array.from({ length: row.nSink }, (_, j) => j);
      const picked = heavy.subarray(list * step.heavyStride, list * step.heavyStride + row.nHeavy);
      const window = Array.from({ length: row.nTokens - row.windowBegin }, (_, j) => row.windowBegin + j);
      indices.set([...sink, ...picked, ...window], list * step.listStride);
      lengths[list] = row.listLength;
    }
  },
};
