// Shared part of the kernels that score packed codes through a table in workgroup memory that 16 invocations per
// entry fill. Every entry lies REPLICAS times side by side: invocation `lane` reads copy lane % REPLICAS, and with
// 32 copies no two invocations of a subgroup of 32 meet in a bank. Needs product_part, add_rows and WG.

override REPLICAS: u32;    // a power of two up to 32
override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;
override LUT_WORDS: u32 = TABLE_ENTRIES * REPLICAS;

var<workgroup> wg_lut: array<f32, LUT_WORDS>;  // 4 * M * C * REPLICAS bytes

var<workgroup> wg_wild: atomic<u32>;

// Whether an entry is NaN, infinite, 2^123 or more, or below 2^-100 but not 0. Without such entries no score of 16
// subvectors overflows or is subnormal, and floats order as ranks do.
fn is_wild() -> bool {
  return atomicLoad(&wg_wild) != 0u;
}

fn entry_part(list_ix: u32, first_group: u32, e: u32, part: u32) -> f32 {
  if (e >= TABLE_ENTRIES) { return 0.0; }
  let query_at = (list_ix * SUBVECTORS + e / CENTROIDS) * SUB_WIDTH;
  return product_part(query_at, (first_group * CENTROIDS + e) * CENTROID_WIDTH, part);
}

fn keep_entry(first: u32, row: u32, copy: u32, value: f32) {
  if (row < ROWS && first + row < TABLE_ENTRIES && copy < REPLICAS) {
    wg_lut[(first + row) * REPLICAS + copy] = value;
    let magnitude = bitcast<u32>(value) & 0x7fffffffu;
    if (magnitude != 0u && (magnitude < 0x0d800000u || magnitude >= 0x7d000000u)) { atomicStore(&wg_wild, 1u); }
  }
}

fn keep_entries(first: u32, row: u32, copy: u32, sums: vec4f) {
  keep_entry(first, row, copy, sums.x);
  keep_entry(first, row + WG / N_PARTS, copy, sums.y);
  keep_entry(first, row + WG / N_PARTS * 2u, copy, sums.z);
  keep_entry(first, row + WG / N_PARTS * 3u, copy, sums.w);
}

// Entries first .. first + ROWS. A barrier must follow before they are read.
fn fill_rows(lane: u32, list_ix: u32, first_group: u32, first: u32) {
  let part = lane % N_PARTS;
  let e = first + lane / N_PARTS;
  let sums = add_rows(lane, vec4f(
    entry_part(list_ix, first_group, e, part),
    entry_part(list_ix, first_group, e + WG / N_PARTS, part),
    entry_part(list_ix, first_group, e + WG / N_PARTS * 2u, part),
    entry_part(list_ix, first_group, e + WG / N_PARTS * 3u, part),
  ));
  if (SUMS_EVERYWHERE) {
    keep_entries(first, lane / N_PARTS, part, sums);
    if (REPLICAS > N_PARTS) { keep_entries(first, lane / N_PARTS, part + N_PARTS, sums); }
  } else {
    keep_entry(first, lane, 0u, sums.x);
    if (REPLICAS > 1u) {
      for (var copy = 1u; copy < REPLICAS; copy++) { keep_entry(first, lane, copy, sums.x); }
    }
    workgroupBarrier();
  }
}

// Ends with a barrier. Rows go four times ROWS per turn of a loop where sums need no barrier, so that loads overlap.
fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  fill_rows(lane, list_ix, first_group, 0u);
  if (TABLE_ENTRIES > ROWS) {
    let step = select(ROWS, 4u * ROWS, SUMS_EVERYWHERE);
    for (var first = ROWS; first < TABLE_ENTRIES; first += step) {
      fill_rows(lane, list_ix, first_group, first);
      if (SUMS_EVERYWHERE) {
        fill_rows(lane, list_ix, first_group, first + ROWS);
        fill_rows(lane, list_ix, first_group, first + 2u * ROWS);
        fill_rows(lane, list_ix, first_group, first + 3u * ROWS);
      }
    }
  }
  if (SUMS_EVERYWHERE) { workgroupBarrier(); }
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
