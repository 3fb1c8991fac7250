// code_candidates: the tiles' best tokens, and beside them the codes of the step's new keys: candidates and
// assign_packed in one dispatch. Stages: quantize, score and top-K (e06). From assign_packed and candidates of e05.
//
// query:           f32[B, H, rows, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// new_keys:        f32[B, Hkv, n_new_keys, D]
// phi:             f32[B, Hkv, M], metric "ip" only
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where the tile has fewer candidates
// candidate_ix:    u32[B, H, rows, tiles, kept], position among the coded tokens, ascending
//
// The first workgroups own one tile of one list each (see `keep_best.wgsl`), the rest one word of new codes
// each (see `code_word.wgsl`). The two run at once, so no tile may read a word that is being written:
// precondition: every row's cand_end is at most the first new key rounded down to a word, or no keys are
// coded here (params.n_beside is 0).

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read> new_keys: array<f32>;
@group(0) @binding(5) var<storage, read> phi: array<f32>;
@group(0) @binding(6) var<storage, read_write> candidate_ranks: array<u32>;
@group(0) @binding(7) var<storage, read_write> candidate_ix: array<u32>;

@compute @workgroup_size(WG)
fn code_candidates(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let n_tile_jobs = n_lists() * n_tiles();
  if (ix < n_tile_jobs) {
    keep_best(lane, ix / n_tiles(), ix % n_tiles());
  } else if (params.n_beside > 0u && ix - n_tile_jobs < BATCH * KV_HEADS * SUBVECTORS * n_new_words()) {
    code_word(lane, ix - n_tile_jobs);
  }
}
