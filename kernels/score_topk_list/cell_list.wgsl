// cell_list: lists by cells; the step's new keys were coded before. Stages: score, top-K and list (e08), where coding
// beside the lists does not pay or a kernel may bind eight buffers only.
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// postings:  u32[B, Hkv, CELL_ROOM + coded_stride], see `postings.wgsl`
// indices:   u32[B, H, rows, list_stride]
// lengths:   u32[B, H, rows]
// weights:   f32[B, H, rows, weight_stride], if weights are written
// keys:      f32 or f16 [B, Hkv, key_stride, D], if a shortlist is re-ranked
//
// One workgroup owns one list; see `make_cell_list.wgsl` for how.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read> postings: array<vec4u>;
@group(0) @binding(5) var<storage, read_write> indices: array<u32>;
@group(0) @binding(6) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(WG)
fn cell_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    make_list(lane, list_ix);
  }
}
