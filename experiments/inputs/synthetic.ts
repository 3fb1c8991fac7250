/**
 * Seeded synthetic vectors. Gaussian keys are easy to make and mislead about quality: use them for
 * timing, clustered ones for shapes that have structure, tied ones to test tie rules.
 *
 * @module
 */

import { Random } from "../../indexer/kmeans.ts";

/** Standard normal values (Box, Muller 1958), f32. */
export function gaussian(count: number, seed: number): Float32Array {
  const random = new Random(seed);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - random.uniform()));
    const angle = 2 * Math.PI * random.uniform();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

/** `count` vectors around `clusters` Gaussian centers, each center's vectors within `spread` of it. */
export function clustered(count: number, width: number, clusters: number, spread: number, seed: number): Float32Array {
  const centers = gaussian(clusters * width, seed);
  const noise = gaussian(count * width, seed + 1);
  const random = new Random(seed + 2);
  const values = new Float32Array(count * width);
  for (let i = 0; i < count; i++) {
    const center = random.below(clusters) * width;
    for (let j = 0; j < width; j++) values[i * width + j] = centers[center + j] + spread * noise[i * width + j];
  }
  return values;
}

/** Integers −most … most: every product and sum is exact in f32, and scores tie heavily. */
export function tied(count: number, most: number, seed: number): Float32Array {
  const random = new Random(seed);
  return Float32Array.from({ length: count }, () => random.below(2 * most + 1) - most);
}

/**
 * Keys or values of many heads, f32 `[heads, N, D]`, out of those of one: those of a head are those of the one before, some
 * tokens on. For timing: as long as N is 7 · heads at least, no two heads have the same token in one place.
 */
export function alike(one: Float32Array, width: number, heads: number): Float32Array<ArrayBuffer> {
  const all = new Float32Array(heads * one.length);
  for (let head = 0; head < heads; head++) {
    const shift = head * 7 * width % one.length;
    all.set(one.subarray(shift), head * one.length);
    all.set(one.subarray(0, shift), (head + 1) * one.length - shift);
  }
  return all;
}
