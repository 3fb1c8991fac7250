// Shared part of the kernels that score packed codes through a table in workgroup memory. Needs query,
// centroids and WG.

override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;

var<workgroup> wg_lut: array<f32, TABLE_ENTRIES>;   // 4 * M * C bytes

fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  for (var e = lane; e < TABLE_ENTRIES; e += WG) {
    let query_at = (list_ix * SUBVECTORS + e / CENTROIDS) * SUB_WIDTH;
    let centroid_at = (first_group * CENTROIDS + e) * CENTROID_WIDTH;
    wg_lut[e] = product(query_at, centroid_at);
  }
}

fn look_up(m: u32, word: u32) -> vec4f {
  let first = m * CENTROIDS;
  return vec4f(
    wg_lut[first + (word & 0xffu)],
    wg_lut[first + ((word >> 8u) & 0xffu)],
    wg_lut[first + ((word >> 16u) & 0xffu)],
    wg_lut[first + (word >> 24u)],
  );
}
