// Shared part of every kernel that fills the lookup table. All GPU pipelines start at 0 and walk
// the columns upwards with this step, so they agree on every entry to the byte.

fn add_product(sum: f32, q: f32, c: f32) -> f32 {
  return fma(q, c, sum);
}
