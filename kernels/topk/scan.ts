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

/** The WGSL part that defines scan_sum. */
export function scanPart({ subgroupSize }: Pick<Scan, "subgroupSize">): string {
  return subgroupSize > 0 ? "topk/scan_subgroup.wgsl" : "topk/scan.wgsl";
}

/** The WGSL parts that find a K-th highest rank, and scan_inclusive. */
export function narrowParts(scan: Scan): string[] {
  return [
    "topk/rank.wgsl",
    scanPart(scan),
    "topk/extremes.wgsl",
    "topk/scan_pair.wgsl",
    "topk/narrow.wgsl",
  ];
}

/** Bytes of workgroup memory that they take; WebGPU rounds every variable up to 16. */
export function narrowBytes(scan: Scan): number {
  return Math.ceil(scanBytes(scan) / 16) * 16 + 16 * scan.invocations + 64;
}

/** Whether 16 invocations can share a row by shuffles. */
export function sharesRows({ subgroupSize }: Scan): boolean {
  return subgroupSize >= 16;
}

/** The WGSL part that defines add_rows. */
export function rowsPart(scan: Scan): string {
  return sharesRows(scan) ? "layer/rows_subgroup.wgsl" : "layer/rows_shared.wgsl";
}

/** Bytes of workgroup memory that it takes. */
export function rowsBytes(scan: Scan): number {
  return sharesRows(scan) ? 0 : 17 * scan.invocations;
}

/** The overrides of a kernel that scans. */
export function scanOverrides({ invocations, subgroupSize }: Scan): Record<string, number> {
  return { WG: invocations, ...(subgroupSize > 0 ? { SUBGROUP_SIZE: subgroupSize } : {}) };
}

/** Bytes of workgroup memory that the scan takes. */
export function scanBytes({ invocations, subgroupSize }: Scan): number {
  return subgroupSize > 0 ? 2 * Math.ceil(invocations / subgroupSize / 4) * 16 : 8 * invocations;
}
