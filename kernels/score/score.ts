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

/**
 * What scores are, in plain TypeScript, for every kernel that computes them from codes.
 *
 * @param keptAs from all entries of a list's table, f32 `[M, C]`: what each is kept as; default: as it is
 */
export function scoreTwin(
  shape: LayerShape,
  step: StepShape,
  { query, centroids, scores }: HostBuffers,
  codeAt: (row: number, i: number) => number,
  keptAs: (table: Float32Array) => (entry: number) => number = () => (entry) => entry,
): void {
  const d = subWidth(shape), width = centroidWidth(shape), { subvectors: M, centroids: C } = shape;
  const table = new Float64Array(M * C);
  for (let list = 0; list < nLists(shape, step); list++) {
    const kv = kvOfList(shape, step, list);
    for (let e = 0; e < M * C; e++) {
      const at = (kv * M * C + e) * width, q = (list * M + Math.floor(e / C)) * d;
      table[e] = 0;
      for (let j = 0; j < d; j++) table[e] += query[q + j] * centroids[at + j];
    }
    const kept = table.map(keptAs(Float32Array.from(table)));
    for (let i = 0; i < step.nCoded; i++) {
      let score = 0;
      for (let m = 0; m < M; m++) score += kept[m * C + codeAt(kv * M + m, i)];
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
