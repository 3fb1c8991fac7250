/**
 * Rounding bounds of f32 arithmetic, derived from the operands: how far a score or a distance that
 * a GPU computes can be from the exact one. Nothing here is guessed.
 *
 * Model: every operation rounds once, relative error u = 2⁻²⁴; results and operands below 2⁻¹²⁶ may
 * be flushed to zero, absolute error 2⁻¹²⁶ each; `fma` may be fused or not; γ_k = k·u / (1 − k·u).
 * Source: Higham, Accuracy and Stability of Numerical Algorithms, 3.1 and 3.4.
 *
 * @module
 */

import { centroidWidth, type LayerShape, subWidth } from "../kernels/shape.ts";
import type { Codebook } from "./reference.ts";

const U = 2 ** -24;
const FLUSH = 2 ** -126;
const F32_MAX = 3.4028234663852886e38;

function gamma(k: number): number {
  return k * U / (1 - k * U);
}

/**
 * Bound of |score_f32 − score_exact| for a score whose products have magnitudes summing to `magnitude`.
 *
 * A table entry is d steps of multiply and add: at most d + 1 roundings touch a product (the product
 * itself and d additions). M − 1 additions join the entries. Together at most D/M + M ≤ γ_{d + M}.
 * Flushing: one product and one addition per column, M additions, and either operand of each product.
 *
 * @param magnitude Σ |q_j · c_j| over all D columns
 * @param operands Σ (|q_j| + |c_j|) over all D columns, for flushed operands
 * @param exact whether every product and sum is an integer below 2²⁴ (see {@linkcode isExact})
 */
export function scoreBound(shape: LayerShape, magnitude: number, operands: number, exact: boolean): number {
  if (exact) return 0;
  const relative = gamma(subWidth(shape) + shape.subvectors) * magnitude;
  const flushed = FLUSH * (2 * shape.headWidth + shape.subvectors + operands + 1);
  // A partial sum that overflows is ±inf or NaN: then nothing is known of the score.
  return magnitude + relative > F32_MAX ? Infinity : relative + flushed;
}

/**
 * Bound of the error of a score of a summed query: Σ over `heads` heads of q_h is off by γ_{heads − 1} Σ |q_h|, which the score
 * of that query inherits, and adds the rounding of its own.
 *
 * @param magnitude Σ over heads and columns of |q_hj · c_j|
 * @param operands Σ over heads and columns of |q_hj| + |c_j|
 */
export function summedBound(
  shape: LayerShape,
  heads: number,
  magnitude: number,
  operands: number,
  exact: boolean,
): number {
  if (exact) return 0;
  const inherited = gamma(heads) * magnitude;
  return scoreBound(shape, magnitude + inherited, operands, false) + inherited + FLUSH * heads * operands;
}

/** WGSL's exp is off by 3 + 2|x| units in the last place at most, each 2⁻²³ of the result. */
function expError(x: number): number {
  return (3 + 2 * Math.abs(x)) * 2 ** -23;
}

/**
 * Bound of |p̂ − p| for p = exp(x_i) / Σ exp(x_j), x = (score − largest) / √D, in f32: x is off by what the two scores are off
 * and by 6 roundings (of the difference, the product and 2 units in the last place of 1/√D), exp by its own error; the n terms of the sum are added in chains of n / 256 + 8; a quotient is off by
 * 2.5 units in the last place.
 *
 * @param scores of the row's candidates
 * @param bounds of them
 * @returns per candidate
 */
export function softmaxBounds(shape: LayerShape, scores: Float64Array, bounds: Float64Array): Float64Array {
  const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const most = bounds.reduce((a, b) => Math.max(a, b), 0);
  const relative = scores.map((score, i) => {
    const x = (score - largest) / Math.sqrt(shape.headWidth);
    const off = (bounds[i] + most) / Math.sqrt(shape.headWidth) + 6 * U * Math.abs(x);
    return Math.expm1(off) * (1 + expError(x)) + expError(x);
  });
  const shares = scores.map((score) => Math.exp((score - largest) / Math.sqrt(shape.headWidth)));
  const total = shares.reduce((a, b) => a + b, 0);
  const ofTotal = shares.reduce((sum, share, i) => sum + share * relative[i], 0) / total +
    gamma(scores.length / 256 + 8);
  if (!(ofTotal < 1)) return shares.map(() => Infinity); // nothing is known of such shares
  return shares.map((share, i) => share / total * ((1 + relative[i]) / (1 - ofTotal) * (1 + 5 * U) - 1) + 2 * FLUSH);
}

/**
 * What flushing can take from an entry of an f16 table, in units of 2⁻¹⁴: the inverse of the table's scale, at most. The scale is 1
 * while the largest finite magnitude lies between 1/4 and 65,504, else it brings that magnitude to 2¹⁴ .. 2¹⁵ (see
 * `entry_f16.wgsl`), so its inverse is at most 2⁻¹⁴ of the magnitude. Never falls as `largest` grows.
 *
 * @param largest the largest finite magnitude of the list's table, at most
 */
export function halfUnit(largest: number): number {
  const scaled = Math.max(2 ** -14 * largest, 2 ** -126);
  return largest < 0.25 ? scaled : Math.max(1, scaled);
}

/**
 * Bound of |f16(s · x̂) / s − x̂| for a table entry x̂ under the table's scale s: WGSL rounds to either neighbor, one unit in the
 * last place is 2⁻¹⁰ of the value at most, and a subnormal, below 2⁻¹⁴, may be flushed. Integers up to 2¹¹ convert without rounding.
 *
 * @param entry |x̂| at most
 * @param unit 1 / s at most, see {@linkcode halfUnit}
 * @param exact whether x̂ is an integer
 */
export function halfBound(entry: number, unit: number, exact: boolean): number {
  if (exact && entry <= 2 ** 11) return 0;
  return 2 ** -10 * entry + 2 ** -14 * unit;
}

/**
 * Whether f32 computes every score without rounding: all operands are integers and no partial sum
 * can reach 2²⁴. Then ties are real and the only right list is the oracle's.
 */
export function isExact(operands: Iterable<Float32Array>, largestMagnitude: number): boolean {
  if (!(largestMagnitude < 2 ** 24)) return false;
  for (const values of operands) {
    for (const value of values) if (!Number.isInteger(value)) return false;
  }
  return true;
}

/**
 * Bound of |distance_f32 − distance_exact| for x against centroid c of a group.
 *
 * Column: t = x − c rounds once and may be flushed, with flushed operands |t̂ − t| ≤ u|t| + 3·2⁻¹²⁶ =: e.
 * Its square is off by e(2|t| + e), then rounds with at most d + 1 further roundings in the sum.
 * "ip": the last column's x is √max(phi − ‖x‖², 0) with an error of its own, see below.
 * Integers whose squares sum to less than 2²⁴ are exact: bound 0, and ties are real.
 *
 * @param x the subvector, with metric "ip" its last column included
 * @param group (kv, m)
 */
export function distanceBound(
  shape: LayerShape,
  codebook: Codebook,
  x: readonly number[],
  group: number,
  c: number,
): number {
  const d = subWidth(shape), width = centroidWidth(shape);
  const at = (group * shape.centroids + c) * width;
  let distance = 0, squares = 0, exact = true;
  for (let j = 0; j < width; j++) {
    const t = Math.abs(x[j] - codebook.centroids[at + j]);
    exact &&= j < d && Number.isInteger(x[j]) && Number.isInteger(codebook.centroids[at + j]);
    let e = U * t + 3 * FLUSH;
    if (j === d) e += (1 + U) * augmentedColumnBound(shape, codebook.phi![group], x);
    squares += e * (2 * t + e);
    distance += t * t;
  }
  if (exact && distance < 2 ** 24) return 0;
  const rounded = gamma(width + 1) * (distance + squares);
  const flushed = FLUSH * (2 * width + 1);
  return distance + squares + rounded > F32_MAX ? Infinity : squares + rounded + flushed;
}

/**
 * Bound of the error of √max(phi − s, 0), s = ‖x‖²: s is d multiply-adds (γ_{d + 1}), the difference
 * rounds once; the root of a value off by δ lies between √max(w − δ, 0) and √(w + δ); WGSL gives √ the
 * accuracy of 1 / inverseSqrt: 2 + 2.5 ulp of at most 2u each, so 9u to first order; 10u.
 */
function augmentedColumnBound(shape: LayerShape, phi: number, x: readonly number[]): number {
  const d = subWidth(shape);
  let squaredNorm = 0, sizes = 0;
  for (let j = 0; j < d; j++) {
    squaredNorm += x[j] * x[j];
    sizes += Math.abs(x[j]);
  }
  const normError = gamma(d + 1) * squaredNorm + FLUSH * (2 * d + 2 * sizes + 1);
  const exact = phi - squaredNorm;
  const delta = normError + U * (Math.abs(exact) + normError) + FLUSH;
  const root = Math.sqrt(Math.max(exact, 0));
  const high = Math.sqrt(Math.max(exact + delta, 0));
  const low = Math.sqrt(Math.max(exact - delta, 0));
  return Math.max(high - root, root - low) + 10 * U * high + FLUSH;
}
