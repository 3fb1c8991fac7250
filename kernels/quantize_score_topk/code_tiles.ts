/**
 * code_tiles: candidates of large tiles and codes of the new keys in one dispatch. See `code_tiles.wgsl`.
 *
 * @module
 */

import { type Kernel, layerOverrides } from "../gpu/kernel.ts";
import { assignPacked } from "../quantize/assign_packed.ts";
import { candidatesTwin, keptPerTile, nTiles, type Tiling, tilingOverrides } from "../score_topk/candidates.ts";
import { type LayerShape, nBeside, needsScores } from "../shape.ts";
import { N_BINS, type Scan, scanBytes, scanOverrides, scanPart } from "../topk/scan.ts";
import { buffersBeside, workBeside } from "./code_candidates.ts";

/** What can be chosen for code_tiles. All choices give the same lists. */
export interface CodeTilesOptions extends Scan {
  /** Words of four codes per invocation. */
  readonly words: number;
  /** Copies of every table entry, a power of two. */
  readonly replicas: number;
  /** Lists (query heads of a group, rows) per workgroup, which share the reading of codes. */
  readonly lists: number;
}

/** How candidates of these tiles lie: with room for tokens that tie or come close. */
export function tilingOf({ invocations, words }: CodeTilesOptions): Tiling {
  return { tile: invocations * words * 4, slack: 64 };
}

/** Table entries that are summed between two barriers. */
function partRows(shape: LayerShape): number {
  return Math.min(128, shape.subvectors * shape.centroids);
}

/** Bytes of workgroup memory: the table, its partial sums, histogram, scan and small change. */
export function codeTilesBytes(shape: LayerShape, options: CodeTilesOptions): number {
  const table = 4 * shape.subvectors * shape.centroids * options.replicas;
  return table + 68 * partRows(shape) + N_BINS * 4 + scanBytes(options) + 48;
}

/** Scores tiles, keeps their best candidates and codes the new keys. */
export function codeTiles(options: CodeTilesOptions): Kernel {
  const tiling = tilingOf(options);
  return {
    name: "code_tiles",
    wgsl: [
      "layer/layer.wgsl",
      "layer/columns.wgsl",
      "score/lookup_split.wgsl",
      "quantize/nearest.wgsl",
      "quantize/nearest_split.wgsl",
      "quantize/code_word.wgsl",
      "topk/rank.wgsl",
      scanPart(options),
      "topk/scan_pair.wgsl",
      "topk/kth.wgsl",
      "score_topk/tiles.wgsl",
      "quantize_score_topk/code_tiles.wgsl",
    ],
    buffers: buffersBeside(tiling),
    plan: (shape) => ({
      overrides: {
        ...layerOverrides(shape),
        ...scanOverrides(options),
        ...tilingOverrides(tiling),
        REPLICAS: options.replicas,
        PART_ROWS: partRows(shape),
        LISTS: options.lists,
      },
      consts: { WORDS: options.words },
      invocations: options.invocations,
      workgroupBytes: codeTilesBytes(shape, options),
    }),
    work(shape, step) {
      if (!needsScores(step)) return { workgroups: 0, bytesMoved: 0 };
      const lists = shape.heads / shape.kvHeads * step.rows.length;
      const parts = Math.ceil(lists / options.lists), tiles = nTiles(tiling, step);
      const kvs = shape.batch * shape.kvHeads;
      const perTile = lists * (shape.headWidth * (shape.centroids + 1) * 4 + keptPerTile(tiling, step) * 8);
      const bytesMoved = kvs * (tiles * perTile + parts * step.nCoded * shape.subvectors);
      return workBeside(shape, step, { workgroups: kvs * parts * tiles, bytesMoved });
    },
    twin(shape, step, buffers) {
      if (nBeside(step) > 0) assignPacked.twin(shape, step, buffers);
      candidatesTwin(tiling, shape, step, buffers);
    },
  };
}
