// Shared part of the kernels that count with one workgroup: prefix sums within subgroups, then over
// subgroups: one barrier in place of one per doubling. Needs WG; invocations lie in subgroups in order of
// their index (a test checks it). A barrier must separate two calls.

enable subgroups;

override SUBGROUP_SIZE: u32;
override N_SUBGROUPS: u32 = (WG + SUBGROUP_SIZE - 1u) / SUBGROUP_SIZE;

var<workgroup> wg_scan: array<u32, N_SUBGROUPS>;  // 4 bytes per subgroup

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  let subgroup = lane / SUBGROUP_SIZE;
  let within = subgroupInclusiveAdd(value);
  if (lane % SUBGROUP_SIZE == SUBGROUP_SIZE - 1u) { wg_scan[subgroup] = within; }
  workgroupBarrier();
  var before = 0u;
  for (var i = lane % SUBGROUP_SIZE; i < subgroup; i += SUBGROUP_SIZE) { before += wg_scan[i]; }
  return subgroupAdd(before) + within;
}
