// cell_step: a whole step in one dispatch: lists by cells, and beside them the codes of the step's new keys. Stages:
// quantize, score, top-K and list (e08).
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// postings:  u32[B, Hkv, CELL_ROOM + coded_stride], see `postings.wgsl`
// indices:   u32[B, H, rows, list_stride]
// lengths:   u32[B, H, rows]
// new_keys:  f32[B, Hkv, n_new_keys, D]
// phi:       f32[B, Hkv, M], metric "ip" only
// weights:   f32[B, H, rows, weight_stride], if weights are written
// keys:      f32 or f16 [B, Hkv, key_stride, D], if a shortlist is re-ranked
//
// The first workgroups own one list each (see `make_cell_list.wgsl`), the rest one word of new codes each (see
// `code_word.wgsl`). Precondition: no row's candidates share a word with the new keys, or none are coded here.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read> postings: array<vec4u>;
@group(0) @binding(5) var<storage, read_write> indices: array<u32>;
@group(0) @binding(6) var<storage, read_write> lengths: array<u32>;
@group(0) @binding(7) var<storage, read> new_keys: array<f32>;
@group(0) @binding(8) var<storage, read> phi: array<f32>;

@compute @workgroup_size(WG)
fn cell_step(
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
