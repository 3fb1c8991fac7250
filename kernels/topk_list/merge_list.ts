/**
 * merge_list: the best of the tiles' candidates between sink and window, with weights. See `merge_list.wgsl`.
 *
 * @module
 */

import { type Kernel, layerOverrides, reads, writes } from "../gpu/kernel.ts";
import { indices, lengths, weights } from "../layer/buffers.ts";
import {
  candidateIx,
  candidateRanks,
  keptPerTile,
  nTiles,
  tilesStride,
  type Tiling,
  tilingOverrides,
} from "../score_topk/candidates.ts";
import { nLists } from "../shape.ts";
import { narrowBytes, narrowParts, type Scan, scanOverrides } from "../topk/scan.ts";

/** What can be chosen for merge_list. */
export interface MergeListOptions extends Scan {
  /** How candidates lie. */
  readonly tiling: Tiling;
  /** Whether dense weights are written. */
  readonly weights: boolean;
}

/** As many members of a small bin as are compared each with each: MOST_MEMBERS of `make_list.wgsl`. */
export const MOST_MEMBERS = 22;

/** Bytes of workgroup memory for them: rank and position, order, and how many; variables are rounded up to 16. */
const MEMBER_BYTES = MOST_MEMBERS * 8 + Math.ceil(MOST_MEMBERS / 4) * 16 + 16;

/** Bytes of workgroup memory that making a list takes. */
export function listBytes(scan: Scan): number {
  return narrowBytes(scan) + MEMBER_BYTES + 32;
}

/** Makes lists of candidates, one workgroup per list. */
export function mergeList(options: MergeListOptions): Kernel {
  const { tiling, invocations } = options;
  return {
    name: "merge_list",
    wgsl: [
      "layer/layer.wgsl",
      ...narrowParts(options),
      "score_topk/tiles.wgsl",
      options.weights ? "topk_list/weights_on.wgsl" : "topk_list/weights_off.wgsl",
      "topk_list/tile_fours.wgsl",
      "topk_list/make_list.wgsl",
      "topk_list/merge_list.wgsl",
    ],
    buffers: [
      reads(candidateRanks(tiling)),
      reads(candidateIx(tiling)),
      writes(indices),
      writes(lengths),
      ...(options.weights ? [{ ...writes(weights), binding: 9 }] : []),
    ],
    plan: (shape) => ({
      overrides: { ...layerOverrides(shape), ...scanOverrides(options), ...tilingOverrides(tiling) },
      invocations,
      workgroupBytes: listBytes(options),
    }),
    work(shape, step) {
      const lists = nLists(shape, step);
      const ranks = step.rows.some((row) => row.nHeavy > 0)
        ? nTiles(tiling, shape, step) * keptPerTile(tiling, step)
        : 0;
      const longest = Math.max(0, ...step.rows.map((row) => row.listLength));
      const each = ranks * 4 + step.heavyStride * 4 + longest * (options.weights ? 16 : 4);
      return { workgroups: lists, bytesMoved: lists * each };
    },
    twin(shape, step, { candidateRanks, candidateIx, indices, lengths, weights }) {
      const entries = nTiles(tiling, shape, step) * keptPerTile(tiling, step);
      for (let list = 0; list < nLists(shape, step); list++) {
        const at = list * step.listStride, row = step.rows[list % step.rows.length];
        const weightsOf = options.weights
          ? weights.subarray(list * step.weightStride, (list + 1) * step.weightStride)
          : new Float32Array(0);
        if (step.clearsPrevious) { for (let j = 0; j < lengths[list]; j++) weightsOf[indices[at + j]] = 0; }
        const first = list * tilesStride(tiling, shape, step);
        const rank = (entry: number) => candidateRanks[first + entry];
        const order = Array.from({ length: row.nHeavy > 0 ? entries : 0 }, (_, entry) => entry)
          .sort((a, b) => rank(b) - rank(a) || a - b);
        const heavy = order.slice(0, row.nHeavy).map((entry) => step.initOffset + candidateIx[first + entry]);
        const tokens = [
          ...Array.from({ length: row.nSink }, (_, j) => j),
          ...heavy.sort((a, b) => a - b),
          ...Array.from({ length: row.nTokens - row.windowBegin }, (_, j) => row.windowBegin + j),
        ];
        indices.set(tokens, at);
        lengths[list] = row.listLength;
        for (const token of tokens) weightsOf[token] = 1;
      }
    },
  };
}
