// scan_cells: where each cell's tokens begin, and within a cell each chunk's. Stage: postings (e08), second of three.
//
// cell_counts: u32[B, Hkv, chunks, CELLS]: counts, replaced by where they begin among the tokens
// postings:    u32[B, Hkv, CELL_ROOM + coded_stride]: its first CELL_ROOM words are written
//
// One workgroup owns one kv, an invocation one cell at a time.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> cell_counts: array<u32>;
@group(0) @binding(2) var<storage, read_write> postings: array<u32>;

var<workgroup> wg_before: u32;

@compute @workgroup_size(WG)
fn scan_cells(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let kv = job_ix(workgroup_id, num_workgroups);
  if (kv < BATCH * KV_HEADS) {
    let counts = kv * most_chunks() * CELLS;
    let row = posting_row(kv);
    var before = 0u;
    for (var first = 0u; first < CELL_ROOM; first += WG) {
      let cell = first + lane;
      var here = 0u;
      if (cell < CELLS) {
        for (var chunk = 0u; chunk < n_chunks(); chunk++) { here += cell_counts[counts + chunk * CELLS + cell]; }
      }
      let upto = before + scan_sum(lane, here);
      if (cell < CELL_ROOM) { postings[row + cell] = upto - here; }
      if (cell < CELLS) {
        var at = upto - here;
        for (var chunk = 0u; chunk < n_chunks(); chunk++) {
          let count = cell_counts[counts + chunk * CELLS + cell];
          cell_counts[counts + chunk * CELLS + cell] = at;
          at += count;
        }
      }
      if (lane == WG - 1u) { wg_before = upto; }
      before = workgroupUniformLoad(&wg_before);
    }
  }
}
