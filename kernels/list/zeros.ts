/**
 * zeros: clears the dense weights. See `zeros.wgsl`.
 *
 * @module
 */

import { type Kernel, perElement, plainPlan, writes } from "../gpu/kernel.ts";
import { weights } from "../layer/buffers.ts";
import { nLists } from "../shape.ts";

const INVOCATIONS = 256;

/** Sets every weight to 0. */
export const zeros: Kernel = {
  name: "zeros",
  wgsl: ["layer/layer.wgsl", "list/zeros.wgsl"],
  buffers: [writes(weights)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = nLists(shape, step) * step.weightStride;
    return perElement(elements, INVOCATIONS, elements * 4);
  },
  twin(shape, step, { weights }) {
    weights.fill(0, 0, nLists(shape, step) * step.weightStride);
  },
};
