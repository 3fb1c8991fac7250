// Shared part of the kernels that train codebooks: k-means of every group at once, where a group is one (batch, KV head,
// subvector). Training looks at a sample: sample slot s of a kv is one key, or NO_KEY where there was no finite one.
// What Params mean here: n_coded keys per kv are trained on, n_new of them sampled (slots); token init_offset + i is key i.
//
// model: f32[groups, C + 1, CENTROID_WIDTH + 1]: row c is centroid c, then half of its squared norm; row C is the origin,
// then 0. Centroids are kept relative to the origin, a point amid the keys: so |x|^2 - 2 (x c - |c|^2 / 2), which takes one
// fma per column, loses no digits to a common offset of the keys.

const NO_KEY = 0xffffffffu;
const LARGEST = 3.4028234e38;

// Words of a group's state: 1 once it is done, the distortion of the last assignment, iterations that were made, seed.
const STATE_WORDS = 4u;
const STATE_DONE = 0u;
const STATE_DISTORTION = 1u;
const STATE_ITERATIONS = 2u;
const STATE_SEED = 3u;

override N_GROUPS: u32 = BATCH * KV_HEADS * SUBVECTORS;
override MODEL_COLUMNS: u32 = CENTROID_WIDTH + 1u;

fn model_row(group: u32, c: u32) -> u32 {
  return (group * (CENTROIDS + 1u) + c) * MODEL_COLUMNS;
}

// The first of the members of part `ix` when `n` members are split into `parts` parts whose sizes differ by at most one.
fn begin_of(ix: u32, n: u32, parts: u32) -> u32 {
  return ix * (n / parts) + min(ix, n % parts);
}
