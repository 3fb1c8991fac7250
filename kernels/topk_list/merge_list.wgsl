// merge_list: lists of the tiles' best candidates. Stages: top-K and list (e05). Replaces merge, offset, concat,
// sort, zeros and scatter of e04.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// indices:         u32[B, H, rows, list_stride]
// lengths:         u32[B, H, rows]
// weights:         f32[B, H, rows, weight_stride], if weights are written
//
// One workgroup owns one list; see `make_list.wgsl` for how.

override WG: u32;

@group(0) @binding(1) var<storage, read> candidate_ranks: array<vec4u>;
@group(0) @binding(2) var<storage, read> candidate_ix: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;
@group(0) @binding(4) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(WG)
fn merge_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    make_list(lane, list_ix);
  }
}
