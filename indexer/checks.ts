/**
 * What "right" means, as code: codes within the derived bound of the nearest centroid, lists equal
 * to the oracle's up to exchanges that f32 rounding explains, ties to the lower token.
 *
 * @module
 */

import { centroidWidth, type LayerShape, subWidth } from "../kernels/shape.ts";
import { distanceBound, halfBound, halfUnit, isExact, scoreBound, softmaxBounds, summedBound } from "./bounds.ts";
import { type ResolvedConfig, sizeAt } from "./config.ts";
import {
  type Codebook,
  kvOfHead,
  referenceScores,
  referenceSelect,
  referenceTable,
  squaredDistance,
  subvector,
} from "./reference.ts";
import type { SelectionData } from "./selection.ts";

/** Outcome of a check: no error is right. */
export interface Check {
  /** Places looked at: codes, or lists. */
  readonly checked: number;
  /** Heavy tokens of the lists that were looked at. */
  readonly heavy: number;
  /** Places that are right but differ from the f64 oracle within the rounding bound. */
  readonly exchanges: number;
  /** How many places are wrong. */
  readonly errors: number;
  /** The first wrong place in words; empty if there is none. */
  readonly firstError: string;
}

class Tally implements Check {
  checked = 0;
  heavy = 0;
  exchanges = 0;
  errors = 0;
  firstError = "";

  fail(message: string): void {
    if (this.errors++ === 0) this.firstError = message;
  }
}

/** The largest share of a pipeline's heavy tokens that rounding may excuse. A bound that excuses more checks nothing. */
export const MAX_EXCHANGED_SHARE = 0.05;

/**
 * Lists' checks of one pipeline, judged together: an error if more than {@linkcode MAX_EXCHANGED_SHARE} of the heavy tokens
 * were exchanged, though each exchange alone is within its bound.
 */
export function judgeExchanges(checks: readonly Check[]): Check {
  const joined = joinChecks(checks);
  if (joined.exchanges <= MAX_EXCHANGED_SHARE * joined.heavy) return joined;
  const why = `${joined.exchanges} of ${joined.heavy} heavy tokens were exchanged, more than ${
    100 * MAX_EXCHANGED_SHARE
  } %: the rounding bound excuses too much`;
  return { ...joined, errors: joined.errors + 1, firstError: joined.firstError || why };
}

/** One check made of several. */
export function joinChecks(checks: readonly Check[]): Check {
  const joined = new Tally();
  for (const check of checks) {
    joined.checked += check.checked;
    joined.heavy += check.heavy;
    joined.exchanges += check.exchanges;
    if (check.errors > 0 && joined.errors === 0) joined.firstError = check.firstError;
    joined.errors += check.errors;
  }
  return joined;
}

/**
 * Checks the codes of keys: the f64 distance of each chosen centroid is within the f32 bound of the
 * minimum, and where rounding cannot tell centroids apart (identical ones, integers) the lowest is
 * chosen.
 *
 * @param keys f32 `[B, Hkv, t, D]`
 * @param codes u8 `[B, Hkv, M, t − first]` of keys first … t − 1
 */
export function checkCodes(
  shape: LayerShape,
  codebook: Codebook,
  keys: Float32Array,
  codes: Uint8Array,
  first = 0,
): Check {
  const tally = new Tally();
  const nKv = shape.batch * shape.kvHeads;
  const t = keys.length / (nKv * shape.headWidth);
  const count = t - first;
  if (codes.length !== nKv * shape.subvectors * count) {
    tally.fail(`${codes.length} codes for ${nKv * shape.subvectors * count} subvectors`);
    return tally;
  }
  const twins = identicalCentroids(shape, codebook, centroidWidth(shape));
  for (let kv = 0; kv < nKv; kv++) {
    for (let m = 0; m < shape.subvectors; m++) {
      const group = kv * shape.subvectors + m;
      for (let i = 0; i < count; i++) {
        tally.checked++;
        const code = codes[group * count + i];
        const where = `code of key ${first + i}, KV head ${kv}, subvector ${m}`;
        if (code >= shape.centroids) {
          tally.fail(`${where} is ${code} of ${shape.centroids} centroids`);
          continue;
        }
        const x = subvector(shape, codebook, keys, kv * t + first + i, kv, m);
        let best = 0, nearest = NaN;
        for (let c = 0; c < shape.centroids; c++) {
          const distance = squaredDistance(shape, codebook, x, group, c);
          if (distance < nearest || (Number.isNaN(nearest) && !Number.isNaN(distance))) {
            nearest = distance;
            best = c;
          }
        }
        if (code === best) continue;
        const distance = squaredDistance(shape, codebook, x, group, code);
        const bound = distanceBound(shape, codebook, x, group, code) + distanceBound(shape, codebook, x, group, best);
        if (bound === 0 && distance === nearest) {
          tally.fail(`${where} is ${code}, the tie goes to the lower centroid ${best}`);
        } else if (twins[group * shape.centroids + code] !== code) {
          tally.fail(
            `${where} is ${code}, the tie goes to the identical centroid ${twins[group * shape.centroids + code]}`,
          );
        } else if (!(distance - nearest <= bound)) {
          tally.fail(`${where} is ${code} at distance ${distance}, centroid ${best} is at ${nearest} (bound ${bound})`);
        } else {
          tally.exchanges++;
        }
      }
    }
  }
  return tally;
}

/**
 * Checks that a step left older codes as they were.
 *
 * @param before u8 `[B, Hkv, M, n]`
 * @param after u8 `[B, Hkv, M, n + t]`
 */
export function checkKept(shape: LayerShape, before: Uint8Array, after: Uint8Array): Check {
  const tally = new Tally();
  const rows = shape.batch * shape.kvHeads * shape.subvectors;
  const n = before.length / rows, m = after.length / rows;
  before.forEach((code, at) => {
    tally.checked++;
    const now = after[Math.floor(at / n) * m + at % n];
    if (now !== code) tally.fail(`the step changed the code of coded token ${at % n} from ${code} to ${now}`);
  });
  return tally;
}

/** For every centroid the lowest one of its group whose first `columns` columns are the same. */
function identicalCentroids(shape: LayerShape, codebook: Codebook, columns: number): Uint8Array {
  const width = centroidWidth(shape);
  const lowest = new Uint8Array(codebook.centroids.length / width);
  for (let at = 0; at < lowest.length; at += shape.centroids) {
    const seen = new Map<string, number>();
    for (let c = 0; c < shape.centroids; c++) {
      const key = codebook.centroids.subarray((at + c) * width, (at + c) * width + columns).join();
      if (!seen.has(key)) seen.set(key, c);
      lowest[at + c] = seen.get(key)!;
    }
  }
  return lowest;
}

/** What a selection is checked against. */
export interface SelectionCase {
  /** The index's config. */
  readonly config: ResolvedConfig;
  /** First coded token. */
  readonly initOffset: number;
  /** Centroids; none before there is a codebook. */
  readonly codebook: Codebook | undefined;
  /** The pipeline's own codes, u8 `[B, Hkv, M, n]`. */
  readonly codes: Uint8Array;
  /** N, all cached tokens. */
  readonly nTokens: number;
  /** f32 `[B, H, rows, D]` */
  readonly query: Float32Array;
  /** Whether weights were asked for. */
  readonly weights: boolean;
  /** Whether any token of a tie is right: for other implementations, which promise no tie rule. */
  readonly anyTie?: boolean;
  /** Whether entries of the lookup table may be rounded to f16. Default false. */
  readonly halfTables?: boolean;
}

/** f64 scores of a case with the rounding bound of each. */
export interface BoundedScores {
  /** Coded tokens. */
  readonly n: number;
  /** f64 `[B, Hout, rows, n]` */
  readonly scores: Float64Array;
  /** How far the pipeline's score of coded token i can be from the exact one. */
  bound(list: number, i: number): number;
  /** True if both tokens have the same f32 score whatever the rounding: the same centroids. */
  identical(list: number, i: number, other: number): boolean;
}

/** Bounds of scores that come from codes and a codebook. */
export function boundedScores(
  selection: Pick<SelectionCase, "config" | "codes" | "query" | "halfTables" | "nTokens" | "initOffset">,
  codebook: Codebook,
  scores: Float64Array,
): BoundedScores {
  const { config: { shape, listShape, pooling }, codes, query, halfTables } = selection;
  const nHeadLists = query.length / shape.headWidth;
  const rows = nHeadLists / (shape.batch * shape.heads);
  const n = scores.length / (listShape.batch * listShape.heads * rows);
  const magnitudes = referenceTable(shape, codebook, query, (q, c) => Math.abs(q * c));
  const operands = referenceTable(shape, codebook, query, (q, c) => Math.abs(q) + Math.abs(c));
  const perToken = referenceScores(shape, magnitudes, codes, nHeadLists);
  const largest = perToken.reduce((most, value) => value > most ? value : most, 0);
  const group = shape.heads / listShape.heads;
  const exact = isExact([query, codebook.centroids], largest * group);
  const entries = halfTables ? referenceTable(shape, codebook, query) : undefined;
  /** |entry| of a table, at most. */
  const entryMost = (at: number) => Math.abs(entries![at]) + scoreBound(shape, magnitudes[at], operands[at], exact);
  /** The largest finite magnitude in the table of each query head, at most. */
  const largestEntries = Float64Array.from({ length: entries ? nHeadLists : 0 }, (_, list) => {
    const size = shape.subvectors * shape.centroids;
    let most = 0;
    for (let at = list * size; at < (list + 1) * size; at++) {
      if (Number.isFinite(entryMost(at))) most = Math.max(most, entryMost(at));
    }
    return most;
  });
  const twins = identicalCentroids(shape, codebook, subWidth(shape));
  const codeOf = (kv: number, m: number, i: number) => {
    const group = kv * shape.subvectors + m;
    return [group, codes[group * n + i]];
  };
  /** @param unit of the table's flushed entries, see {@linkcode halfUnit} */
  const sizesOf = (list: number, i: number, unit = halfUnit(largestEntries[list])) => {
    const kv = kvOfHead(shape, Math.floor(list / rows));
    let sizes = 0, halves = 0;
    for (let m = 0; m < shape.subvectors; m++) {
      const at = (list * shape.subvectors + m) * shape.centroids + codeOf(kv, m, i)[1];
      sizes += operands[at];
      if (entries) {
        halves += halfBound(entryMost(at), unit, exact);
      }
    }
    return { sizes, halves };
  };
  /** Of a query head's score. */
  const headBound = (list: number, i: number) => {
    const { sizes, halves } = sizesOf(list, i);
    // What rounding to f16 adds is summed in f32 like the rest: doubled, that is bounded as well.
    return scoreBound(shape, perToken[list * n + i], sizes, exact) + 2 * halves;
  };
  /** The lists of the query heads of a pooled list. */
  const headLists = (list: number) =>
    Array.from({ length: group }, (_, g) => (Math.floor(list / rows) * group + g) * rows + list % rows);
  const softmaxes = new Map<number, Float64Array>();
  const softmaxOf = (list: number) => {
    let bounds = softmaxes.get(list);
    if (!bounds) {
      const seen = selection.nTokens - rows + 1 + list % rows, { config, initOffset } = selection;
      const begin = Math.max(initOffset, sizeAt(config.sinkSize, seen)) - initOffset;
      const end = seen - sizeAt(config.windowSize, seen) - initOffset;
      const exactScores = referenceScores(shape, referenceTable(shape, codebook, query), codes, nHeadLists);
      bounds = new Float64Array(n);
      for (const head of headLists(list)) {
        const own = exactScores.slice(head * n + begin, head * n + end);
        softmaxBounds(shape, own, own.map((_, i) => headBound(head, begin + i)))
          .forEach((bound, i) => bounds![begin + i] += bound * (1 + group * 2 ** -22));
      }
      softmaxes.set(list, bounds);
    }
    return bounds;
  };
  return {
    n,
    scores,
    bound(list, i) {
      if (pooling === "perQueryHead") return headBound(list, i);
      if (pooling === "groupMax") return Math.max(...headLists(list).map((head) => headBound(head, i)));
      if (pooling === "groupSoftmax") return softmaxOf(list)[i] + group * 2 ** -23 * scores[list * n + i];
      const sum = (of: (head: number) => number) => headLists(list).reduce((total, head) => total + of(head), 0);
      const magnitude = sum((head) => perToken[head * n + i]), sizes = sum((head) => sizesOf(head, i).sizes);
      // The table of the summed query has one scale; its entries are at most the sum of the heads'.
      const unit = halfUnit(sum((head) => largestEntries[head]));
      return summedBound(shape, group, magnitude, sizes, exact) + 2 * sum((head) => sizesOf(head, i, unit).halves);
    },
    identical(list, i, other) {
      const kv = kvOfHead(listShape, Math.floor(list / rows));
      for (let m = 0; m < shape.subvectors; m++) {
        const [group, a] = codeOf(kv, m, i);
        const b = codeOf(kv, m, other)[1];
        if (twins[group * shape.centroids + a] !== twins[group * shape.centroids + b]) return false;
      }
      return true;
    },
  };
}

/**
 * Checks lists, lengths and weights of one step against the f64 oracle on the pipeline's own codes.
 * Two tokens may be exchanged if their f64 scores differ by at most the sum of their rounding
 * bounds, and only if rounding can tell them apart at all: of tokens with identical centroids the
 * lower one is taken, always.
 */
export function checkSelection(selection: SelectionCase, data: SelectionData): Check {
  const { config, codebook, nTokens, query, initOffset } = selection;
  const oracle = referenceSelect(config, codebook, selection.codes, nTokens, query, initOffset);
  // Bounds are only needed where a list differs, which is rare.
  let bounds: BoundedScores | undefined;
  const bounded = () =>
    codebook && oracle.scores.length > 0 ? bounds ??= boundedScores(selection, codebook, oracle.scores) : undefined;
  const tally = new Tally();
  const nLists = oracle.lists.length;
  if (data.lengths.length !== nLists) {
    tally.fail(`${data.lengths.length} lists where there must be ${nLists}`);
    return tally;
  }
  for (let list = 0; list < nLists; list++) {
    tally.checked++;
    const expected = oracle.lists[list];
    const where = `list ${list}`;
    const length = data.lengths[list];
    if (length !== expected.length || length > data.listStride) {
      tally.fail(`${where} has ${length} tokens, the oracle's has ${expected.length}`);
      continue;
    }
    const got = data.indices.subarray(list * data.listStride, list * data.listStride + length);
    const disorder = got.findIndex((token, j) => j > 0 && !(got[j - 1] < token));
    if (disorder > 0) {
      tally.fail(`${where} is not ascending at ${disorder}: ${got[disorder - 1]} then ${got[disorder]}`);
      continue;
    }
    tally.heavy += heavyOf(selection, list, expected);
    const before = tally.errors;
    checkWeights(tally, where, data, list, got, selection.weights);
    if (tally.errors === before) checkTokens(tally, where, list, selection, expected, got, bounded);
  }
  return tally;
}

/** First candidate of a list's row, and the first token after its candidates. */
function candidatesOf({ config, nTokens, initOffset, query }: SelectionCase, list: number) {
  const rows = query.length / config.shape.headWidth / (config.shape.batch * config.shape.heads);
  const seen = nTokens - rows + 1 + list % rows;
  const begin = Math.max(initOffset, sizeAt(config.sinkSize, seen)), end = seen - sizeAt(config.windowSize, seen);
  return { seen, begin, end };
}

/** Heavy tokens of a list; none where every token is listed. */
function heavyOf(selection: SelectionCase, list: number, expected: readonly number[]): number {
  const { seen, begin, end } = candidatesOf(selection, list);
  return expected.length === seen ? 0 : expected.filter((token) => token >= begin && token < end).length;
}

function checkWeights(
  tally: Tally,
  where: string,
  data: SelectionData,
  list: number,
  got: Uint32Array,
  asked: boolean,
): void {
  if (asked !== (data.weights !== undefined)) {
    return tally.fail(
      `${where}: weights were ${asked ? "" : "not "}asked for and are ${data.weights ? "" : "not "}there`,
    );
  }
  if (!data.weights) return;
  const row = data.weights.subarray(list * data.weightStride, (list + 1) * data.weightStride);
  if (row.length !== data.weightStride) return tally.fail(`${where} has ${row.length} weights of ${data.weightStride}`);
  let j = 0;
  for (let token = 0; token < row.length; token++) {
    const listed = j < got.length && got[j] === token;
    if (listed) j++;
    if (row[token] !== (listed ? 1 : 0)) {
      return tally.fail(`${where}: weight of ${listed ? "listed" : "unlisted"} token ${token} is ${row[token]}`);
    }
  }
  if (j < got.length) tally.fail(`${where}: listed token ${got[j]} has no weight`);
}

function checkTokens(
  tally: Tally,
  where: string,
  list: number,
  selection: SelectionCase,
  expected: readonly number[],
  got: Uint32Array,
  boundedScores: () => BoundedScores | undefined,
): void {
  const want = new Set(expected), have = new Set(got);
  const missing = expected.filter((token) => !have.has(token));
  const extra = [...got].filter((token) => !want.has(token));
  if (missing.length === 0) return;
  const wrong = (why: string) =>
    tally.fail(`${where} lists ${extra.join(" ")} instead of ${missing.join(" ")}: ${why}`);
  const bounded = boundedScores();
  if (!bounded) return wrong("every token is listed on the short path");

  const { scores, n } = bounded, { initOffset, anyTie = false } = selection;
  const { begin, end } = candidatesOf(selection, list);
  const outside = extra.concat(missing).find((token) => token < begin || token >= end);
  if (outside !== undefined) return wrong(`token ${outside} is no candidate (${begin} to ${end})`);

  const score = (token: number) => scores[list * n + token - initOffset];
  const bound = (token: number) => bounded.bound(list, token - initOffset);
  const identical = (a: number, b: number) => !anyTie && bounded.identical(list, a - initOffset, b - initOffset);
  for (const lower of missing) {
    const higher = got.find((token) => token > lower && token >= begin && token < end && identical(lower, token));
    if (higher !== undefined) return wrong(`${higher} ties with ${lower}, ties go to the lower token`);
  }
  for (const taken of extra) {
    for (let token = begin; token < taken; token++) {
      if (!have.has(token) && identical(token, taken)) {
        return wrong(`${taken} ties with ${token}, ties go to the lower token`);
      }
    }
  }
  // A perfect matching of missing with extra tokens exists if and only if the sorted ends match.
  const worst = missing.map((token) => score(token) - bound(token)).sort((a, b) => a - b);
  const best = extra.map((token) => score(token) + bound(token)).sort((a, b) => a - b);
  const exact = !anyTie && missing.concat(extra).every((token) => bound(token) === 0);
  for (let k = 0; k < worst.length; k++) {
    // NaN bounds (infinite scores) compare false: those tokens may not be exchanged.
    if (exact || !(worst[k] <= best[k])) {
      return wrong(
        `scores ${extra.map(score).join(" ")} against ${missing.map(score).join(" ")}, ` +
          `bounds ${extra.map(bound).join(" ")} and ${missing.map(bound).join(" ")}`,
      );
    }
  }
  tally.exchanges += missing.length;
}

/**
 * Checks the oracle's lists another way than it makes them: scores as q · (the key rebuilt from its
 * centroids), and a list is right if it is ascending, complete, and no unlisted candidate beats a
 * listed one: not by score, beyond f64 rounding, and not by token at the same score. For lists of query heads, without
 * re-ranking.
 */
export function checkOracle(selection: SelectionCase, data: SelectionData): Check {
  const { config, codebook, codes, nTokens, query, initOffset } = selection;
  const { shape } = config;
  const tally = new Tally();
  const d = subWidth(shape), width = centroidWidth(shape);
  const nLists = query.length / shape.headWidth;
  const rows = nLists / (shape.batch * shape.heads);
  const n = codes.length / (shape.batch * shape.kvHeads * shape.subvectors);
  if (data.lengths.length !== nLists) tally.fail(`${data.lengths.length} lists where there must be ${nLists}`);
  for (let list = 0; list < nLists; list++) {
    tally.checked++;
    const seen = nTokens - rows + 1 + list % rows;
    const S = sizeAt(config.sinkSize, seen), W = sizeAt(config.windowSize, seen), K = sizeAt(config.heavySize, seen);
    const isShort = seen <= K + initOffset + rows + shape.centroids || S + K + W >= seen;
    const tokens = data.indices.subarray(list * data.listStride, list * data.listStride + data.lengths[list]);
    const where = `list ${list}`;
    const fail = (why: string) => tally.fail(`${where} ${why}`);
    if (tokens.some((token, j) => j > 0 && !(tokens[j - 1] < token))) fail("is not ascending");
    if (tokens.some((token) => token >= seen)) fail(`lists a token beyond ${seen}`);
    checkWeights(tally, where, data, list, tokens, selection.weights);
    const listed = new Set(tokens);
    const kv = kvOfHead(shape, Math.floor(list / rows));
    let candidates = 0, heavy = 0, fixed = 0, slack = 0;
    const worst = { score: Infinity, token: -1 }, best = { score: -Infinity, token: Infinity };
    for (let token = 0; token < seen; token++) {
      const isFixed = isShort || token < S || token >= seen - W;
      const isCandidate = !isFixed && token >= initOffset;
      if (isFixed) {
        fixed++;
        if (!listed.has(token)) fail(`misses token ${token}`);
      }
      if (!isCandidate) continue;
      candidates++;
      let score = 0;
      for (let m = 0; m < shape.subvectors; m++) {
        const group = kv * shape.subvectors + m;
        const at = (group * shape.centroids + codes[group * n + token - initOffset]) * width;
        for (let j = 0; j < d; j++) {
          const term = query[list * shape.headWidth + m * d + j] * codebook!.centroids[at + j];
          score += term;
          slack = Math.max(slack, Math.abs(term) * shape.headWidth * 2 ** -50);
        }
      }
      if (listed.has(token)) {
        heavy++;
        if (score <= worst.score) Object.assign(worst, { score, token });
      } else if (score > best.score) {
        Object.assign(best, { score, token });
      }
    }
    if (heavy !== Math.min(K, candidates)) fail(`has ${heavy} heavy tokens of ${Math.min(K, candidates)}`);
    if (tokens.length !== fixed + heavy) fail(`has ${tokens.length} tokens, not ${fixed + heavy}`);
    if (!(worst.score >= best.score - slack)) fail(`lists a score ${worst.score} and leaves out ${best.score}`);
    if (worst.score === best.score && worst.token > best.token) {
      fail(`lists token ${worst.token} and leaves out ${best.token}, which ties and is lower`);
    }
  }
  return tally;
}

/**
 * Checks the oracle's codes another way than it makes them: by the expanded form ‖c‖² − 2 x·c, within
 * f64 rounding of the minimum.
 *
 * @param keys f32 `[B, Hkv, t, D]`
 * @param codes u8 `[B, Hkv, M, t − first]`
 */
export function checkOracleCodes(
  shape: LayerShape,
  codebook: Codebook,
  keys: Float32Array,
  codes: Uint8Array,
  first = 0,
): Check {
  const tally = new Tally();
  const d = subWidth(shape), width = centroidWidth(shape);
  const nKv = shape.batch * shape.kvHeads;
  const t = keys.length / (nKv * shape.headWidth), count = t - first;
  if (codes.length !== nKv * shape.subvectors * count) tally.fail(`${codes.length} codes`);
  const norms = new Float64Array(codebook.centroids.length / width);
  codebook.centroids.forEach((value, at) => norms[Math.floor(at / width)] += value * value);
  for (let group = 0; group < nKv * shape.subvectors; group++) {
    const kv = Math.floor(group / shape.subvectors), m = group % shape.subvectors;
    for (let i = 0; i < count; i++) {
      tally.checked++;
      const key = ((kv * t + first + i) * shape.subvectors + m) * d;
      let squared = 0;
      for (let j = 0; j < d; j++) squared += keys[key + j] * keys[key + j];
      const last = shape.augmented ? Math.sqrt(Math.max(codebook.phi![group] - squared, 0)) : 0;
      let least = Infinity, chosen = NaN, size = squared + last * last;
      for (let c = 0; c < shape.centroids; c++) {
        const at = (group * shape.centroids + c) * width;
        let dot = shape.augmented ? last * codebook.centroids[at + d] : 0;
        for (let j = 0; j < d; j++) dot += keys[key + j] * codebook.centroids[at + j];
        const value = norms[group * shape.centroids + c] - 2 * dot;
        size = Math.max(size, norms[group * shape.centroids + c]);
        least = Math.min(least, value);
        if (c === codes[group * count + i]) chosen = value;
      }
      if (!(chosen - least <= size * width * 2 ** -48)) {
        tally.fail(`code of key ${first + i}, KV head ${kv}, subvector ${m} is ${codes[group * count + i]}`);
      }
    }
  }
  return tally;
}
