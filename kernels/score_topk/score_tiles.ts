/**
 * score_tiles: candidates of large tiles. See `score_tiles.wgsl`.
 *
 * @module
 */

import { type Kernel, layerOverrides, reads, writes } from "../gpu/kernel.ts";
import { centroids, query } from "../layer/buffers.ts";
import { packedCodesBuffer } from "../quantize/assign_packed.ts";
import { type LayerShape, needsScores } from "../shape.ts";
import { narrowBytes, narrowParts, rowsBytes, rowsPart, type Scan, scanOverrides } from "../topk/scan.ts";
import {
  candidateIx,
  candidateRanks,
  candidatesTwin,
  chunksPerTile,
  keptPerTile,
  nTiles,
  type Tiling,
  tilingOverrides,
} from "./candidates.ts";

/** What can be chosen for score_tiles. All choices but `entries` give the same lists. */
export interface ScoreTilesOptions extends Scan {
  /** The most chunks of 16 tokens per invocation that make a tile. */
  readonly mostChunks: number;
  /** Workgroups that run at once. */
  readonly workgroups: number;
  /** Lists (query heads of a group, rows) per workgroup, which share the reading of codes. */
  readonly lists: number;
  /** How the table's entries are kept: f16 takes half the workgroup memory, and rounds. */
  readonly entries: "f32" | "f16";
}

/** Tokens per invocation. */
const TOKENS = 16;

/** How candidates of these tiles lie: with room for tokens that tie or come close. */
export function tilingOf(
  { invocations, mostChunks, workgroups }: Pick<ScoreTilesOptions, "invocations" | "mostChunks" | "workgroups">,
): Tiling {
  return { chunk: invocations * TOKENS, mostChunks, workgroups, slack: 128 };
}

/** Twin of `entry_f16.wgsl`: what an entry of a list's table is kept as, from all entries of that table. */
function halfEntries(table: Float32Array): (entry: number) => number {
  let largest = 0;
  for (const entry of table) if (Number.isFinite(entry)) largest = Math.max(largest, Math.abs(entry));
  const isWithin = largest === 0 || (largest >= 0.25 && largest <= 65504);
  // Bits, as log2 may be off beside a power of two.
  const exponent = new Uint32Array(Float32Array.of(largest).buffer)[0] >>> 23;
  const scale = isWithin ? 1 : 2 ** Math.min(14 - (exponent - 127), 126);
  return (entry) => {
    const value = Math.fround(entry);
    return Number.isFinite(value) ? Math.f16round(value * scale) : value;
  };
}

/** Bytes of workgroup memory: the table and its scale, sums of rows, histogram, scan, groups' best ranks and small change. */
function scoreTilesBytes(shape: LayerShape, options: ScoreTilesOptions, isLong: boolean): number {
  const perEntry = options.entries === "f16" ? 2 : 4;
  const table = Math.ceil(shape.subvectors * shape.centroids * perEntry / 16) * 16;
  const bests = (isLong ? options.mostChunks : 1) * options.invocations * (4 + 1 / 8);
  const scale = options.entries === "f16" ? 8 : 0;
  return table + scale + rowsBytes(options) + narrowBytes(options) + bests + 32;
}

/**
 * Scores tiles and keeps their best candidates.
 *
 * @param isLong whether for steps whose tiles are of several chunks, or for those whose tiles are of one: two kernels, as what
 *   a long tile needs would take registers from a short one
 */
export function scoreTiles(options: ScoreTilesOptions, isLong: boolean): Kernel {
  const tiling = tilingOf(options);
  return {
    name: "score_tiles",
    wgsl: [
      "layer/layer.wgsl",
      "layer/columns.wgsl",
      rowsPart(options),
      "score/product_part.wgsl",
      `score/entry_${options.entries}.wgsl`,
      "score/lookup_rows.wgsl",
      ...narrowParts(options),
      "score_topk/tiles.wgsl",
      "score_topk/score_tiles.wgsl",
    ],
    buffers: [
      reads(query),
      reads(centroids),
      reads(packedCodesBuffer),
      writes(candidateRanks(tiling)),
      writes(candidateIx(tiling)),
    ],
    plan: (shape) => ({
      overrides: {
        ...layerOverrides(shape),
        ...scanOverrides(options),
        ...tilingOverrides(tiling),
        LISTS: options.lists,
        IS_LONG: Number(isLong),
      },
      invocations: options.invocations,
      workgroupBytes: scoreTilesBytes(shape, options, isLong),
    }),
    work(shape, step) {
      if (!needsScores(step) || isLong !== chunksPerTile(tiling, shape, step) > 1) {
        return { workgroups: 0, bytesMoved: 0 };
      }
      const lists = shape.heads / shape.kvHeads * step.rows.length;
      const parts = Math.ceil(lists / options.lists), tiles = nTiles(tiling, shape, step);
      const kvs = shape.batch * shape.kvHeads;
      const perTile = lists * (shape.headWidth * (shape.centroids + 1) * 4 + keptPerTile(tiling, step) * 8);
      return {
        workgroups: kvs * parts * tiles,
        bytesMoved: kvs * (tiles * perTile + parts * step.nCoded * shape.subvectors),
      };
    },
    twin: (shape, step, buffers) =>
      candidatesTwin(tiling, shape, step, buffers, options.entries === "f16" ? halfEntries : undefined),
  };
}
