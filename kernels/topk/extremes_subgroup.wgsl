// In place of `extremes.wgsl` where there are subgroups: one invocation of each offers for all.

enable subgroups;

fn offer(lane: u32, highest: u32, not_lowest: u32) {
  let high = subgroupMax(highest);
  let not_low = subgroupMax(not_lowest);
  if (lane % SUBGROUP_SIZE == 0u) {
    atomicMax(&wg_highest, high);
    atomicMax(&wg_not_lowest, not_low);
  }
}
