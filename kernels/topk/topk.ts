/**
 * topk: the best candidates of every list, best first. See `topk.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { ranks } from "./mask.ts";
import { needsScores, nLists } from "../shape.ts";

/** u32 `[B, H, rows, heavyStride]`: positions among the coded tokens, best first */
export const topkIx: BufferDef = {
  name: "topkIx",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.heavyStride,
};

/** u32 `[B, H, rows, heavyStride]`: their ranks */
export const topkRanks: BufferDef = {
  name: "topkRanks",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.heavyStride,
};

const INVOCATIONS = 256;

/** Picks the nHeavy highest ranks of every list; equal ranks by position, lower first. */
export const topk: Kernel = {
  name: "topk",
  wgsl: [
    "layer/layer.wgsl",
    "topk/rank.wgsl",
    "topk/bitonic.wgsl",
    "topk/scan.wgsl",
    "topk/scan_pair.wgsl",
    "topk/pick_best.wgsl",
    "topk/topk.wgsl",
  ],
  buffers: [reads(ranks), writes(topkIx), writes(topkRanks)],
  plan: (shape) => ({ ...plainPlan(shape, INVOCATIONS), workgroupBytes: 256 * 4 + INVOCATIONS * 8 + 8 }),
  work(shape, step) {
    const lists = needsScores(step) ? nLists(shape, step) : 0;
    // Four digits and the compaction read every rank; the sort is counted as one pass over its pairs.
    return { workgroups: lists, bytesMoved: lists * (5 * step.nCoded * 4 + step.heavyStride * 16) };
  },
  twin(shape, step, { ranks, topkIx, topkRanks }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      const row = ranks.subarray(list * step.codedStride, list * step.codedStride + step.nCoded);
      const order = [...row.keys()].sort((a, b) => row[b] - row[a] || a - b);
      const best = order.slice(0, step.rows[list % step.rows.length].nHeavy);
      topkIx.set(best, list * step.heavyStride);
      topkRanks.set(best.map((i) => row[i]), list * step.heavyStride);
    }
  },
};
