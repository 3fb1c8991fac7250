// Shared part of every kernel that codes keys. All GPU pipelines use these functions and walk the
// columns and the centroids upwards, so they agree on every code to the byte.
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
