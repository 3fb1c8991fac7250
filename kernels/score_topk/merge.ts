/**
 * merge: the best of the tiles' candidates. See `merge.wgsl`.
 *
 * @module
 */

import { type Kernel, reads, writes } from "../gpu/kernel.ts";
import { needsScores, nLists } from "../shape.ts";
import { topk, topkIx, topkRanks } from "../topk/topk.ts";
import {
  candidateIx,
  candidateRanks,
  keptPerTile,
  nTiles,
  tilesStride,
  TILING,
  tilingOverrides,
} from "./candidates.ts";

/** Picks the nHeavy best candidates of every list, best first. */
export const merge: Kernel = {
  name: "merge",
  wgsl: [
    "layer/layer.wgsl",
    "topk/rank.wgsl",
    "topk/bitonic.wgsl",
    "topk/scan.wgsl",
    "topk/scan_pair.wgsl",
    "score_topk/tiles.wgsl",
    "topk/pick_best.wgsl",
    "score_topk/merge.wgsl",
  ],
  buffers: [reads(candidateRanks(TILING)), reads(candidateIx(TILING)), writes(topkIx), writes(topkRanks)],
  plan(shape) {
    const plan = topk.plan(shape);
    return { ...plan, overrides: { ...plan.overrides, ...tilingOverrides(TILING) } };
  },
  work(shape, step) {
    const lists = needsScores(step) ? nLists(shape, step) : 0;
    const entries = nTiles(TILING, shape, step) * keptPerTile(TILING, step);
    return { workgroups: lists, bytesMoved: lists * (6 * entries * 4 + step.heavyStride * 16) };
  },
  twin(shape, step, { candidateRanks, candidateIx, topkIx, topkRanks }) {
    const entries = nTiles(TILING, shape, step) * keptPerTile(TILING, step);
    for (let list = 0; list < nLists(shape, step); list++) {
      const first = list * tilesStride(TILING, shape, step);
      const rank = (entry: number) => candidateRanks[first + entry];
      const order = Array.from({ length: entries }, (_, entry) => entry).sort((a, b) => rank(b) - rank(a) || a - b);
      const best = order.slice(0, step.rows[list % step.rows.length].nHeavy);
      topkIx.set(best.map((entry) => candidateIx[first + entry]), list * step.heavyStride);
      topkRanks.set(best.map(rank), list * step.heavyStride);
    }
  },
};
