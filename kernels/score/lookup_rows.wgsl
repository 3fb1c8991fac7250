// Shared part of the kernels that score packed codes through a table in workgroup memory that 16 invocations per
// entry fill. Every entry lies REPLICAS times side by side: invocation `lane` reads copy lane % REPLICAS, and with
// 32 copies no two invocations of a subgroup of 32 meet in a bank. Needs product_part, add_rows and WG.

override REPLICAS: u32;    // a power of two
override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;
override LUT_WORDS: u32 = TABLE_ENTRIES * REPLICAS;

var<workgroup> wg_lut: array<f32, LUT_WORDS>;  // 4 * M * C * REPLICAS bytes

fn entry_part(list_ix: u32, first_group: u32, e: u32, part: u32) -> f32 {
  if (e >= TABLE_ENTRIES) { return 0.0; }
  let query_at = (list_ix * SUBVECTORS + e / CENTROIDS) * SUB_WIDTH;
  return product_part(query_at, (first_group * CENTROIDS + e) * CENTROID_WIDTH, part);
}

fn keep_entry(first: u32, row: u32, value: f32) {
  if (row < ROWS && first + row < TABLE_ENTRIES) {
    for (var copy = 0u; copy < REPLICAS; copy++) { wg_lut[(first + row) * REPLICAS + copy] = value; }
  }
}

// Ends with a barrier.
fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  let part = lane % N_PARTS;
  for (var first = 0u; first < TABLE_ENTRIES; first += ROWS) {
    let e = first + lane / N_PARTS;
    let sums = add_rows(lane, vec4f(
      entry_part(list_ix, first_group, e, part),
      entry_part(list_ix, first_group, e + WG / N_PARTS, part),
      entry_part(list_ix, first_group, e + WG / N_PARTS * 2u, part),
      entry_part(list_ix, first_group, e + WG / N_PARTS * 3u, part),
    ));
    keep_entry(first, row_of(lane, 0u), sums.x);
    keep_entry(first, row_of(lane, 1u), sums.y);
    keep_entry(first, row_of(lane, 2u), sums.z);
    keep_entry(first, row_of(lane, 3u), sums.w);
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
