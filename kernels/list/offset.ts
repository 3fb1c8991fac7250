/**
 * offset: positions among coded tokens become tokens. See `offset.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { topkIx } from "../topk/topk.ts";
import { needsScores, nLists } from "../shape.ts";

/** u32 `[B, H, rows, heavyStride]`: heavy tokens, best first */
export const heavy: BufferDef = {
  name: "heavy",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.heavyStride,
};

const INVOCATIONS = 256;

/** Adds the first coded token's number. */
export const offset: Kernel = {
  name: "offset",
  wgsl: ["layer/layer.wgsl", "list/offset.wgsl"],
  buffers: [reads(topkIx), writes(heavy)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = needsScores(step) ? nLists(shape, step) * step.heavyStride : 0;
    return perElement(elements, INVOCATIONS, elements * 8);
  },
  twin(shape, step, { topkIx, heavy }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      for (let j = 0; j < step.rows[list % step.rows.length].nHeavy; j++) {
        heavy[list * step.heavyStride + j] = topkIx[list * step.heavyStride + j] + step.initOffset;
      }
    }
  },
};
