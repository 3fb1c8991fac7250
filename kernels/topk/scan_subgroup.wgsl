// Shared part of the kernels that count with one workgroup: prefix sums within subgroups by shuffles, then over
// subgroups: one barrier in place of one per doubling. (Shuffles, as subgroupInclusiveAdd takes 1.7 to 2.4 times
// as long on an NVIDIA H200.) Needs WG; invocations lie in subgroups in order of their index (a test checks it). A
// barrier must separate two calls.

enable subgroups;

override SUBGROUP_SIZE: u32;
override N_SUBGROUPS: u32 = (WG + SUBGROUP_SIZE - 1u) / SUBGROUP_SIZE;

var<workgroup> wg_scan: array<u32, N_SUBGROUPS>;  // 4 bytes per subgroup

// Adds what the invocation `distance` before this one has.
fn add_from(within: u32, sum: u32, distance: u32) -> u32 {
  let other = subgroupShuffleUp(sum, distance);
  return sum + select(0u, other, within >= distance);
}

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  let subgroup = lane / SUBGROUP_SIZE;
  let within = lane % SUBGROUP_SIZE;
  var sum = add_from(within, value, 1u);
  if (SUBGROUP_SIZE > 2u) { sum = add_from(within, sum, 2u); }
  if (SUBGROUP_SIZE > 4u) { sum = add_from(within, sum, 4u); }
  if (SUBGROUP_SIZE > 8u) { sum = add_from(within, sum, 8u); }
  if (SUBGROUP_SIZE > 16u) { sum = add_from(within, sum, 16u); }
  if (SUBGROUP_SIZE > 32u) { sum = add_from(within, sum, 32u); }
  if (SUBGROUP_SIZE > 64u) { sum = add_from(within, sum, 64u); }
  if (within == SUBGROUP_SIZE - 1u) { wg_scan[subgroup] = sum; }
  workgroupBarrier();
  var before = 0u;
  if (within < subgroup) { before = wg_scan[within]; }
  if (N_SUBGROUPS > SUBGROUP_SIZE) {
    for (var i = within + SUBGROUP_SIZE; i < subgroup; i += SUBGROUP_SIZE) { before += wg_scan[i]; }
  }
  return subgroupAdd(before) + sum;
}
