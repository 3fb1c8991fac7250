/**
 * Attention over lists of tokens, or over all: softmax(q·k / √D) and the sum of values under it, split over the list. See
 * `attend_parts.wgsl` and `attend_merge.wgsl`.
 *
 * @module
 */

import {
  type BufferDef,
  type BufferUse,
  type HostBuffers,
  type Kernel,
  layerOverrides,
  reads,
  writes,
} from "../gpu/kernel.ts";
import { indices, lengths, query, weights } from "../layer/buffers.ts";
import { elementBytes, kvOfList, type LayerShape, nLists, type StepShape } from "../shape.ts";
import { rowsBytes, rowsPart } from "../topk/scan.ts";

/** What can be chosen for attention. */
export interface AttendOptions {
  /** How keys and values are kept. */
  readonly elements: "f32" | "f16";
  /** Which tokens: those of lists, or all that a row sees. */
  readonly tokens: "listed" | "all";
  /** Whether the lists' tokens carry weights. */
  readonly weights: boolean;
  /** Lists per batch and row: as many as query heads (the default), or KV heads. */
  readonly listHeads?: number;
  /** Invocations per workgroup, and tokens per round: a power of two from 64 on. */
  readonly invocations: number;
  /** Rounds of a workgroup at most. */
  readonly mostRounds: number;
  /** As many workgroups as rounds are to leave. */
  readonly workgroups: number;
  /** Invocations per subgroup where they are used, a power of two; 0 for the portable path. */
  readonly subgroupSize: number;
}

/** Invocations of the kernel that merges parts. */
const MERGE_INVOCATIONS = 128;

/** f32 or f16 `[B, Hkv, keyStride, D]` */
export function cache(name: "keys" | "values", { elements }: Pick<AttendOptions, "elements">): BufferDef {
  return {
    name,
    type: elements === "f32" ? "f32" : "u32",
    elements: (shape, step) =>
      shape.batch * shape.kvHeads * (step.keyStride ?? 0) * shape.headWidth / (elements === "f32" ? 1 : 2),
  };
}

/** How a kernel reads cached keys: the binding is that of `layer/keys_*.wgsl`. */
export function cachedKeys(options: Pick<AttendOptions, "elements">): BufferUse {
  return { ...reads(cache("keys", options)), binding: 10 };
}

/** Tokens per part; twin of `part_tokens`. */
function partTokens(options: AttendOptions, shape: LayerShape, step: StepShape): number {
  const { invocations, mostRounds } = options;
  const rounds = Math.ceil((step.attended ?? 0) / (invocations * shareOf(options, shape, step)));
  return invocations * Math.min(Math.max(rounds, 1), mostRounds);
}

/** Workgroups that a list may have. */
function shareOf({ workgroups }: AttendOptions, shape: LayerShape, step: StepShape): number {
  return Math.max(1, Math.floor(workgroups / Math.max(1, nLists(shape, step))));
}

/** Parts per list; twin of `n_parts`. */
function nParts(options: AttendOptions, shape: LayerShape, step: StepShape): number {
  return Math.ceil((step.attended ?? 0) / partTokens(options, shape, step));
}

/**
 * f32 `[lists, parts, D + 2]`; empty where every list is one part. Fewer lists, or shorter ones, may have more parts each:
 * there is room for those too.
 */
export function partial(options: AttendOptions): BufferDef {
  const { invocations, mostRounds, workgroups } = options;
  return {
    name: "partial",
    type: "f32",
    elements: (shape, step) => {
      const lists = nLists(shape, step), rounds = Math.ceil((step.attended ?? 0) / invocations);
      if (rounds < 2) return 0;
      const parts = Math.max(
        lists * Math.ceil(rounds / mostRounds),
        Math.min(lists * rounds, Math.max(lists, workgroups)),
      );
      return parts * (shape.headWidth + 2);
    },
  };
}

/** f32 `[B, H, rows, D]` */
export const output: BufferDef = { ...query, name: "output" };

const overrides = (shape: LayerShape, options: AttendOptions, invocations: number) => ({
  ...layerOverrides(shape),
  HEAD_WIDTH: shape.headWidth,
  ROUND: options.invocations,
  MOST_ROUNDS: options.mostRounds,
  WORKGROUPS: options.workgroups,
  WG: invocations,
});

/** What a selection has per list. */
function shared(def: BufferDef, { listHeads }: AttendOptions): BufferDef {
  return {
    ...def,
    elements: (shape, step) => def.elements({ ...shape, heads: listHeads ?? shape.heads }, step),
  };
}

/** Numbers from two bytes each. */
export function halves(words: ArrayLike<number>): Float32Array {
  return Float32Array.from(new Float16Array(Uint32Array.from(words).buffer));
}

/** The tokens of a list with their weights, as the options say. */
function tokensOf(
  options: AttendOptions,
  { heads }: LayerShape,
  step: StepShape,
  buffers: HostBuffers,
  list: number,
): [number, number][] {
  const all = options.tokens === "all";
  const rows = step.rows.length, group = heads / (options.listHeads ?? heads);
  const shared = Math.floor(Math.floor(list / rows) / group) * rows + list % rows;
  const length = all ? step.rows[list % rows].nTokens : buffers.lengths[shared];
  return Array.from({ length }, (_, j) => {
    const token = all ? j : buffers.indices[shared * step.listStride + j];
    return [token, options.weights ? buffers.weights[shared * step.weightStride + token] : 1];
  });
}

/** Attends to a part of each list, or to all of it where that is one part. */
export function attendParts(options: AttendOptions): Kernel {
  const { invocations } = options;
  const rows = { invocations, subgroupSize: options.subgroupSize };
  return {
    name: "attend_parts",
    wgsl: [
      "layer/layer.wgsl",
      "layer/columns.wgsl",
      rowsPart(rows),
      "attend/attend.wgsl",
      "layer/eight.wgsl",
      `layer/keys_${options.elements}.wgsl`,
      `layer/values_${options.elements}.wgsl`,
      "layer/query_columns.wgsl",
      options.tokens === "all" ? "attend/dense.wgsl" : "attend/listed.wgsl",
      options.weights ? "attend/weighted.wgsl" : "attend/unweighted.wgsl",
      "attend/attend_parts.wgsl",
    ],
    buffers: [
      reads(query),
      reads(cache("values", options)),
      writes(partial(options)),
      writes(output),
      ...(options.tokens === "all" ? [] : [
        reads(shared(indices, options)),
        reads(shared(lengths, options)),
      ]),
      ...(options.weights ? [{ ...reads(shared(weights, options)), binding: 9 }] : []),
      cachedKeys(options),
    ],
    plan: (shape) => ({
      overrides: {
        ...overrides(shape, options, invocations),
        ...(options.tokens === "all" ? {} : { LIST_HEADS: options.listHeads ?? shape.heads }),
      },
      invocations,
      workgroupBytes: invocations * (8 + shape.headWidth / 4 + 12 / 16) + rowsBytes(rows),
    }),
    work(shape, step) {
      const lists = nLists(shape, step), parts = nParts(options, shape, step);
      const element = elementBytes(options.elements), attended = step.attended ?? 0;
      const perToken = 2 * shape.headWidth * element + (options.tokens === "all" ? 0 : 4) + (options.weights ? 4 : 0);
      return {
        workgroups: lists * Math.max(parts, 1),
        bytesMoved: lists *
          (attended * perToken + shape.headWidth * 8 + (parts > 1 ? parts : 0) * (shape.headWidth + 2) * 4),
      };
    },
    twin(shape, step, buffers) {
      const { headWidth: D } = shape, parts = nParts(options, shape, step), length = partTokens(options, shape, step);
      const [keys, values] = [buffers.keys, buffers.values].map((array) =>
        options.elements === "f32" ? array : halves(array)
      );
      for (let list = 0; list < nLists(shape, step); list++) {
        const tokens = tokensOf(options, shape, step, buffers, list), kv = kvOfList(shape, step, list);
        const at = (token: number) => (kv * step.keyStride! + token) * D;
        for (let part = 0; part < parts; part++) {
          const own = tokens.slice(part * length, (part + 1) * length).filter(([, weight]) => weight > 0);
          const scores = own.map(([token, weight]) => {
            let sum = 0;
            for (let j = 0; j < D; j++) sum += buffers.query[list * D + j] * keys[at(token) + j];
            return sum / Math.sqrt(D) + Math.log(weight);
          });
          const largest = scores.reduce((a, b) => Math.max(a, b), Math.fround(-3.4028234e38));
          const shares = scores.map((score) => Math.exp(score - largest));
          const sum = shares.reduce((a, b) => a + b, 0);
          const out = (list * parts + part) * (D + 2);
          for (let j = 0; j < D; j++) {
            const all = own.reduce((total, [token], i) => total + shares[i] * values[at(token) + j], 0);
            if (parts === 1) buffers.output[list * D + j] = sum > 0 ? all / sum : 0;
            else buffers.partial[out + j] = all;
          }
          if (parts > 1) buffers.partial.set([largest, sum], out + D);
        }
      }
    },
  };
}

/** Merges the parts of each list where there are several. */
export function attendMerge(options: AttendOptions): Kernel {
  return {
    name: "attend_merge",
    wgsl: ["layer/layer.wgsl", "attend/attend.wgsl", "attend/reduce_shared.wgsl", "attend/attend_merge.wgsl"],
    buffers: [reads(partial(options)), writes(output)],
    plan: (shape) => ({
      overrides: overrides(shape, options, MERGE_INVOCATIONS),
      invocations: MERGE_INVOCATIONS,
      workgroupBytes: 4 * MERGE_INVOCATIONS,
    }),
    work(shape, step) {
      const parts = nParts(options, shape, step);
      if (parts < 2) return { workgroups: 0, bytesMoved: 0 };
      const lists = nLists(shape, step);
      return { workgroups: lists, bytesMoved: lists * 4 * (parts * (shape.headWidth + 4) + shape.headWidth) };
    },
    twin(shape, step, { partial, output }) {
      const { headWidth: D } = shape, parts = nParts(options, shape, step);
      for (let list = 0; list < nLists(shape, step); list++) {
        const at = (part: number) => (list * parts + part) * (D + 2);
        const each = Array.from({ length: parts }, (_, part) => part);
        const largest = Math.max(...each.map((part) => partial[at(part) + D]));
        const share = (part: number) => Math.exp(partial[at(part) + D] - largest);
        const sum = each.reduce((total, part) => total + share(part) * partial[at(part) + D + 1], 0);
        for (let j = 0; j < D; j++) {
          const all = each.reduce((total, part) => total + share(part) * partial[at(part) + j], 0);
          output[list * D + j] = sum > 0 ? all / sum : 0;
        }
      }
    },
  };
}
