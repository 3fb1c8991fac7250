// Shared part of the kernels that count with one workgroup: prefix sums within subgroups, then over subgroups: one
// barrier in place of one per doubling. Needs WG; invocations lie in subgroups in order of their index (a test
// checks it). A barrier must separate two calls.
//
// No shuffles, which on an NVIDIA H200 would take 90 ns in place of 150: compiled into these kernels they ran before
// the subgroup was together again and gave wrong sums (driver 580); WGSL has no way to ask for that.

enable subgroups;

override SUBGROUP_SIZE: u32;
override N_SUBGROUPS: u32 = (WG + SUBGROUP_SIZE - 1u) / SUBGROUP_SIZE;

var<workgroup> wg_scan: array<u32, N_SUBGROUPS>;  // 4 bytes per subgroup

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  let subgroup = lane / SUBGROUP_SIZE;
  let within = lane % SUBGROUP_SIZE;
  let sum = subgroupInclusiveAdd(value);
  if (within == SUBGROUP_SIZE - 1u) { wg_scan[subgroup] = sum; }
  workgroupBarrier();
  var before = select(0u, wg_scan[min(within, N_SUBGROUPS - 1u)], within < subgroup);
  if (N_SUBGROUPS > SUBGROUP_SIZE) {
    for (var i = within + SUBGROUP_SIZE; i < subgroup; i += SUBGROUP_SIZE) { before += wg_scan[i]; }
  }
  return subgroupAdd(before) + sum;
}
