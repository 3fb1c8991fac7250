/**
 * score: scores straight from codes and centroids. See `score.wgsl`.
 *
 * @module
 */

import { type HostBuffers, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { centroids, codes, query } from "../layer/buffers.ts";
import { centroidWidth, kvOfList, type LayerShape, needsScores, nLists, type StepShape, subWidth } from "../shape.ts";
import { scores } from "./sum.ts";

const INVOCATIONS = 256;

/** What scores are, in plain TypeScript, for every kernel that computes them from codes. */
export function scoreTwin(
  shape: LayerShape,
  step: StepShape,
  { query, centroids, scores }: HostBuffers,
  codeAt: (row: number, i: number) => number,
  entryOf: (value: number) => number = (value) => value,
): void {
  const d = subWidth(shape), width = centroidWidth(shape);
  for (let list = 0; list < nLists(shape, step); list++) {
    for (let i = 0; i < step.nCoded; i++) {
      let score = 0;
      for (let m = 0; m < shape.subvectors; m++) {
        const group = kvOfList(shape, step, list) * shape.subvectors + m;
        const at = (group * shape.centroids + codeAt(group, i)) * width;
        let entry = 0;
        for (let j = 0; j < d; j++) entry += query[(list * shape.subvectors + m) * d + j] * centroids[at + j];
        score += entryOf(entry);
      }
      scores[list * step.codedStride + i] = score;
    }
  }
}

/** Scores with one code per word. */
export const score: Kernel = {
  name: "score",
  wgsl: ["layer/layer.wgsl", "quantize/codes_word.wgsl", "layer/columns.wgsl", "score/dot.wgsl", "score/score.wgsl"],
  buffers: [reads(query), reads(centroids), reads(codes), writes(scores)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = needsScores(step) ? nLists(shape, step) * step.nCoded : 0;
    const bytes = shape.subvectors * 4 + 4 + 2 * shape.headWidth * 4;
    return perElement(elements, INVOCATIONS, elements * bytes);
  },
  twin: (shape, step, buffers) =>
    scoreTwin(shape, step, buffers, (row, i) => buffers.codes[row * step.codedStride + i]),
};
