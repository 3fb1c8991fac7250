/**
 * mask: ranks of candidates, 0 for the rest. See `mask.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { scores } from "../score/sum.ts";
import { needsScores, nLists } from "../shape.ts";
import { NO_CANDIDATE, rankOf } from "./rank.ts";

/** u32 `[B, H, rows, codedStride]`: ranks, 0 where there is no candidate */
export const ranks: BufferDef = {
  name: "ranks",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.codedStride,
};

const INVOCATIONS = 256;

/** Turns scores into ranks and drops coded tokens that are in sink or window. */
export const mask: Kernel = {
  name: "mask",
  wgsl: ["layer/layer.wgsl", "topk/rank.wgsl", "topk/mask.wgsl"],
  buffers: [reads(scores), writes(ranks)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = needsScores(step) ? nLists(shape, step) * step.nCoded : 0;
    return perElement(elements, INVOCATIONS, elements * 8);
  },
  twin(shape, step, { scores, ranks }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      const { candBegin, candEnd } = step.rows[list % step.rows.length];
      for (let i = 0; i < step.nCoded; i++) {
        const at = list * step.codedStride + i;
        ranks[at] = i >= candBegin && i < candEnd ? rankOf(scores[at]) : NO_CANDIDATE;
      }
    }
  },
};
