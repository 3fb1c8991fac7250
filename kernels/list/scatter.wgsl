// scatter: weights[l, indices[l, j]] = 1.
// Stage: weights (e01), after zeros.
//
// indices: u32[B, H, rows, list_stride]
// weights: f32[B, H, rows, weight_stride]
//
// One invocation owns one position of a list; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> indices: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

@compute @workgroup_size(WG)
fn scatter(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.list_stride) {
    let j = ix % params.list_stride;
    let list_ix = ix / params.list_stride;
    if (j < params.rows[list_ix % params.n_rows].list_length) {
      weights[list_ix * params.weight_stride + indices[ix]] = 1.0;
    }
  }
}
