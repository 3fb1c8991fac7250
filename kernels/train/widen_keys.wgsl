// widen_keys: keys n_new from token init_offset on, as f32, to be coded as if they had come so. Stage: coding of f16 keys.
//
// keys:     f16[B, Hkv, key_stride, D]
// new_keys: f32[B, Hkv, n_new, D]
//
// One invocation owns one value.

override WG: u32;

@group(0) @binding(2) var<storage, read_write> new_keys: array<f32>;

@compute @workgroup_size(WG)
fn widen_keys(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let row = params.n_new * SUBVECTORS * SUB_WIDTH;
  if (ix < BATCH * KV_HEADS * row) {
    let token = ix / row * params.key_stride + params.init_offset;
    new_keys[ix] = key_value(token * (SUBVECTORS * SUB_WIDTH) + ix % row);
  }
}
