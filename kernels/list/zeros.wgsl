// zeros: weights[l, :] = 0, the whole row.
// Stage: weights (e01).
//
// weights: f32[B, H, rows, weight_stride]
//
// One invocation owns one weight; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> weights: array<f32>;

@compute @workgroup_size(WG)
fn zeros(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.weight_stride) {
    weights[ix] = 0.0;
  }
}
