// code_list: lists of the tiles' best candidates, and beside them the codes of the step's new keys: merge_list and
// assign_packed in one dispatch. Stages: quantize, top-K and list (e06). From assign_packed and merge_list of e05.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// indices:         u32[B, H, rows, list_stride]
// lengths:         u32[B, H, rows]
// weights:         f32[B, H, rows, weight_stride], if weights are written
// new_keys:        f32[B, Hkv, n_new_keys, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:             f32[B, Hkv, M], metric "ip" only
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
//
// The first workgroups own one list each (see `make_list.wgsl`) and leave most of a GPU idle; the rest own one word of
// new codes each (see `code_word.wgsl`). Nothing here reads codes but their owners; the tiles were scored
// before, so precondition: no row's candidates reach the new keys, or no keys are coded here (n_beside is 0).

override WG: u32;

@group(0) @binding(1) var<storage, read> candidate_ranks: array<vec4u>;
@group(0) @binding(2) var<storage, read> candidate_ix: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;
@group(0) @binding(4) var<storage, read_write> lengths: array<u32>;
@group(0) @binding(5) var<storage, read> new_keys: array<f32>;
@group(0) @binding(6) var<storage, read> centroids: array<f32>;
@group(0) @binding(7) var<storage, read> phi: array<f32>;
@group(0) @binding(8) var<storage, read_write> codes: array<u32>;

@compute @workgroup_size(WG)
fn code_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists()) {
    make_list(lane, ix);
  } else if (params.n_beside > 0u && ix - n_lists() < BATCH * KV_HEADS * SUBVECTORS * n_new_words()) {
    code_word(lane, ix - n_lists());
  }
}
