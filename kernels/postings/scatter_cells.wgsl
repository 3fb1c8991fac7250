// scatter_cells: the tokens, by cell and ascending. Stage: postings (e08), last of three.
//
// codes:       u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// cell_counts: u32[B, Hkv, chunks, CELLS]: where the next token of each cell and chunk goes, moved on
// postings:    u32[B, Hkv, CELL_ROOM + coded_stride]: its tokens are written
//
// One workgroup owns one chunk of one kv and takes WG tokens at a time, in order. Equal cells among them are counted
// by comparing all with each, so that the order is kept: an atomic counter would not.

override WG: u32;

@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> cell_counts: array<u32>;
@group(0) @binding(3) var<storage, read_write> postings: array<u32>;

const NO_CELL = 0xffffffffu;

var<workgroup> wg_cells: array<u32, WG>;  // 4 bytes per invocation

// (1 before this invocation, 1) where another has the same cell.
fn same_cell(lane: u32, cell: u32, other: u32) -> vec2u {
  let is_same = wg_cells[other] == cell;
  return vec2u(u32(is_same && other < lane), u32(is_same));
}

@compute @workgroup_size(WG)
fn scatter_cells(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * n_chunks()) {
    let kv = ix / n_chunks();
    let chunk = ix % n_chunks();
    let counts = (kv * most_chunks() + chunk) * CELLS;
    let begin = max(chunk * chunk_tokens(), params.post_begin);
    let end = min((chunk + 1u) * chunk_tokens(), params.post_end);
    for (var first = begin; first < end; first += WG) {
      let i = first + lane;
      var cell = NO_CELL;
      if (i < end) { cell = cell_of(kv, i); }
      wg_cells[lane] = cell;
      workgroupBarrier();
      var same = vec2u();
      for (var other = 0u; other < WG; other += 4u) {
        same += same_cell(lane, cell, other) + same_cell(lane, cell, other + 1u) +
          same_cell(lane, cell, other + 2u) + same_cell(lane, cell, other + 3u);
      }
      var at = 0u;
      if (i < end) {
        at = cell_counts[counts + cell] + same.x;
        postings[posting_row(kv) + CELL_ROOM + at] = i;
      }
      workgroupBarrier();
      storageBarrier();
      if (i < end && same.x + 1u == same.y) { cell_counts[counts + cell] = at + 1u; }
      storageBarrier();
    }
  }
}
