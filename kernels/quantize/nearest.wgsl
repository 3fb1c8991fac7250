// Shared part of every kernel that codes keys. All GPU pipelines use these functions and sum columns in
// the order of `columns.wgsl`, so they agree on every code to the byte.
//
// The squared distance is summed as (x - c)^2 column by column, never in the expanded form
// |x|^2 - 2xc + |c|^2, which cancels badly where key and centroid are close.

fn add_squared_difference(sum: f32, x: f32, c: f32) -> f32 {
  let t = x - c;
  return fma(t, t, sum);
}

// The column that metric "ip" appends to a subvector: sqrt(max(phi - |x|^2, 0)).
fn augmented_column(phi: f32, squared_norm: f32) -> f32 {
  return sqrt(max(phi - squared_norm, 0.0));
}

// Nothing was nearer yet: one above +inf, so that an infinite distance still wins over none.
const NO_DISTANCE = 0x7f800001u;

// Distances are >= 0, so their bits order as they do; NaN bits are larger than NO_DISTANCE or equal
// to it, so a NaN never wins. (Comparing as f32 would not do: compilers fold NaN tests away.)
fn is_nearer(distance: f32, best_bits: u32) -> bool {
  return bitcast<u32>(distance) < best_bits;
}

// Where the subvector of `group` begins in the step's i-th coded new key.
fn key_at(group: u32, i: u32) -> u32 {
  let key_ix = group / SUBVECTORS * params.n_new_keys + params.first_new_key + i;
  return (key_ix * SUBVECTORS + group % SUBVECTORS) * SUB_WIDTH;
}
