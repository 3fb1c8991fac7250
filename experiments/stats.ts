/**
 * Summary of repeated timings.
 *
 * @module
 */

/** Mean, median, extremes and sample standard deviation, all in the unit of the samples. */
export interface Summary {
  readonly mean: number;
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly sd: number;
  /** Number of samples. */
  readonly count: number;
}

/**
 * Summarizes samples.
 *
 * @throws {RangeError} for none
 */
export function summarize(samples: readonly number[]): Summary {
  const count = samples.length;
  if (count === 0) throw new RangeError("Cannot summarize as there must be a sample: there is none");
  const sorted = [...samples].sort((a, b) => a - b);
  const mean = samples.reduce((sum, value) => sum + value, 0) / count;
  const middle = count >> 1;
  const squares = samples.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return {
    mean,
    median: count % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2,
    min: sorted[0],
    max: sorted[count - 1],
    sd: count > 1 ? Math.sqrt(squares / (count - 1)) : 0,
    count,
  };
}
