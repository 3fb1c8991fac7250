// How 16 invocations that share a row add their partial sums: by shuffles, in the order of `add_parts`, without
// a barrier. In place of `rows_shared.wgsl` where subgroups have 16 invocations or more.
// Shuffles need the subgroup together (see `scan_subgroup.wgsl`). Sums of widths that are no multiple of 16 end in a branch
// that some invocations skip: there a barrier brings them together.
// While there is more than one row, half of the 16 give away what the other half goes on with: 5 shuffles, not 16.

enable subgroups;

const ROWS_NEED_BARRIER = false;

override ROWS: u32 = WG / 4u;

fn add_rows(lane: u32, parts: vec4f) -> f32 {
  if (SUB_WIDTH % N_PARTS != 0u || CENTROID_WIDTH % N_PARTS != 0u) { workgroupBarrier(); }
  let is_upper = (lane & 8u) != 0u;
  let two = select(parts.xy, parts.zw, is_upper) + subgroupShuffleXor(select(parts.zw, parts.xy, is_upper), 8u);
  let is_odd = (lane & 4u) != 0u;
  var sum = select(two.x, two.y, is_odd) + subgroupShuffleXor(select(two.y, two.x, is_odd), 4u);
  sum += subgroupShuffleXor(sum, 2u);
  sum += subgroupShuffleXor(sum, 1u);
  return sum;
}

// Four invocations have the sum of one row; the first of them keeps it.
fn row_of(lane: u32) -> u32 {
  return select(WG, lane / N_PARTS + lane / 4u % 4u * (WG / N_PARTS), lane % 4u == 0u);
}
