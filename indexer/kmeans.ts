/**
 * Training of the codebook: seeded k-means in plain TypeScript, per batch, KV head and subvector.
 * The same keys and seed give the same bytes on every machine: only +, −, ×, ÷ and √ are used.
 *
 * @module
 */

import { centroidWidth, type LayerShape, subWidth } from "../kernels/shape.ts";
import { refuse } from "./config.ts";
import { type Codebook, referenceCodes } from "./reference.ts";

/** Options of {@linkcode trainCodebook}. */
export interface TrainOptions {
  /** Seed of the start and of the sample. Default 0. */
  readonly seed?: number;
  /** Most Lloyd iterations. Default 10. */
  readonly iterations?: number;
  /** Tokens before this one are left out (they are never coded). Default 0. */
  readonly initOffset?: number;
  /**
   * Most keys per centroid that training looks at; more are sampled down, as FAISS does
   * (`max_points_per_centroid`). Default 256.
   */
  readonly maxKeysPerCentroid?: number;
  /**
   * A group is done once its distortion falls by no more than this share of it in an iteration. Default 0: once it falls no
   * more.
   */
  readonly tolerance?: number;
  /** Called after every group of (batch, KV head, subvector). */
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Refuses what no training can start with.
 *
 * @param t tokens per (batch, KV head)
 * @throws {RangeError}
 */
export function checkTraining(shape: LayerShape, t: number, options: TrainOptions): void {
  const { iterations = 10, initOffset = 0, tolerance = 0, maxKeysPerCentroid = 256 } = options;
  const action = "train a codebook";
  for (const [name, value] of Object.entries({ iterations, maxKeysPerCentroid })) {
    if (!Number.isInteger(value) || value < 1) refuse(action, `${name} must be an integer ≥ 1`, `${name} is ${value}`);
  }
  if (!(tolerance >= 0 && tolerance < 1)) {
    refuse(action, "tolerance must be a share, 0 or more and less than 1", `tolerance is ${tolerance}`);
  }
  if (t - initOffset < shape.centroids) {
    refuse(
      action,
      "there must be at least C keys from initOffset on",
      `C is ${shape.centroids}, keys are ${Math.max(t - initOffset, 0)} (${t} tokens, initOffset ${initOffset})`,
    );
  }
}

/** @throws {RangeError} too few keys without NaN and ±inf */
export function refuseFewFinite(shape: LayerShape, where: string, has: number, of = ""): never {
  return refuse(
    "train a codebook",
    `there must be at least C finite keys${of}`,
    `C is ${shape.centroids}, ${where} has ${has}`,
  );
}

/** @throws {RangeError} if a squared norm is beyond f32 */
export function refusePhi(phi: Float32Array): void {
  const beyond = phi.find((value) => !Number.isFinite(value));
  if (beyond !== undefined) {
    refuse("train a codebook", "squared norms of subvectors must be finite in f32", `the largest is ${beyond}`);
  }
}

/** Seeded random numbers: PCG32 (O'Neill 2014), the XSH RR variant. */
export class Random {
  #state: bigint;

  /** Any integer is a seed. */
  constructor(seed: number) {
    this.#state = 0n;
    this.u32();
    this.#state += BigInt(Math.trunc(seed));
    this.u32();
  }

  /** Uniform u32. */
  u32(): number {
    const old = this.#state;
    this.#state = (old * 6364136223846793005n + 1442695040888963407n) & 0xffff_ffff_ffff_ffffn;
    const shifted = Number(((old >> 18n) ^ old) >> 27n & 0xffff_ffffn);
    const turn = Number(old >> 59n);
    return ((shifted >>> turn) | (shifted << (-turn & 31))) >>> 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    return this.u32() / 2 ** 32;
  }

  /** Uniform integer in [0, n). */
  below(n: number): number {
    return Math.floor(this.uniform() * n);
  }
}

/**
 * Trains a codebook on the keys of a prompt.
 *
 * @param keys f32 `[B, Hkv, n, D]`; subvectors that hold NaN or ±inf are left out of the training
 * @returns centroids, phi for metric "ip", and u8 codes `[B, Hkv, M, n − initOffset]` of those centroids
 * @throws {RangeError} if fewer (finite) keys than centroids remain after `initOffset`, or if squared norms
 * overflow f32 (metric "ip")
 */
export function trainCodebook(
  shape: LayerShape,
  keys: Float32Array,
  options: TrainOptions = {},
): Codebook & { readonly codes: Uint8Array } {
  const codebook = trainCentroids(shape, keys, options);
  return { ...codebook, codes: referenceCodes(shape, codebook, keys, options.initOffset ?? 0) };
}

/** {@linkcode trainCodebook} without the codes: the index codes the keys itself. */
export function trainCentroids(shape: LayerShape, keys: Float32Array, options: TrainOptions = {}): Codebook {
  const { seed = 0, iterations = 10, initOffset = 0, maxKeysPerCentroid = 256, tolerance = 0, onProgress } = options;
  const nKv = shape.batch * shape.kvHeads;
  const t = keys.length / (nKv * shape.headWidth);
  const n = t - initOffset;
  if (!Number.isInteger(t)) {
    refuse(
      "train a codebook",
      `keys must be f32 [B, Hkv, n, D], a multiple of ${nKv * shape.headWidth} values`,
      `length is ${keys.length}`,
    );
  }
  checkTraining(shape, t, options);
  const d = subWidth(shape), width = centroidWidth(shape);
  const nGroups = nKv * shape.subvectors;
  const centroids = new Float32Array(nGroups * shape.centroids * width);
  const phi = shape.augmented ? new Float32Array(nGroups) : undefined;
  for (let group = 0; group < nGroups; group++) {
    const kv = Math.floor(group / shape.subvectors), m = group % shape.subvectors;
    const random = new Random(seed + group);
    const startOf = (i: number) => ((kv * t + initOffset + i) * shape.subvectors + m) * d;
    const norms = new Float32Array(n);
    const finite: number[] = [];
    for (let i = 0; i < n; i++) {
      let norm = 0;
      for (let j = 0; j < d; j++) norm += keys[startOf(i) + j] ** 2;
      // Squares of finite f32 values stay finite in f64.
      if (!Number.isFinite(norm)) continue;
      norms[i] = norm;
      finite.push(i);
      if (phi) phi[group] = Math.max(phi[group], norm);
    }
    if (finite.length < shape.centroids) {
      refuseFewFinite(shape, `KV head ${kv}, subvector ${m}`, finite.length);
    }
    if (phi) refusePhi(phi.subarray(group, group + 1));
    const sample = sampleSorted(random, finite.length, Math.min(finite.length, maxKeysPerCentroid * shape.centroids));
    const points = new Float32Array(sample.length * width);
    sample.forEach((nth, p) => {
      const i = finite[nth];
      points.set(keys.subarray(startOf(i), startOf(i) + d), p * width);
      if (phi) points[p * width + d] = Math.sqrt(Math.max(phi[group] - norms[i], 0));
    });
    const found = kmeans(points, width, shape.centroids, iterations, tolerance, random);
    centroids.set(found, group * shape.centroids * width);
    onProgress?.(group + 1, nGroups);
  }
  return phi ? { centroids, phi } : { centroids };
}

/** `count` of the numbers 0 … n − 1, each equally likely, ascending (partial Fisher-Yates shuffle). */
function sampleSorted(random: Random, n: number, count: number): Uint32Array {
  const all = Uint32Array.from({ length: n }, (_, i) => i);
  if (count < n) {
    for (let i = 0; i < count; i++) {
      const other = i + random.below(n - i);
      [all[i], all[other]] = [all[other], all[i]];
    }
  }
  return all.slice(0, count).sort();
}

function squaredDistanceTo(
  points: Float32Array,
  p: number,
  centers: ArrayLike<number>,
  c: number,
  width: number,
): number {
  let sum = 0;
  for (let j = 0; j < width; j++) {
    const difference = points[p + j] - centers[c + j];
    sum += difference * difference;
  }
  return sum;
}

/** k-means++ start (Arthur, Vassilvitskii 2007), then {@linkcode lloyd}. */
function kmeans(
  points: Float32Array,
  width: number,
  k: number,
  iterations: number,
  tolerance: number,
  random: Random,
): Float32Array {
  const n = points.length / width;
  const centers = new Float32Array(k * width);
  const nearest = new Float64Array(n).fill(Infinity);
  let next = random.below(n);
  for (let c = 0; c < k; c++) {
    centers.set(points.subarray(next * width, (next + 1) * width), c * width);
    let total = 0;
    for (let p = 0; p < n; p++) {
      const distance = squaredDistanceTo(points, p * width, centers, c * width, width);
      if (distance < nearest[p]) nearest[p] = distance;
      total += nearest[p];
    }
    let left = random.uniform() * total;
    next = 0;
    while (next < n - 1 && (left -= nearest[next]) >= 0) next++;
  }

  lloyd(points, width, centers, iterations, tolerance);
  return centers;
}

/**
 * Lloyd iterations in f64 until no point moves or the distortion falls by no more than the tolerance. An empty cluster takes
 * the point that is farthest from its centroid.
 *
 * @param points `[n, width]`
 * @param centers `[k, width]`, the start; becomes the result
 * @returns the sum of squared distances at the last assignment
 */
export function lloyd(
  points: Float32Array,
  width: number,
  centers: Float32Array | Float64Array,
  iterations: number,
  tolerance = 0,
): number {
  const n = points.length / width, k = centers.length / width;
  const nearest = new Float64Array(n);
  const owner = new Uint32Array(n).fill(k);
  const sums = new Float64Array(k * width);
  const counts = new Uint32Array(k);
  let before = Infinity;
  for (let iteration = 0; iteration < iterations; iteration++) {
    let moved = 0, distortion = 0, filled = 0;
    sums.fill(0);
    counts.fill(0);
    for (let p = 0; p < n; p++) {
      let best = 0, distance = Infinity;
      for (let c = 0; c < k; c++) {
        const candidate = squaredDistanceTo(points, p * width, centers, c * width, width);
        if (candidate < distance) {
          distance = candidate;
          best = c;
        }
      }
      if (owner[p] !== best) moved++;
      owner[p] = best;
      nearest[p] = distance;
      distortion += distance;
      counts[best]++;
      for (let j = 0; j < width; j++) sums[best * width + j] += points[p * width + j];
    }
    for (let c = 0; c < k; c++) {
      if (counts[c] > 0) {
        for (let j = 0; j < width; j++) centers[c * width + j] = sums[c * width + j] / counts[c];
      } else {
        let farthest = 0;
        for (let p = 1; p < n; p++) if (nearest[p] > nearest[farthest]) farthest = p;
        if (nearest[farthest] > 0) {
          centers.set(points.subarray(farthest * width, (farthest + 1) * width), c * width);
          nearest[farthest] = 0;
          filled++;
        }
      }
    }
    const last = before;
    before = distortion;
    if (filled === 0 && (moved === 0 || (iteration > 0 && last - distortion <= tolerance * last))) break;
  }
  return before;
}
