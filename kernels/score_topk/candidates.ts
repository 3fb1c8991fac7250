/**
 * candidates: the best tokens of every tile, scores never stored. See `candidates.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, layerOverrides, reads, writes } from "../gpu/kernel.ts";
import { centroids, query } from "../layer/buffers.ts";
import { packedCodesBuffer } from "../quantize/assign_packed.ts";
import { packedTwin, tableBytes } from "../score/score_lookup.ts";
import { type LayerShape, needsScores, nLists, type StepShape } from "../shape.ts";
import { rankOf } from "../topk/rank.ts";

/** One invocation per digit of the radix select. */
const INVOCATIONS = 256;

/** Tokens per tile: a multiple of 4 · 256. */
export const TILE = 2048;

/** Candidates that a tile keeps per list. */
export function keptPerTile(step: StepShape): number {
  return Math.min(step.heavyStride, TILE);
}

/** Entries from one list's candidates to the next. */
export function tilesStride(step: StepShape): number {
  return Math.ceil(step.codedStride / TILE) * keptPerTile(step);
}

/** u32 `[B, H, rows, tiles, kept]`: ranks, 0 where a tile has fewer candidates */
export const candidateRanks: BufferDef = {
  name: "candidateRanks",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * tilesStride(step),
};

/** u32 `[B, H, rows, tiles, kept]`: positions among the coded tokens, ascending */
export const candidateIx: BufferDef = { ...candidateRanks, name: "candidateIx" };

/** Bytes of workgroup memory: the table, the tile's ranks, histogram, scan and choice. */
export function candidatesBytes(shape: LayerShape): number {
  return tableBytes(shape) + TILE * 4 + INVOCATIONS * 4 + INVOCATIONS * 8 + 8;
}

/** Scores a tile and keeps its best candidates. */
export const candidates: Kernel = {
  name: "candidates",
  wgsl: [
    "layer/layer.wgsl",
    "score/dot.wgsl",
    "score/lookup.wgsl",
    "topk/rank.wgsl",
    "topk/scan.wgsl",
    "score_topk/tiles.wgsl",
    "score_topk/candidates.wgsl",
  ],
  buffers: [reads(query), reads(centroids), reads(packedCodesBuffer), writes(candidateRanks), writes(candidateIx)],
  plan: (shape) => ({
    overrides: { ...layerOverrides(shape), WG: INVOCATIONS, TILE },
    invocations: INVOCATIONS,
    workgroupBytes: candidatesBytes(shape),
  }),
  work(shape, step) {
    if (!needsScores(step)) return { workgroups: 0, bytesMoved: 0 };
    const lists = nLists(shape, step), tiles = Math.ceil(step.nCoded / TILE);
    const table = shape.headWidth * (shape.centroids + 1) * 4;
    const perTile = table + keptPerTile(step) * 8;
    return { workgroups: lists * tiles, bytesMoved: lists * (tiles * perTile + step.nCoded * shape.subvectors) };
  },
  twin(shape, step, buffers) {
    const scores = new Float32Array(nLists(shape, step) * step.codedStride);
    packedTwin(shape, step, { ...buffers, scores });
    const kept = keptPerTile(step);
    for (let list = 0; list < nLists(shape, step); list++) {
      const { candBegin, candEnd, nHeavy } = step.rows[list % step.rows.length];
      for (let tile = 0; tile < Math.ceil(step.nCoded / TILE); tile++) {
        const tokens: number[] = [];
        for (let i = Math.max(candBegin, tile * TILE); i < Math.min(candEnd, (tile + 1) * TILE); i++) tokens.push(i);
        const rank = (i: number) => rankOf(scores[list * step.codedStride + i]);
        const best = tokens.sort((a, b) => rank(b) - rank(a) || a - b).slice(0, nHeavy).sort((a, b) => a - b);
        const out = list * tilesStride(step) + tile * kept;
        buffers.candidateRanks.fill(0, out, out + kept);
        buffers.candidateRanks.set(best.map(rank), out);
        buffers.candidateIx.set(best, out);
      }
    }
  },
};
