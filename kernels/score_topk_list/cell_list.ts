/**
 * cell_list: lists by ranking cells. See `cell_list.wgsl`.
 *
 * @module
 */

import { type Kernel, layerOverrides, reads, writes } from "../gpu/kernel.ts";
import { centroids, indices, lengths, query, weights } from "../layer/buffers.ts";
import { LEAST_INVOCATIONS, postingBytes, postingOverrides, postings } from "../postings/postings.ts";
import { packedCodesBuffer } from "../quantize/assign_packed.ts";
import { candidatesTwin, tilesStride, type Tiling } from "../score_topk/candidates.ts";
import { tableBytes } from "../score/score_lookup.ts";
import { needsScores, nLists } from "../shape.ts";
import { narrowBytes, narrowParts, rowsBytes, rowsPart, type Scan, scanOverrides } from "../topk/scan.ts";
import { mergeList } from "../topk_list/merge_list.ts";

/** What can be chosen for cell_list. All choices give the same lists. */
export interface CellListOptions extends Scan {
  /** The most heavy tokens of a list. */
  readonly mostHeavy: number;
  /** Whether dense weights are written. */
  readonly weights: boolean;
}

/** As many entries of a bin as are compared each with each: MOST_MEMBERS of `make_cell_list.wgsl`. */
export const MOST_MEMBERS = 15;

/** The most heavy tokens of a list: ordering them takes time by their square. */
export const MOST_HEAVY = 512;

/**
 * Makes lists by ranking cells, one workgroup per list.
 *
 * @throws {RangeError} for sizes that the kernel cannot have
 */
export function cellList(options: CellListOptions): Kernel {
  const { invocations } = options, mostHeavy = Math.max(1, options.mostHeavy);
  if (invocations < LEAST_INVOCATIONS || !Number.isInteger(Math.log2(invocations)) || mostHeavy > MOST_HEAVY) {
    throw new RangeError(
      `Cannot plan cell_list as it takes ${LEAST_INVOCATIONS} invocations or a higher power of two, and ${MOST_HEAVY} heavy ` +
        `tokens at most: invocations is ${invocations}, heavy tokens are ${mostHeavy}`,
    );
  }
  return {
    name: "cell_list",
    wgsl: [
      "layer/layer.wgsl",
      "layer/columns.wgsl",
      rowsPart(options),
      "score/product_part.wgsl",
      "score/entry_f32.wgsl",
      "score/lookup_rows.wgsl",
      ...narrowParts(options),
      "postings/postings.wgsl",
      options.weights ? "topk_list/weights_on.wgsl" : "topk_list/weights_off.wgsl",
      "score_topk_list/make_cell_list.wgsl",
      "score_topk_list/cell_list.wgsl",
    ],
    buffers: [
      reads(query),
      reads(centroids),
      reads(packedCodesBuffer),
      reads(postings),
      writes(indices),
      writes(lengths),
      ...(options.weights ? [{ ...writes(weights), binding: 9 }] : []),
    ],
    plan: (shape) => ({
      overrides: {
        ...layerOverrides(shape),
        ...scanOverrides(options),
        ...postingOverrides(shape),
        MOST_HEAVY: mostHeavy,
      },
      invocations,
      workgroupBytes: Math.ceil(tableBytes(shape) / 16) * 16 + rowsBytes(options) + narrowBytes(options) +
        Math.ceil(mostHeavy / 4) * 80 + MOST_MEMBERS * 16 + 2 * 64 + 6 * 16,
    }),
    work(shape, step) {
      const lists = nLists(shape, step);
      const longest = Math.max(0, ...step.rows.map((row) => row.listLength));
      const candEnd = Math.max(0, ...step.rows.map((row) => row.candEnd));
      const tail = Math.max(0, candEnd - (step.posted?.end ?? 0)) * shape.subvectors;
      const table = shape.headWidth * (shape.centroids + 1) * 4;
      const each = (needsScores(step) ? table + tail + postingBytes(shape, step.heavyStride) : 0) +
        longest * (options.weights ? 16 : 4);
      return { workgroups: lists, bytesMoved: lists * each };
    },
    twin(shape, step, buffers) {
      // Token by token, from the codes: what the postings hold must not matter.
      const chunk = Math.ceil(step.codedStride / 4) * 4;
      const tiling: Tiling = { chunk, mostChunks: 1, workgroups: 1, slack: 0 };
      const room = nLists(shape, step) * tilesStride(tiling, shape, step);
      const own = { ...buffers, candidateRanks: new Uint32Array(room), candidateIx: new Uint32Array(room) };
      candidatesTwin(tiling, shape, step, own);
      mergeList({ ...options, tiling }).twin(shape, step, own);
    },
  };
}
