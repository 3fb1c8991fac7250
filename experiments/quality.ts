/**
 * What a selection keeps of exact attention, in f64.
 *
 * @module
 */

import type { ResolvedConfig } from "../indexer/config.ts";
import { resolveRow } from "../indexer/config.ts";
import { type Capture, queryOf } from "./inputs/capture.ts";

/** Means over heads and steps; masses are shares of the softmax over all cached tokens. */
export interface Quality {
  /** |heavy ∩ exact top-K of the same candidates| / K; NaN if no list has heavy tokens. */
  readonly recall: number;
  /** Attention mass of sink + heavy + window. */
  readonly listMass: number;
  /** Attention mass of sink + exact top-K + window: the most that K heavy tokens can give. */
  readonly exactMass: number;
  /** Attention mass of sink + window. */
  readonly windowMass: number;
  /** Attention mass of a window as long as the whole list. */
  readonly sameLengthWindowMass: number;
  /** (listMass − windowMass) / (exactMass − windowMass): share of what can be recovered; NaN if nothing can. */
  readonly recovered: number;
  /** Mean length of a list. */
  readonly listLength: number;
  /** What attention over fewer tokens does to the output, ‖o − o_dense‖ / ‖o_dense‖; NaN without values. */
  readonly listError: number;
  /** The same for sink + exact top-K + window. */
  readonly exactError: number;
  /** The same for sink + window. */
  readonly windowError: number;
  /** Cosine of the output over the list and the dense one; NaN without values. */
  readonly listCosine: number;
}

/**
 * Exact attention of a capture's query over the first `nTokens` cached tokens: softmax(q·k / √D), f64 `[nTokens]`.
 *
 * @param step which query of the capture
 */
export function exactAttention(capture: Capture, step: number, head: number, nTokens: number): Float64Array {
  const { headWidth, heads, kvHeads, key, tokens } = capture;
  const query = queryOf(capture, step);
  const kv = Math.floor(head / (heads / kvHeads));
  const logits = new Float64Array(nTokens);
  let largest = -Infinity;
  for (let token = 0; token < nTokens; token++) {
    let dot = 0;
    const at = (kv * tokens + token) * headWidth;
    for (let j = 0; j < headWidth; j++) dot += query[head * headWidth + j] * key[at + j];
    logits[token] = dot / Math.sqrt(headWidth);
    largest = Math.max(largest, logits[token]);
  }
  const weights = logits.map((logit) => Math.exp(logit - largest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Exact attention of a list, and its candidates from the one with most attention on. */
interface Exact {
  readonly weights: Float64Array;
  readonly best: Uint32Array;
}

/** What was computed of each capture: experiments go over the same lists again and again. */
const exactOf = new WeakMap<Capture, Map<string, Exact>>();
/** Bytes that are kept of a capture. */
const MOST_KEPT = 2 ** 29;

function exactList(capture: Capture, step: number, head: number, nTokens: number, begin: number, end: number): Exact {
  let kept = exactOf.get(capture);
  if (!kept) exactOf.set(capture, kept = new Map());
  const name = [step, head, nTokens, begin, end].join();
  let exact = kept.get(name);
  if (!exact) {
    const weights = exactAttention(capture, step, head, nTokens);
    const best = Uint32Array.from({ length: end - begin }, (_, i) => begin + i)
      .sort((a, b) => weights[b] - weights[a] || a - b);
    exact = { weights, best };
    if ((kept.size + 1) * 12 * nTokens <= MOST_KEPT) kept.set(name, exact);
  }
  return exact;
}

/** Sums over the lists of one head. */
interface Sums {
  lists: number;
  withHeavy: number;
  recall: number;
  listMass: number;
  exactMass: number;
  windowMass: number;
  sameLengthWindowMass: number;
  listLength: number;
  listError: number;
  exactError: number;
  windowError: number;
  listCosine: number;
}

const FIELDS = [
  "lists",
  "withHeavy",
  "recall",
  "listMass",
  "exactMass",
  "windowMass",
  "sameLengthWindowMass",
  "listLength",
  "listError",
  "exactError",
  "windowError",
  "listCosine",
] as const satisfies readonly (keyof Sums)[];

const nothing = () => Object.fromEntries(FIELDS.map((field) => [field, 0])) as unknown as Sums;

/** Collects quality over steps. */
export class QualityMeter {
  readonly #capture: Capture;
  readonly #config: ResolvedConfig;
  readonly #initOffset: number;
  readonly #values: Float32Array | undefined;
  /** By query head. */
  readonly #sums: Sums[] = [];

  /** @param values f32 `[Hkv, N, D]`; without them nothing is said of outputs */
  constructor(capture: Capture, config: ResolvedConfig, initOffset: number, values?: Float32Array) {
    this.#values = values;
    this.#capture = capture;
    this.#config = config;
    this.#initOffset = initOffset;
  }

  /** Adds a step: the lists of its heads when `nTokens` tokens were cached. */
  add(step: number, nTokens: number, lists: readonly ArrayLike<number>[]): void {
    const row = resolveRow(this.#config, this.#initOffset, nTokens, 1);
    const begin = row.candBegin + this.#initOffset, end = row.candEnd + this.#initOffset;
    lists.forEach((list, h) => {
      const sums = this.#sums[h] ??= nothing();
      const { weights, best } = exactList(this.#capture, step, h, nTokens, begin, end);
      const mass = (chosen: Iterable<number>) => {
        let sum = 0;
        for (const token of chosen) sum += weights[token];
        return sum;
      };
      const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
      const fixed = [...range(0, row.nSink), ...range(row.windowBegin, nTokens)];
      const exact = [...best.subarray(0, row.nHeavy)];
      const chosen = new Set(Array.from(list));
      sums.lists++;
      if (row.nHeavy > 0) {
        sums.withHeavy++;
        sums.recall += exact.filter((token) => chosen.has(token)).length / row.nHeavy;
      }
      sums.listMass += mass(chosen);
      sums.exactMass += mass([...fixed, ...exact]);
      sums.windowMass += mass(fixed);
      sums.sameLengthWindowMass += mass(range(nTokens - chosen.size, nTokens));
      sums.listLength += chosen.size;
      if (this.#values) {
        const dense = this.#output(h, weights, range(0, nTokens)), size = Math.hypot(...dense);
        const error = (output: Float64Array) => Math.hypot(...output.map((value, j) => value - dense[j])) / size;
        const listed = this.#output(h, weights, chosen);
        sums.listError += error(listed);
        sums.exactError += error(this.#output(h, weights, [...fixed, ...exact]));
        sums.windowError += error(this.#output(h, weights, fixed));
        const dot = listed.reduce((sum, value, j) => sum + value * dense[j], 0);
        sums.listCosine += dot / size / Math.hypot(...listed);
      }
    });
  }

  /** Attention over some tokens: their values by their weights, which then sum to 1; f64 `[D]`. */
  #output(head: number, weights: Float64Array, chosen: Iterable<number>): Float64Array {
    const { heads, kvHeads, tokens, headWidth } = this.#capture;
    const kv = Math.floor(head / (heads / kvHeads));
    const output = new Float64Array(headWidth);
    let total = 0;
    for (const token of chosen) {
      const at = (kv * tokens + token) * headWidth;
      for (let j = 0; j < headWidth; j++) output[j] += weights[token] * this.#values![at + j];
      total += weights[token];
    }
    return output.map((value) => value / total);
  }

  /** The means so far. */
  result(): Quality {
    const all = nothing();
    for (const sums of this.#sums) for (const field of FIELDS) all[field] += sums[field];
    return meansOf(all, this.#values !== undefined);
  }

  /** The means so far of each query head. */
  resultsByHead(): Quality[] {
    return this.#sums.map((sums) => meansOf(sums, this.#values !== undefined));
  }
}

function meansOf(sums: Sums, hasValues: boolean): Quality {
  const mean = (sum: number) => sum / sums.lists;
  const ofOutput = (sum: number) => hasValues ? mean(sum) : NaN;
  const { recall, listMass, exactMass, windowMass, sameLengthWindowMass, listLength } = sums;
  return {
    recall: sums.withHeavy > 0 ? recall / sums.withHeavy : NaN,
    listMass: mean(listMass),
    exactMass: mean(exactMass),
    windowMass: mean(windowMass),
    sameLengthWindowMass: mean(sameLengthWindowMass),
    recovered: exactMass > windowMass ? (listMass - windowMass) / (exactMass - windowMass) : NaN,
    listLength: mean(listLength),
    listError: ofOutput(sums.listError),
    exactError: ofOutput(sums.exactError),
    windowError: ofOutput(sums.windowError),
    listCosine: ofOutput(sums.listCosine),
  };
}
