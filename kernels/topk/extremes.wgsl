// Shared part of the kernels that narrow a range of ranks: its ends over the workgroup.

// Offers the highest of an invocation's ranks and the highest of their complements; 0 and 0 offer nothing.
fn offer(lane: u32, highest: u32, not_lowest: u32) {
  if (highest != NO_CANDIDATE) {
    atomicMax(&wg_highest, highest);
    atomicMax(&wg_not_lowest, not_lowest);
  }
}
