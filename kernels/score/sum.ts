/**
 * sum: scores from gathered entries. See `sum.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { gathered } from "./gather.ts";
import { needsScores, nLists } from "../shape.ts";

/** f32 `[B, H, rows, codedStride]`: PQ scores */
export const scores: BufferDef = {
  name: "scores",
  type: "f32",
  elements: (shape, step) => nLists(shape, step) * step.codedStride,
};

const INVOCATIONS = 256;

/** Adds the entries of a token over its subvectors, in order. */
export const sum: Kernel = {
  name: "sum",
  wgsl: ["layer/layer.wgsl", "score/sum.wgsl"],
  buffers: [reads(gathered), writes(scores)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = needsScores(step) ? nLists(shape, step) * step.nCoded : 0;
    return perElement(elements, INVOCATIONS, elements * 4 * (shape.subvectors + 1));
  },
  twin(shape, step, { gathered, scores }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      for (let i = 0; i < step.nCoded; i++) {
        let score = gathered[list * shape.subvectors * step.codedStride + i];
        for (let m = 1; m < shape.subvectors; m++) {
          score = Math.fround(score + gathered[(list * shape.subvectors + m) * step.codedStride + i]);
        }
        scores[list * step.codedStride + i] = score;
      }
    }
  },
};
