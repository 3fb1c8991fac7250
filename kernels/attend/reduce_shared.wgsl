// Maximum and sum over a workgroup, through workgroup memory, halving. Needs WG, a power of two. In uniform control flow
// only; both begin and end with a barrier.

var<workgroup> wg_reduced: array<f32, WG>;  // 4 bytes per invocation

fn greatest(lane: u32, value: f32) -> f32 {
  wg_reduced[lane] = value;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) { wg_reduced[lane] = max(wg_reduced[lane], wg_reduced[lane + half]); }
  }
  return workgroupUniformLoad(&wg_reduced[0]);
}

fn total(lane: u32, value: f32) -> f32 {
  wg_reduced[lane] = value;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) { wg_reduced[lane] += wg_reduced[lane + half]; }
  }
  return workgroupUniformLoad(&wg_reduced[0]);
}
