// Shared part of the kernels that score packed codes through a table in workgroup memory, for large workgroups:
// 16 invocations share a table entry, so that neighbours read neighbouring columns, and every entry lies
// REPLICAS times side by side: invocation `lane` reads copy lane % REPLICAS, and with 32 copies no two
// invocations of a subgroup of 32 meet in a bank. Needs query, centroids and WG, a multiple of 16.

override REPLICAS: u32;    // a power of two
override PART_ROWS: u32;   // table entries that are summed between two barriers
override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;

const PART_STRIDE = N_PARTS + 1u;  // odd, so that the invocations that add up rows meet in no bank

override LUT_WORDS: u32 = TABLE_ENTRIES * REPLICAS;
override PART_WORDS: u32 = PART_ROWS * PART_STRIDE;

var<workgroup> wg_lut: array<f32, LUT_WORDS>;    // 4 * M * C * REPLICAS bytes
var<workgroup> wg_parts: array<f32, PART_WORDS>; // 68 * PART_ROWS bytes

fn sum_of_parts(row: u32) -> f32 {
  let at = row * PART_STRIDE;
  return add_parts(
    vec4f(wg_parts[at], wg_parts[at + 1u], wg_parts[at + 2u], wg_parts[at + 3u]),
    vec4f(wg_parts[at + 4u], wg_parts[at + 5u], wg_parts[at + 6u], wg_parts[at + 7u]),
    vec4f(wg_parts[at + 8u], wg_parts[at + 9u], wg_parts[at + 10u], wg_parts[at + 11u]),
    vec4f(wg_parts[at + 12u], wg_parts[at + 13u], wg_parts[at + 14u], wg_parts[at + 15u]),
  );
}

// Ends with a barrier.
fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  let part = lane % N_PARTS;
  for (var first = 0u; first < TABLE_ENTRIES; first += PART_ROWS) {
    let n_rows = min(PART_ROWS, TABLE_ENTRIES - first);
    for (var row = lane / N_PARTS; row < n_rows; row += WG / N_PARTS) {
      let e = first + row;
      let query_at = (list_ix * SUBVECTORS + e / CENTROIDS) * SUB_WIDTH;
      let centroid_at = (first_group * CENTROIDS + e) * CENTROID_WIDTH;
      var sum = 0.0;
      for (var j = part; j < SUB_WIDTH; j += N_PARTS) {
        sum = fma(query[query_at + j], centroids[centroid_at + j], sum);
      }
      wg_parts[row * PART_STRIDE + part] = sum;
    }
    workgroupBarrier();
    for (var row = lane; row < n_rows; row += WG) { wg_parts[row * PART_STRIDE + N_PARTS] = sum_of_parts(row); }
    workgroupBarrier();
    for (var t = lane; t < n_rows * REPLICAS; t += WG) {
      wg_lut[first * REPLICAS + t] = wg_parts[t / REPLICAS * PART_STRIDE + N_PARTS];
    }
    workgroupBarrier();
  }
}

fn look_up(lane: u32, m: u32, word: u32) -> vec4f {
  let first = m * CENTROIDS * REPLICAS + lane % REPLICAS;
  return vec4f(
    wg_lut[first + (word & 0xffu) * REPLICAS],
    wg_lut[first + ((word >> 8u) & 0xffu) * REPLICAS],
    wg_lut[first + ((word >> 16u) & 0xffu) * REPLICAS],
    wg_lut[first + (word >> 24u) * REPLICAS],
  );
}
