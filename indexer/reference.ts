/**
 * The oracle: the normative meaning of the step in plain TypeScript and f64, written to be
 * obviously right. It shares nothing with the kernels but the types.
 *
 * @module
 */

import { centroidWidth, type LayerShape, subWidth } from "../kernels/shape.ts";
import { initOffsetAt, type ResolvedConfig, sizeAt } from "./config.ts";

/** Centroids of one layer. */
export interface Codebook {
  /** f32 `[B, Hkv, M, C, d]`; with metric "ip" `[B, Hkv, M, C, d + 1]`. */
  readonly centroids: Float32Array;
  /** f32 `[B, Hkv, M]`, metric "ip" only: largest squared subvector norm seen in training. */
  readonly phi?: Float32Array;
}

/** The subvector that a centroid is compared with: with metric "ip" one column longer. */
export function subvector(
  shape: LayerShape,
  codebook: Codebook,
  keys: Float32Array,
  keyIx: number,
  kv: number,
  m: number,
): number[] {
  const d = subWidth(shape);
  const at = (keyIx * shape.subvectors + m) * d;
  const x = Array.from(keys.subarray(at, at + d));
  if (shape.augmented) {
    const squaredNorm = x.reduce((sum, value) => sum + value * value, 0);
    x.push(Math.sqrt(Math.max(codebook.phi![kv * shape.subvectors + m] - squaredNorm, 0)));
  }
  return x;
}

/** Squared distance of `x` to centroid c of group (kv, m). */
export function squaredDistance(
  shape: LayerShape,
  codebook: Codebook,
  x: readonly number[],
  group: number,
  c: number,
): number {
  const width = centroidWidth(shape);
  const at = (group * shape.centroids + c) * width;
  let sum = 0;
  for (let j = 0; j < width; j++) {
    const difference = x[j] - codebook.centroids[at + j];
    sum += difference * difference;
  }
  return sum;
}

/**
 * Nearest centroid per subvector, lowest number on a tie; a NaN distance never wins (all NaN: 0).
 *
 * @param keys f32 `[B, Hkv, t, D]`
 * @param first the first key of each (batch, KV head) that is coded; the rest up to t are
 * @returns u8 `[B, Hkv, M, t − first]`
 */
export function referenceCodes(
  shape: LayerShape,
  codebook: Codebook,
  keys: Float32Array,
  first = 0,
): Uint8Array {
  const nKv = shape.batch * shape.kvHeads;
  const t = keys.length / (nKv * shape.headWidth);
  const count = t - first;
  const codes = new Uint8Array(nKv * shape.subvectors * count);
  for (let kv = 0; kv < nKv; kv++) {
    for (let m = 0; m < shape.subvectors; m++) {
      const group = kv * shape.subvectors + m;
      for (let i = 0; i < count; i++) {
        const x = subvector(shape, codebook, keys, kv * t + first + i, kv, m);
        let best = 0, nearest = Infinity, found = false;
        for (let c = 0; c < shape.centroids; c++) {
          const distance = squaredDistance(shape, codebook, x, group, c);
          if (distance < nearest || (!found && distance === Infinity)) {
            best = c;
            nearest = distance;
            found = true;
          }
        }
        codes[group * count + i] = best;
      }
    }
  }
  return codes;
}

/** The KV head, counted over the batch, that query head `head` (counted over the batch) reads. */
export function kvOfHead(shape: LayerShape, head: number): number {
  const b = Math.floor(head / shape.heads);
  const h = head % shape.heads;
  return b * shape.kvHeads + Math.floor(h / (shape.heads / shape.kvHeads));
}

/**
 * lut[l, m, c] = q · centroid.
 *
 * @param query f32 `[B, H, rows, D]`
 * @param term what is summed: the product, or its magnitude for error bounds
 * @returns f64 `[B, H, rows, M, C]`
 */
export function referenceTable(
  shape: LayerShape,
  codebook: Codebook,
  query: Float32Array,
  term: (q: number, c: number) => number = (q, c) => q * c,
): Float64Array {
  const d = subWidth(shape), width = centroidWidth(shape);
  const nLists = query.length / shape.headWidth;
  const rows = nLists / (shape.batch * shape.heads);
  const lut = new Float64Array(nLists * shape.subvectors * shape.centroids);
  for (let list = 0; list < nLists; list++) {
    const kv = kvOfHead(shape, Math.floor(list / rows));
    for (let m = 0; m < shape.subvectors; m++) {
      for (let c = 0; c < shape.centroids; c++) {
        const q = list * shape.headWidth + m * d;
        const at = ((kv * shape.subvectors + m) * shape.centroids + c) * width;
        let sum = 0;
        for (let j = 0; j < d; j++) sum += term(query[q + j], codebook.centroids[at + j]);
        lut[(list * shape.subvectors + m) * shape.centroids + c] = sum;
      }
    }
  }
  return lut;
}

/**
 * score[l, i] = Σ_m lut[l, m, code[i, m]], m ascending.
 *
 * @param codes u8 `[B, Hkv, M, n]`
 * @param nLists B · H · rows
 * @returns f64 `[B, H, rows, n]`
 */
export function referenceScores(
  shape: LayerShape,
  lut: Float64Array,
  codes: Uint8Array,
  nLists: number,
): Float64Array {
  const n = codes.length / (shape.batch * shape.kvHeads * shape.subvectors);
  const rows = nLists / (shape.batch * shape.heads);
  const scores = new Float64Array(nLists * n);
  for (let list = 0; list < nLists; list++) {
    const kv = kvOfHead(shape, Math.floor(list / rows));
    for (let m = 0; m < shape.subvectors; m++) {
      const codeRow = (kv * shape.subvectors + m) * n;
      const lutRow = (list * shape.subvectors + m) * shape.centroids;
      for (let i = 0; i < n; i++) scores[list * n + i] += lut[lutRow + codes[codeRow + i]];
    }
  }
  return scores;
}

/**
 * Scores of the lists that a config has: those of the query heads, or pooled over the heads of each KV head.
 *
 * @param scores f64 `[B, H, rows, n]`
 * @param candidates the first and the end of a row's candidates, counted in coded tokens
 * @returns f64 `[B, Hout, rows, n]`; with "groupSoftmax" 0 at what is no candidate
 */
export function referencePool(
  { shape, pooling }: ResolvedConfig,
  scores: Float64Array,
  candidates: readonly (readonly [number, number])[],
): Float64Array {
  if (pooling === "perQueryHead") return scores;
  const rows = candidates.length, group = shape.heads / shape.kvHeads, nKv = shape.batch * shape.kvHeads;
  const n = scores.length / (shape.batch * shape.heads * rows);
  const pooled = new Float64Array(nKv * rows * n);
  for (let list = 0; list < nKv * rows; list++) {
    const kv = Math.floor(list / rows), r = list % rows;
    const own = Array.from({ length: group }, (_, g) => {
      const at = ((kv * group + g) * rows + r) * n;
      return scores.subarray(at, at + n);
    });
    const [begin, end] = candidates[r];
    for (const one of own) {
      let largest = -Infinity, total = 0;
      for (let i = begin; i < end; i++) largest = Math.max(largest, one[i]);
      const share = (score: number) => Math.exp((score - largest) / Math.sqrt(shape.headWidth));
      for (let i = begin; i < end; i++) total += share(one[i]);
      for (let i = 0; i < n; i++) {
        const at = list * n + i;
        if (pooling === "groupSum") pooled[at] += one[i];
        else if (pooling === "groupMax") pooled[at] = one === own[0] ? one[i] : Math.max(pooled[at], one[i]);
        else if (i >= begin && i < end) pooled[at] += share(one[i]) / total;
      }
    }
  }
  return pooled;
}

/** Sorts by score, best first: NaN below −∞, −0 equal to +0. Zero for a tie. */
export function compareScores(a: number, b: number): number {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
  return a === b ? 0 : b - a > 0 ? 1 : -1;
}

/** Cached keys, of which re-ranking reads those of the shortlists. */
export interface ReferenceKeys {
  /** f32 `[B, Hkv, stride, D]`. */
  readonly keys: Float32Array;
  /** Tokens from one (batch, KV head) to the next. */
  readonly stride: number;
}

/**
 * The tokens of a shortlist with the highest exact q·k, ties to the lower token.
 *
 * @param shape the shape that lists have
 * @param query f32 or f64 `[B, Hout, rows, D]`
 * @param keys f32 `[B, Hkv, stride, D]`
 * @param count how many
 * @returns tokens, ascending
 */
export function bestExact(
  shape: LayerShape,
  query: ArrayLike<number>,
  keys: Float32Array,
  stride: number,
  list: number,
  nRows: number,
  shortlist: readonly number[],
  count: number,
): number[] {
  const { headWidth } = shape, kv = kvOfHead(shape, Math.floor(list / nRows));
  const scored = shortlist.map((token) => {
    let score = 0;
    const q = list * headWidth, k = (kv * stride + token) * headWidth;
    for (let j = 0; j < headWidth; j++) score += query[q + j] * keys[k + j];
    return { token, score };
  });
  scored.sort((a, b) => compareScores(a.score, b.score) || a.token - b.token);
  return scored.slice(0, count).map(({ token }) => token).sort((a, b) => a - b);
}

/**
 * The list of one query row.
 *
 * @param scores f64 `[n]` of the coded tokens
 * @param nTokens tokens that the row sees
 * @param nRows sq
 * @param refined picks the heavy tokens of a shortlist; needed where the config re-ranks
 * @returns tokens, ascending, none twice
 */
export function referenceList(
  config: ResolvedConfig,
  initOffset: number,
  scores: Float64Array,
  nTokens: number,
  nRows: number,
  refined: (shortlist: readonly number[], count: number) => readonly number[] = (tokens, count) =>
    tokens.slice(0, count),
): number[] {
  const S = sizeAt(config.sinkSize, nTokens);
  const W = sizeAt(config.windowSize, nTokens);
  const K = sizeAt(config.heavySize, nTokens);
  const all = Array.from({ length: nTokens }, (_, token) => token);
  if (nTokens <= K + initOffset + nRows + config.shape.centroids) return all;
  if (S + K + W >= nTokens) return all;

  const sink = all.filter((token) => token < S);
  const window = all.filter((token) => token >= nTokens - W);
  const candidates = all.filter((token) => Math.max(initOffset, S) <= token && token < nTokens - W);
  const best = candidates.sort((a, b) => compareScores(scores[a - initOffset], scores[b - initOffset]) || a - b);
  const heavy = refined(best.slice(0, config.refine * K), K);
  return [...sink, ...heavy, ...window].sort((a, b) => a - b);
}

/** Queries of the lists that a config has: its own, or with pooling the sums over the heads of each KV head. */
export function summedQuery(
  { shape, pooling }: Pick<ResolvedConfig, "shape" | "pooling">,
  query: Float32Array,
  rows: number,
): ArrayLike<number> {
  if (pooling === "perQueryHead") return query;
  const each = rows * shape.headWidth, group = shape.heads / shape.kvHeads;
  const summed = new Float64Array(query.length / group);
  query.forEach((value, at) => {
    const head = Math.floor(at / each);
    summed[Math.floor(head / group) * each + at % each] += value;
  });
  return summed;
}

/** All lists of a step. */
export interface ReferenceSelection {
  /** One list per (batch, output head, row), ascending. */
  readonly lists: number[][];
  /** f64 `[B, Hout, rows, n]`, pooled where the config pools; empty if every row took the short path. */
  readonly scores: Float64Array;
}

/**
 * select(query) on given codes.
 *
 * @param codes u8 `[B, Hkv, M, n]` of tokens initOffset …, or none before there is a codebook
 * @param nTokens N, all cached tokens
 * @param query f32 `[B, H, rows, D]`
 * @param cached the cached keys, needed where the config re-ranks
 * @throws {RangeError} for lengths that do not fit the config
 */
export function referenceSelect(
  config: ResolvedConfig,
  codebook: Codebook | undefined,
  codes: Uint8Array,
  nTokens: number,
  query: Float32Array,
  initOffset: number = initOffsetAt(config, nTokens),
  cached?: ReferenceKeys,
): ReferenceSelection {
  const { shape } = config;
  const nLists = query.length / shape.headWidth;
  const rows = nLists / (shape.batch * shape.heads);
  const nGroups = shape.batch * shape.kvHeads * shape.subvectors;
  const wanted = codebook ? nGroups * Math.max(0, nTokens - initOffset) : 0;
  if (!Number.isInteger(rows) || codes.length !== wanted) {
    throw new RangeError(
      `Cannot select as query and codes must fit the config: ${query.length} values are ${rows} rows, ` +
        `${codes.length} codes for ${wanted}`,
    );
  }
  const candidates = Array.from({ length: rows }, (_, r): [number, number] => {
    const seen = nTokens - rows + 1 + r;
    const begin = Math.max(initOffset, sizeAt(config.sinkSize, seen));
    const end = Math.max(begin, seen - sizeAt(config.windowSize, seen));
    return [begin - initOffset, end - initOffset];
  });
  const scores = codebook
    ? referencePool(
      config,
      referenceScores(shape, referenceTable(shape, codebook, query), codes, nLists),
      candidates,
    )
    : new Float64Array(0);
  const { listShape } = config, nOut = listShape.batch * listShape.heads * rows;
  const n = scores.length / nOut;
  const pooledQuery = config.refine > 1 ? summedQuery(config, query, rows) : query;
  const lists = Array.from({ length: nOut }, (_, list) => {
    const seen = nTokens - rows + 1 + list % rows;
    const refined = config.refine === 1 ? undefined : (shortlist: readonly number[], count: number) => {
      if (!cached) throw new TypeError("Cannot re-rank as there are no cached keys: give them");
      return bestExact(listShape, pooledQuery, cached.keys, cached.stride, list, rows, shortlist, count);
    };
    return referenceList(config, initOffset, scores.subarray(list * n, (list + 1) * n), seen, rows, refined);
  });
  return { lists, scores };
}
