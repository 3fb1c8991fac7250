/**
 * score_lookup: scores through a table in workgroup memory. See `score_lookup.wgsl`.
 *
 * @module
 */

import { type Kernel, layerOverrides, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { centroids, query } from "../layer/buffers.ts";
import { packedCodesBuffer } from "../quantize/assign_packed.ts";
import { type LayerShape, needsScores, nLists, type StepShape } from "../shape.ts";
import { score, scoreTwin } from "./score.ts";
import { scores } from "./sum.ts";

const INVOCATIONS = 256;

/** A tile of score_lookup. A larger one builds fewer tables, a smaller one fills more cores. */
export interface LookupBlock {
  /** Invocations per workgroup. */
  readonly invocations: number;
  /** Words of four tokens per invocation. */
  readonly words: number;
}

/** 4,096 tokens per tile. */
const BLOCK: LookupBlock = { invocations: INVOCATIONS, words: 4 };

/** Bytes of workgroup memory that the table takes. */
export function tableBytes(shape: LayerShape): number {
  return 4 * shape.subvectors * shape.centroids;
}

/** Scores of packed codes in plain TypeScript. */
export function packedTwin(
  shape: LayerShape,
  step: StepShape,
  buffers: Parameters<Kernel["twin"]>[2],
  keptAs?: Parameters<typeof scoreTwin>[4],
): void {
  const { codes } = buffers;
  const codeAt = (row: number, i: number) => codes[row * step.codedStride / 4 + (i >> 2)] >>> (i & 3) * 8 & 0xff;
  scoreTwin(shape, step, buffers, codeAt, keptAs);
}

/** Scores of packed codes through a table in workgroup memory, by tiles of a given size. */
export function scoreLookupBy({ invocations, words }: LookupBlock): Kernel {
  return {
    name: "score_lookup",
    wgsl: ["layer/layer.wgsl", "layer/columns.wgsl", "score/dot.wgsl", "score/lookup.wgsl", "score/score_lookup.wgsl"],
    buffers: [reads(query), reads(centroids), reads(packedCodesBuffer), writes(scores)],
    plan: (shape) => ({
      overrides: { ...layerOverrides(shape), WG: invocations, WORDS: words },
      invocations,
      workgroupBytes: tableBytes(shape),
    }),
    work(shape, step) {
      if (!needsScores(step)) return { workgroups: 0, bytesMoved: 0 };
      const tiles = Math.ceil(Math.ceil(step.nCoded / 4) / (invocations * words));
      const lists = nLists(shape, step);
      const table = shape.headWidth * (shape.centroids + 1) * 4;
      return { workgroups: lists * tiles, bytesMoved: lists * (tiles * table + step.nCoded * (shape.subvectors + 4)) };
    },
    twin: (shape, step, buffers) => packedTwin(shape, step, buffers),
  };
}

/** Scores of packed codes through a table in workgroup memory. */
export const scoreLookup: Kernel = scoreLookupBy(BLOCK);

/** Scores of packed codes without a table, where the table is larger than workgroup memory. */
export const scorePacked: Kernel = {
  ...score,
  wgsl: ["layer/layer.wgsl", "quantize/codes_packed.wgsl", "layer/columns.wgsl", "score/dot.wgsl", "score/score.wgsl"],
  buffers: [reads(query), reads(centroids), reads(packedCodesBuffer), writes(scores)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const { workgroups } = score.work(shape, step);
    const elements = needsScores(step) ? nLists(shape, step) * step.nCoded : 0;
    return { workgroups, bytesMoved: elements * (shape.subvectors + 4 + 2 * shape.headWidth * 4) };
  },
  twin: (shape, step, buffers) => packedTwin(shape, step, buffers),
};
