// candidates: the best tokens of every tile: score_lookup, mask and a top-K of the tile in one kernel. The
// scores of a tile live in workgroup memory as ranks and are never stored.
// Stages: score and top-K (e04). From score_lookup of e03, and mask and topk of e01.
//
// query:           f32[B, H, rows, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where the tile has fewer candidates
// candidate_ix:    u32[B, H, rows, tiles, kept], position among the coded tokens, ascending
//
// One workgroup owns one tile of one list; see `keep_best.wgsl`.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> candidate_ranks: array<u32>;
@group(0) @binding(5) var<storage, read_write> candidate_ix: array<u32>;

@compute @workgroup_size(WG)
fn candidates(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists() * n_tiles()) {
    keep_best(lane, ix / n_tiles(), ix % n_tiles());
  }
}
