// Shared part of the kernels that count with one workgroup: prefix sums within subgroups, then over subgroups: two
// barriers in place of one per doubling. Needs WG; invocations lie in subgroups in order of their index (a test
// checks it). A barrier must separate two calls.
//
// Of the subgroup functions only the prefix sum is used. On an NVIDIA H200 (driver 580) shuffles that were compiled into
// these kernels ran before the subgroup was together again and gave wrong sums; and with subgroupAdd for the sums over
// subgroups, which would save a barrier, code_list by 128 or 256 and a variant of cell_list gave wrong lists, whatever
// barriers stood around it. The same sums by the prefix sum are right.

enable subgroups;

override SUBGROUP_SIZE: u32;
override N_SUBGROUPS: u32 = (WG + SUBGROUP_SIZE - 1u) / SUBGROUP_SIZE;

var<workgroup> wg_scan: array<u32, N_SUBGROUPS>;         // 4 bytes per subgroup
var<workgroup> wg_scan_before: array<u32, N_SUBGROUPS>;  // 4 bytes per subgroup

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  let subgroup = lane / SUBGROUP_SIZE;
  let within = lane % SUBGROUP_SIZE;
  let is_last = within == SUBGROUP_SIZE - 1u;
  let sum = subgroupInclusiveAdd(value);
  if (is_last) { wg_scan[subgroup] = sum; }
  workgroupBarrier();
  var others = select(0u, wg_scan[min(within, N_SUBGROUPS - 1u)], within < subgroup);
  if (N_SUBGROUPS > SUBGROUP_SIZE) {
    for (var i = within + SUBGROUP_SIZE; i < subgroup; i += SUBGROUP_SIZE) { others += wg_scan[i]; }
  }
  let before = subgroupInclusiveAdd(others);
  if (is_last) { wg_scan_before[subgroup] = before; }
  workgroupBarrier();
  return wg_scan_before[subgroup] + sum;
}
