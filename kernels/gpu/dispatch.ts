/**
 * Dispatch sizes. Kernels number their workgroups 0, 1, 2 … in one line; WebGPU allows 65,535
 * per dimension, so longer lines are folded into y and the kernel unfolds them (`job_ix` in
 * `layer/layer.wgsl`) and skips the few workgroups past the end.
 *
 * @module
 */

/**
 * Folds a line of `workgroups` into x and y.
 *
 * @param workgroups how many, ≥ 0
 * @param perDimension the device's `maxComputeWorkgroupsPerDimension`
 * @returns `[x, y]` with x · y ≥ workgroups, x · y − workgroups < y, both ≤ `perDimension`;
 * `[0, 0]` for none
 * @throws {RangeError} where even x · y = perDimension² is too small
 */
export function foldWorkgroups(workgroups: number, perDimension: number): [number, number] {
  if (workgroups === 0) return [0, 0];
  const y = Math.ceil(workgroups / perDimension);
  if (y > perDimension) {
    throw new RangeError(
      `Cannot dispatch as workgroups must be at most ${perDimension} x ${perDimension}: workgroups is ${workgroups}`,
    );
  }
  return [Math.ceil(workgroups / y), y];
}
