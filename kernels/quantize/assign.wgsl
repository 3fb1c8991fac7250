// assign: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie.
// Stage: quantize new keys (e01).
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride], one code per word
//
// One workgroup owns one (kv, m, new key); its invocations share out the centroids.
// Source: product quantization, Jegou, Douze, Schmid 2011; the "ip" column: Shrivastava, Li 2014.

override WG: u32;

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

@compute @workgroup_size(WG)
fn assign(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * SUBVECTORS * params.n_new) {
    let i = ix % params.n_new;
    let group = ix / params.n_new;

    let code = nearest_of_key(lane, group, key_at(group, i));

    if (lane == 0u) {
      codes[group * params.coded_stride + params.n_coded - params.n_new + i] = code;
    }
  }
}
