// How 16 invocations that share a row add their partial sums: through workgroup memory. Needs WG, a multiple of 16.
// Rows go WG / 4 at a time: lane / 16 owns four of them, WG / 16 apart.

const ROWS_NEED_BARRIER = true;

override ROWS: u32 = WG / 4u;
override ROW_WORDS: u32 = ROWS * 17u;  // a stride of 17: no two invocations that add up rows meet in a bank

var<workgroup> wg_rows: array<f32, ROW_WORDS>;  // 17 bytes per invocation

// The sum of row row_of(lane) out of four rows, whose partial sums are `parts`. In uniform control flow only; a barrier
// must separate two calls where ROWS_NEED_BARRIER.
fn add_rows(lane: u32, parts: vec4f) -> f32 {
  let at = lane / N_PARTS * 17u + lane % N_PARTS;
  wg_rows[at] = parts.x;
  wg_rows[at + ROW_WORDS / 4u] = parts.y;
  wg_rows[at + ROW_WORDS / 2u] = parts.z;
  wg_rows[at + ROW_WORDS / 4u * 3u] = parts.w;
  workgroupBarrier();
  var sum = 0.0;
  if (lane < ROWS) {
    let r = lane * 17u;
    sum = add_parts(
      vec4f(wg_rows[r], wg_rows[r + 1u], wg_rows[r + 2u], wg_rows[r + 3u]),
      vec4f(wg_rows[r + 4u], wg_rows[r + 5u], wg_rows[r + 6u], wg_rows[r + 7u]),
      vec4f(wg_rows[r + 8u], wg_rows[r + 9u], wg_rows[r + 10u], wg_rows[r + 11u]),
      vec4f(wg_rows[r + 12u], wg_rows[r + 13u], wg_rows[r + 14u], wg_rows[r + 15u]),
    );
  }
  return sum;
}

// Which row's sum an invocation keeps; ROWS and above: none.
fn row_of(lane: u32) -> u32 {
  return lane;
}
