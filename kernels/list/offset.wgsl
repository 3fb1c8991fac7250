// offset: heavy[l, j] = topk_ix[l, j] + init_offset: from positions among coded tokens to tokens.
// Stage: list (e01).
//
// topk_ix: u32[B, H, rows, heavy_stride]
// heavy:   u32[B, H, rows, heavy_stride]
//
// One invocation owns one element; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> topk_ix: array<u32>;
@group(0) @binding(2) var<storage, read_write> heavy: array<u32>;

@compute @workgroup_size(WG)
fn offset(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.heavy_stride) {
    let j = ix % params.heavy_stride;
    let list_ix = ix / params.heavy_stride;
    if (j < params.rows[list_ix % params.n_rows].n_heavy) {
      heavy[ix] = topk_ix[ix] + params.init_offset;
    }
  }
}
