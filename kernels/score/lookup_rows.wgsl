// Shared part of the kernels that score packed codes through a table in workgroup memory that 16 invocations per
// entry fill. Needs product_part, add_rows, WG, and what `entry_f32.wgsl` or `entry_f16.wgsl` says of entries.

override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;

var<workgroup> wg_lut: array<Entry, TABLE_ENTRIES>;
var<workgroup> wg_wild: atomic<u32>;

// Whether an entry is NaN, infinite, 2^123 or more, or below 2^-100 but not 0. Without such entries no score of 16
// subvectors overflows or is subnormal, and floats order as ranks do.
fn is_wild() -> bool {
  return atomicLoad(&wg_wild) != 0u;
}

fn entry_part(list_ix: u32, first_group: u32, e: u32, part: u32) -> f32 {
  let own = min(e, TABLE_ENTRIES - 1u);  // past the end the last entry again: no invocation goes another way
  let query_at = (list_ix * SUBVECTORS + own / CENTROIDS) * SUB_WIDTH;
  return product_part(query_at, (first_group * CENTROIDS + own) * CENTROID_WIDTH, part);
}

// A quarter of the entries first .. first + ROWS; nothing where all of it is past the end.
fn quarter_part(list_ix: u32, first_group: u32, first: u32, quarter: u32, row: u32, part: u32) -> f32 {
  let begin = first + WG / N_PARTS * quarter;
  if (begin >= TABLE_ENTRIES) { return 0.0; }
  return entry_part(list_ix, first_group, begin + row, part);
}

// Entries first .. first + ROWS.
fn fill_rows(lane: u32, list_ix: u32, first_group: u32, first: u32) {
  let part = lane % N_PARTS;
  let group = lane / N_PARTS;
  let sum = add_rows(lane, vec4f(
    quarter_part(list_ix, first_group, first, 0u, group, part),
    quarter_part(list_ix, first_group, first, 1u, group, part),
    quarter_part(list_ix, first_group, first, 2u, group, part),
    quarter_part(list_ix, first_group, first, 3u, group, part),
  ));
  let row = row_of(lane);
  if (row < ROWS && first + row < TABLE_ENTRIES) {
    wg_lut[first + row] = entry_of(sum);
    let magnitude = bitcast<u32>(sum) & 0x7fffffffu;
    note_entry(magnitude);
    if (magnitude != 0u && (magnitude < 0x0d800000u || magnitude >= 0x7d000000u)) { atomicStore(&wg_wild, 1u); }
  }
  if (ROWS_NEED_BARRIER) { workgroupBarrier(); }
}

// Where sums need no barrier, rows go four times ROWS per turn of the loop, so that loads overlap.
fn fill_all_rows(lane: u32, list_ix: u32, first_group: u32) {
  fill_rows(lane, list_ix, first_group, 0u);
  if (TABLE_ENTRIES > ROWS) {
    let step = select(4u * ROWS, ROWS, ROWS_NEED_BARRIER);
    for (var first = ROWS; first < TABLE_ENTRIES; first += step) {
      fill_rows(lane, list_ix, first_group, first);
      if (!ROWS_NEED_BARRIER) {
        fill_rows(lane, list_ix, first_group, first + ROWS);
        fill_rows(lane, list_ix, first_group, first + 2u * ROWS);
        fill_rows(lane, list_ix, first_group, first + 3u * ROWS);
      }
    }
  }
  if (!ROWS_NEED_BARRIER) { workgroupBarrier(); }
}

// In uniform control flow only; ends with a barrier.
fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  begin_entries();
  fill_all_rows(lane, list_ix, first_group);
  if (choose_scale(lane)) { fill_all_rows(lane, list_ix, first_group); }
}

fn look_up(m: u32, word: u32) -> vec4f {
  let first = m * CENTROIDS;
  return vec4f(
    f32(wg_lut[first + (word & 0xffu)]),
    f32(wg_lut[first + ((word >> 8u) & 0xffu)]),
    f32(wg_lut[first + ((word >> 16u) & 0xffu)]),
    f32(wg_lut[first + (word >> 24u)]),
  );
}
