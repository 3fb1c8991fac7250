/**
 * refine_list: exact re-ranking of a shortlist. See `refine_list.wgsl`.
 *
 * @module
 */

import { cachedKeys, halves } from "../attend/attend.ts";
import { type BufferDef, type Kernel, type KernelView, layerOverrides, reads, viewed, writes } from "../gpu/kernel.ts";
import { indices, lengths, query, weights } from "../layer/buffers.ts";
import { elementBytes, kvOfList, nLists, type RowShape, type StepShape } from "../shape.ts";
import { rankOf } from "../topk/rank.ts";
import { listBytes } from "../topk_list/merge_list.ts";
import { narrowParts, rowsBytes, rowsPart, type Scan, scanOverrides } from "../topk/scan.ts";

/** What can be chosen for refine_list. */
export interface RefineListOptions extends Scan {
  /** How cached keys are kept. */
  readonly elements: "f32" | "f16";
  /** The most tokens of a shortlist. */
  readonly mostShort: number;
  /** Whether dense weights are written. */
  readonly weights: boolean;
}

/** The WGSL parts that rank a shortlist exactly; `topk/rank.wgsl` is among what they need. */
export function rankParts({ elements }: Pick<RefineListOptions, "elements">): string[] {
  return ["layer/eight.wgsl", `layer/keys_${elements}.wgsl`, "layer/query_columns.wgsl", "refine/rank_exactly.wgsl"];
}

/** No shortlist is longer. */
export const MOST_SHORT = 4096;

/** u32 `[B, H, rows, shortStride]`: lists whose heavy tokens are the shortlist */
export const shortIndices: BufferDef = {
  name: "shortIndices",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.attended!,
};

/** u32 `[B, H, rows]`: their lengths */
export const shortLengths: BufferDef = { name: "shortLengths", type: "u32", elements: nLists };

/** A row whose heavy tokens are the shortlist. */
export function shortRow(row: RowShape): RowShape {
  const nHeavy = row.nShort ?? row.nHeavy;
  return { ...row, nHeavy, listLength: row.listLength - row.nHeavy + nHeavy };
}

/** How a step that makes shortlists sees the step: with as many heavy tokens as the shortlist has, into buffers of its own. */
export const SHORTLIST: KernelView = {
  step: (step: StepShape): StepShape => ({
    ...step,
    rows: step.rows.map(shortRow),
    heavyStride: step.shortStride!,
    listStride: step.attended!,
    clearsPrevious: false,
  }),
  names: { indices: shortIndices.name, lengths: shortLengths.name },
};

/** A kernel of the step that makes shortlists. */
export function forShortlist(kernel: Kernel): Kernel {
  return viewed(kernel, SHORTLIST);
}

/** Makes lists of shortlists. */
export function refineList(options: RefineListOptions): Kernel {
  const { invocations, elements } = options;
  const mostShort = Math.ceil(options.mostShort / 4) * 4;
  return {
    name: "refine_list",
    wgsl: [
      "layer/layer.wgsl",
      "layer/columns.wgsl",
      rowsPart(options),
      ...rankParts(options),
      ...narrowParts(options),
      options.weights ? "topk_list/weights_on.wgsl" : "topk_list/weights_off.wgsl",
      "topk_list/make_list.wgsl",
      "refine/refine_list.wgsl",
    ],
    buffers: [
      reads(query),
      reads(shortIndices),
      reads(shortLengths),
      writes(indices),
      writes(lengths),
      ...(options.weights ? [{ ...writes(weights), binding: 9 }] : []),
      cachedKeys(options),
    ],
    plan: (shape) => ({
      overrides: {
        ...layerOverrides(shape),
        ...scanOverrides(options),
        HEAD_WIDTH: shape.headWidth,
        SHORT: mostShort,
      },
      invocations,
      workgroupBytes: 4 * mostShort + rowsBytes(options) + listBytes(options),
    }),
    work(shape, step) {
      const lists = nLists(shape, step), element = elementBytes(elements);
      const short = Math.max(0, ...step.rows.map((row) => row.nShort ?? 0));
      const longest = Math.max(0, ...step.rows.map((row) => row.listLength));
      const each = short * (shape.headWidth * element + 4) + shape.headWidth * 4 + longest * (options.weights ? 16 : 4);
      return { workgroups: lists, bytesMoved: lists * each };
    },
    twin(shape, step, buffers) {
      const { headWidth: D } = shape;
      const keys = elements === "f32" ? buffers.keys : halves(buffers.keys);
      for (let list = 0; list < nLists(shape, step); list++) {
        const at = list * step.listStride, row = step.rows[list % step.rows.length], kv = kvOfList(shape, step, list);
        const weightsOf = options.weights
          ? buffers.weights.subarray(list * step.weightStride, (list + 1) * step.weightStride)
          : new Float32Array(0);
        if (step.clearsPrevious) {
          for (let j = 0; j < buffers.lengths[list]; j++) weightsOf[buffers.indices[at + j]] = 0;
        }
        const nWindow = row.nTokens - row.windowBegin, first = list * step.attended! + row.nSink;
        const nShort = row.nHeavy > 0 ? buffers.shortLengths[list] - row.nSink - nWindow : 0;
        const rank = (token: number) => {
          let sum = 0;
          const key = (kv * step.keyStride! + token) * D;
          for (let j = 0; j < D; j++) sum += buffers.query[list * D + j] * keys[key + j];
          return rankOf(sum);
        };
        const heavy = Array.from(buffers.shortIndices.subarray(first, first + nShort), (token) => ({
          token,
          rank: rank(token),
        })).sort((a, b) => b.rank - a.rank || a.token - b.token).slice(0, row.nHeavy).map(({ token }) => token);
        const tokens = [
          ...Array.from({ length: row.nSink }, (_, j) => j),
          ...heavy.sort((a, b) => a - b),
          ...Array.from({ length: nWindow }, (_, j) => row.windowBegin + j),
        ];
        buffers.indices.set(tokens, at);
        buffers.lengths[list] = row.listLength;
        for (const token of tokens) weightsOf[token] = 1;
      }
    },
  };
}
