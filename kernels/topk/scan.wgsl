// Shared part of the kernels that count with one workgroup: prefix sums with one barrier per doubling, in
// two buffers by turns (Hillis, Steele 1986). Needs WG. A barrier must separate two calls.

override SCAN_WORDS: u32 = 2u * WG;  // named: two unnamed lengths in one module crash Naga 29

var<workgroup> wg_scan: array<u32, SCAN_WORDS>;  // 8 bytes per invocation

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  var sum = value;
  var at = 0u;
  wg_scan[lane] = sum;
  workgroupBarrier();
  for (var step = 1u; step < WG; step *= 2u) {
    if (lane >= step) { sum += wg_scan[at + lane - step]; }
    at = WG - at;
    wg_scan[at + lane] = sum;
    workgroupBarrier();
  }
  return sum;
}
