/**
 * How a workgroup counts: the choice between prefix sums through workgroup memory and through subgroups.
 *
 * @module
 */

/** The choice. */
export interface Scan {
  /** Invocations per workgroup, a power of two. */
  readonly invocations: number;
  /** Invocations per subgroup where they are used, a power of two; 0 for the portable path. */
  readonly subgroupSize: number;
}

/** Bins of the histogram in `kth.wgsl`. */
export const N_BINS = 2048;

/** The WGSL part that defines scan_sum. */
export function scanPart({ subgroupSize }: Scan): string {
  return subgroupSize > 0 ? "topk/scan_subgroup.wgsl" : "topk/scan.wgsl";
}

/** The overrides of a kernel that scans. */
export function scanOverrides({ invocations, subgroupSize }: Scan): Record<string, number> {
  return { WG: invocations, ...(subgroupSize > 0 ? { SUBGROUP_SIZE: subgroupSize } : {}) };
}

/** Bytes of workgroup memory that the scan takes. */
export function scanBytes({ invocations, subgroupSize }: Scan): number {
  return subgroupSize > 0 ? Math.ceil(invocations / subgroupSize) * 4 : 8 * invocations;
}
