// pool_max: pooled_scores[kv, r, i] = max over the group's heads of scores[h, r, i]; NaN only if all are. Stage: pooling.
//
// scores:        f32[B, H, rows, coded_stride]
// pooled_scores: f32[B, Hkv, rows, coded_stride]
//
// One invocation owns one coded token of one pooled list.

override WG: u32;

@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled_scores: array<f32>;

@compute @workgroup_size(WG)
fn pool_max(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_pooled() * params.n_coded) {
    let pooled = ix / params.n_coded;
    let i = ix % params.n_coded;
    var best = scores[list_of_head(pooled, 0u) * params.coded_stride + i];
    for (var g = 1u; g < HEADS / KV_HEADS; g++) {
      let other = scores[list_of_head(pooled, g) * params.coded_stride + i];
      best = select(best, other, rank_of(other) > rank_of(best));
    }
    pooled_scores[pooled * params.coded_stride + i] = best;
  }
}
