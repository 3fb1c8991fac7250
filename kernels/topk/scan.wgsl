// Shared part of the kernels that count with one workgroup. Needs WG.

var<workgroup> wg_scan: array<vec2u, WG>;  // 8 bytes per invocation

// Inclusive prefix sums over the workgroup (Hillis, Steele 1986).
fn scan_inclusive(lane: u32, value: vec2u) -> vec2u {
  wg_scan[lane] = value;
  workgroupBarrier();
  for (var step = 1u; step < WG; step *= 2u) {
    var sum = wg_scan[lane];
    if (lane >= step) { sum += wg_scan[lane - step]; }
    workgroupBarrier();
    wg_scan[lane] = sum;
    workgroupBarrier();
  }
  return wg_scan[lane];
}
