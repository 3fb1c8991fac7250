/**
 * scatter: weight 1 at every listed token. See `scatter.wgsl`.
 *
 * @module
 */

import { type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { indices, weights } from "../layer/buffers.ts";
import { nLists } from "../shape.ts";

const INVOCATIONS = 256;

/** Sets the weights of listed tokens to 1. */
export const scatter: Kernel = {
  name: "scatter",
  wgsl: ["layer/layer.wgsl", "list/scatter.wgsl"],
  buffers: [reads(indices), writes(weights)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = nLists(shape, step) * step.listStride;
    return perElement(elements, INVOCATIONS, elements * 8);
  },
  twin(shape, step, { indices, weights }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      for (let j = 0; j < step.rows[list % step.rows.length].listLength; j++) {
        weights[list * step.weightStride + indices[list * step.listStride + j]] = 1;
      }
    }
  },
};
