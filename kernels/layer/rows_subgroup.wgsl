// How 16 invocations that share a row add their partial sums: by shuffles, in the order of `add_parts`, without
// a barrier. In place of `rows_shared.wgsl` where subgroups have 16 invocations or more.

enable subgroups;

// Every invocation of the 16 gets the sums of all four rows.
const SUMS_EVERYWHERE = true;

override ROWS: u32 = WG / 4u;

fn add_rows(lane: u32, parts: vec4f) -> vec4f {
  var sum = parts;
  sum += subgroupShuffleXor(sum, 8u);
  sum += subgroupShuffleXor(sum, 4u);
  sum += subgroupShuffleXor(sum, 2u);
  sum += subgroupShuffleXor(sum, 1u);
  return sum;
}

// Invocation 0 of the 16 keeps component 0, the next one component 1, and so on.
fn row_of(lane: u32, component: u32) -> u32 {
  return select(WG, lane / N_PARTS + component * (WG / N_PARTS), lane % N_PARTS == component);
}
