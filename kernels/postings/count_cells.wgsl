// count_cells: how many tokens of each chunk are in each cell. Stage: postings (e08), first of three.
//
// codes:       u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// cell_counts: u32[B, Hkv, chunks, CELLS]
//
// One workgroup owns one chunk of one kv.

override WG: u32;

@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> cell_counts: array<u32>;

var<workgroup> wg_counts: array<atomic<u32>, CELLS>;  // 4 bytes per cell

@compute @workgroup_size(WG)
fn count_cells(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * n_chunks()) {
    let kv = ix / n_chunks();
    let chunk = ix % n_chunks();
    let begin = max(chunk * chunk_tokens(), params.post_begin);
    let end = min((chunk + 1u) * chunk_tokens(), params.post_end);
    for (var i = begin + lane; i < end; i += WG) {
      atomicAdd(&wg_counts[cell_of(kv, i)], 1u);
    }
    workgroupBarrier();
    let row = (kv * most_chunks() + chunk) * CELLS;
    for (var cell = lane; cell < CELLS; cell += WG) {
      cell_counts[row + cell] = atomicLoad(&wg_counts[cell]);
    }
  }
}
