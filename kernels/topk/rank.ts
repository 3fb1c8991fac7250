/**
 * Ranks: u32 numbers that order as scores do. Twin of `rank.wgsl`.
 *
 * @module
 */

/** Rank of a token that is no candidate. */
export const NO_CANDIDATE = 0;

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** Rank of an f32 score: NaN is 1, then −inf < … < −0 = +0 < … < +inf. */
export function rankOf(score: number): number {
  float[0] = score;
  const magnitude = bits[0] & 0x7fffffff;
  if (magnitude > 0x7f800000) return 1;
  if (magnitude === 0) return 0x80000000;
  return (bits[0] > 0x7fffffff ? ~bits[0] : bits[0] | 0x80000000) >>> 0;
}
