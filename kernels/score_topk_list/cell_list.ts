/**
 * cell_list: lists by ranking cells. See `cell_list.wgsl`.
 *
 * @module
 */

import { cachedKeys } from "../attend/attend.ts";
import { type HostBuffers, type Kernel, layerOverrides, reads, writes } from "../gpu/kernel.ts";
import { centroids, indices, lengths, query, weights } from "../layer/buffers.ts";
import { LEAST_INVOCATIONS, postingBytes, postingOverrides, postings } from "../postings/postings.ts";
import { packedCodesBuffer } from "../quantize/assign_packed.ts";
import { candidatesTwin, tilesStride, type Tiling } from "../score_topk/candidates.ts";
import { tableBytes } from "../score/score_lookup.ts";
import {
  MOST_SHORT,
  rankParts,
  refineList,
  type RefineListOptions,
  shortIndices,
  shortLengths,
  SHORTLIST,
} from "../refine/refine_list.ts";
import { elementBytes, type LayerShape, needsScores, nLists, type StepShape } from "../shape.ts";
import { narrowBytes, narrowParts, rowsBytes, rowsPart, type Scan, scanOverrides } from "../topk/scan.ts";
import { mergeList } from "../topk_list/merge_list.ts";

/** What can be chosen for cell_list. All choices give the same lists. */
export interface CellListOptions extends Scan {
  /** The most heavy tokens of a list. */
  readonly mostHeavy: number;
  /** Whether they are chosen by their exact scores, out of a shortlist of so many at most. Default: not. */
  readonly reRanked?: Pick<RefineListOptions, "elements" | "mostShort">;
  /** Whether dense weights are written. */
  readonly weights: boolean;
}

/** As many entries of a bin as are compared each with each: MOST_MEMBERS of `make_cell_list.wgsl`. */
export const MOST_MEMBERS = 15;

/** The most heavy tokens of a list: ordering them takes time by their square. */
export const MOST_HEAVY = 512;

/** Token by token, from the codes: what the postings hold must not matter. */
function twinOf(options: CellListOptions, shape: LayerShape, step: StepShape, buffers: HostBuffers): void {
  const chunk = Math.ceil(step.codedStride / 4) * 4;
  const tiling: Tiling = { chunk, mostChunks: 1, workgroups: 1, slack: 0 };
  const room = nLists(shape, step) * tilesStride(tiling, shape, step);
  const own = { ...buffers, candidateRanks: new Uint32Array(room), candidateIx: new Uint32Array(room) };
  candidatesTwin(tiling, shape, step, own);
  mergeList({ ...options, tiling }).twin(shape, step, own);
}

/**
 * Makes lists by ranking cells, one workgroup per list.
 *
 * @throws {RangeError} for sizes that the kernel cannot have
 */
export function cellList(options: CellListOptions): Kernel {
  const { invocations, reRanked } = options, mostHeavy = Math.max(1, options.mostHeavy);
  const mostShort = Math.max(mostHeavy, reRanked?.mostShort ?? 0);
  const isLong = mostHeavy > MOST_HEAVY || mostShort > MOST_SHORT;
  if (invocations < LEAST_INVOCATIONS || !Number.isInteger(Math.log2(invocations)) || isLong) {
    throw new RangeError(
      `Cannot plan cell_list as it takes ${LEAST_INVOCATIONS} invocations or a higher power of two, and ${MOST_HEAVY} heavy ` +
        `tokens at most out of ${MOST_SHORT}: invocations is ${invocations}, they are ${mostHeavy} out of ${mostShort}`,
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
      ...(reRanked ? [...rankParts(reRanked), "score_topk_list/re_ranked.wgsl"] : ["score_topk_list/as_taken.wgsl"]),
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
      ...(reRanked ? [cachedKeys(reRanked)] : []),
    ],
    plan: (shape) => ({
      overrides: {
        ...layerOverrides(shape),
        ...scanOverrides(options),
        ...postingOverrides(shape),
        MOST_HEAVY: mostHeavy,
        SHORT: mostShort,
        ...(reRanked ? { HEAD_WIDTH: shape.headWidth } : {}),
      },
      invocations,
      workgroupBytes: Math.ceil(tableBytes(shape) / 16) * 16 + rowsBytes(options) + narrowBytes(options) +
        Math.ceil(mostShort / 4) * 48 + Math.ceil(mostHeavy / 4) * 32 + MOST_MEMBERS * 16 + 2 * 64 + 6 * 16,
    }),
    work(shape, step) {
      const lists = nLists(shape, step);
      const longest = Math.max(0, ...step.rows.map((row) => row.listLength));
      const candEnd = Math.max(0, ...step.rows.map((row) => row.candEnd));
      const tail = Math.max(0, candEnd - (step.posted?.end ?? 0)) * shape.subvectors;
      const table = shape.headWidth * (shape.centroids + 1) * 4;
      const short = Math.max(0, ...step.rows.map((row) => row.nShort ?? row.nHeavy));
      const key = reRanked ? shape.headWidth * elementBytes(reRanked.elements) : 0;
      const each = (needsScores(step) ? table + tail + postingBytes(shape, short) + short * key : 0) +
        longest * (options.weights ? 16 : 4);
      return { workgroups: lists, bytesMoved: lists * each };
    },
    twin(shape, step, buffers) {
      if (!reRanked) return twinOf(options, shape, step, buffers);
      const short = SHORTLIST.step!(step);
      const lists = {
        [shortIndices.name]: new Uint32Array(shortIndices.elements(shape, step)),
        [shortLengths.name]: new Uint32Array(shortLengths.elements(shape, step)),
      };
      const named = { indices: lists[shortIndices.name], lengths: lists[shortLengths.name] };
      twinOf({ ...options, weights: false }, shape, short, { ...buffers, ...named });
      refineList({ ...options, ...reRanked }).twin(shape, step, { ...buffers, ...lists });
    },
  };
}
