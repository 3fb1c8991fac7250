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

/** How the candidates of tiles lie in memory: twin of `tiles.wgsl`. */
export interface Tiling {
  /** Tokens per chunk. */
  readonly chunk: number;
  /** The most chunks that make a tile. */
  readonly mostChunks: number;
  /** Workgroups that run at once: beyond twice as many, tiles become longer, not more. */
  readonly workgroups: number;
  /** Candidates that a tile may keep beyond the most that a list takes. */
  readonly slack: number;
}

/** The tiles of e04 to e06, which keep exactly the best. */
export const TILING: Tiling = { chunk: TILE, mostChunks: 1, workgroups: 1, slack: 0 };

/** Tiles per list that are long enough: one wave of workgroups, or as many waves as `mostChunks` asks for. */
function longTiles({ workgroups, mostChunks }: Tiling, { batch, heads }: LayerShape, chunks: number): number {
  const wave = Math.max(Math.floor(workgroups / (batch * heads)), 1);
  return Math.ceil(chunks / (mostChunks * wave)) * wave;
}

/** Chunks of a tile: one while all workgroups run at once or nearly so. */
export function chunksPerTile(tiling: Tiling, shape: LayerShape, { nCoded }: StepShape): number {
  const chunks = Math.ceil(nCoded / tiling.chunk);
  if (tiling.mostChunks === 1 || chunks * shape.batch * shape.heads <= 2 * tiling.workgroups) return 1;
  return Math.ceil(chunks / longTiles(tiling, shape, chunks));
}

/** Tokens of a tile. */
export function tileSize(tiling: Tiling, shape: LayerShape, step: StepShape): number {
  return tiling.chunk * chunksPerTile(tiling, shape, step);
}

/** Tiles of a step. */
export function nTiles(tiling: Tiling, shape: LayerShape, step: StepShape): number {
  return Math.ceil(step.nCoded / tileSize(tiling, shape, step));
}

/** Candidates that a tile keeps per list. */
export function keptPerTile(tiling: Tiling, step: StepShape): number {
  return Math.min(Math.ceil((step.heavyStride + tiling.slack) / 4) * 4, tiling.chunk);
}

/** Entries from one list's candidates to the next: as many tiles as there may be at the capacity. */
export function tilesStride(tiling: Tiling, shape: LayerShape, step: StepShape): number {
  const chunks = Math.ceil(step.codedStride / tiling.chunk);
  const short = Math.floor(2 * tiling.workgroups / (shape.batch * shape.heads));
  return Math.min(chunks, Math.max(longTiles(tiling, shape, chunks), short)) * keptPerTile(tiling, step);
}

/** u32 `[B, H, rows, tiles, kept]`: ranks, 0 where a tile has fewer candidates */
export function candidateRanks(tiling: Tiling): BufferDef {
  return {
    name: "candidateRanks",
    type: "u32",
    elements: (shape, step) => nLists(shape, step) * tilesStride(tiling, shape, step),
  };
}

/** u32 `[B, H, rows, tiles, kept]`: positions among the coded tokens, ascending */
export function candidateIx(tiling: Tiling): BufferDef {
  return { ...candidateRanks(tiling), name: "candidateIx" };
}

/** The overrides that `tiles.wgsl` declares. */
export function tilingOverrides({ chunk, mostChunks, workgroups, slack }: Tiling): Record<string, number> {
  return { CHUNK: chunk, MOST_CHUNKS: mostChunks, WORKGROUPS: workgroups, SLACK: slack };
}

/** The best candidates of every tile in plain TypeScript: as many as a list takes, no more. */
export function candidatesTwin(
  tiling: Tiling,
  shape: LayerShape,
  step: StepShape,
  buffers: Parameters<Kernel["twin"]>[2],
  keptAs?: Parameters<typeof packedTwin>[3],
): void {
  const scores = new Float32Array(nLists(shape, step) * step.codedStride);
  packedTwin(shape, step, { ...buffers, scores }, keptAs);
  const kept = keptPerTile(tiling, step), size = tileSize(tiling, shape, step);
  for (let list = 0; list < nLists(shape, step); list++) {
    const { candBegin, candEnd, nHeavy } = step.rows[list % step.rows.length];
    for (let tile = 0; tile < nTiles(tiling, shape, step); tile++) {
      const tokens: number[] = [];
      const begin = Math.max(candBegin, tile * size), end = Math.min(candEnd, (tile + 1) * size);
      for (let i = begin; i < end; i++) tokens.push(i);
      const rank = (i: number) => rankOf(scores[list * step.codedStride + i]);
      const best = tokens.sort((a, b) => rank(b) - rank(a) || a - b).slice(0, nHeavy).sort((a, b) => a - b);
      const out = list * tilesStride(tiling, shape, step) + tile * kept;
      buffers.candidateRanks.fill(0, out, out + kept);
      buffers.candidateRanks.set(best.map(rank), out);
      buffers.candidateIx.set(best, out);
    }
  }
}

/** Bytes of workgroup memory: the table, the tile's ranks, histogram, scan and choice. */
export function candidatesBytes(shape: LayerShape): number {
  return tableBytes(shape) + TILE * 4 + INVOCATIONS * 4 + INVOCATIONS * 8 + 8;
}

/** Scores a tile and keeps its best candidates. */
export const candidates: Kernel = {
  name: "candidates",
  wgsl: [
    "layer/layer.wgsl",
    "layer/columns.wgsl",
    "score/dot.wgsl",
    "score/lookup.wgsl",
    "topk/rank.wgsl",
    "topk/scan.wgsl",
    "topk/scan_pair.wgsl",
    "score_topk/tiles.wgsl",
    "score_topk/keep_best.wgsl",
    "score_topk/candidates.wgsl",
  ],
  buffers: [
    reads(query),
    reads(centroids),
    reads(packedCodesBuffer),
    writes(candidateRanks(TILING)),
    writes(candidateIx(TILING)),
  ],
  plan: (shape) => ({
    overrides: { ...layerOverrides(shape), WG: INVOCATIONS, ...tilingOverrides(TILING) },
    invocations: INVOCATIONS,
    workgroupBytes: candidatesBytes(shape),
  }),
  work(shape, step) {
    if (!needsScores(step)) return { workgroups: 0, bytesMoved: 0 };
    const lists = nLists(shape, step), tiles = nTiles(TILING, shape, step);
    const table = shape.headWidth * (shape.centroids + 1) * 4;
    const perTile = table + keptPerTile(TILING, step) * 8;
    return { workgroups: lists * tiles, bytesMoved: lists * (tiles * perTile + step.nCoded * shape.subvectors) };
  },
  twin: (shape, step, buffers) => candidatesTwin(TILING, shape, step, buffers),
};
