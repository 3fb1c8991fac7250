// pool_softmax: pooled_scores[kv, r, i] = sum over the group's heads h of softmax over the row's candidates of
// scores[h, r, :] / √D, at i. Stage: pooling. Source: Zhang, Zheng, Wang, Ye, Miao et al., PQCache, 2024.
//
// scores:        f32[B, H, rows, coded_stride]
// pooled_scores: f32[B, Hkv, rows, coded_stride]: written at the row's candidates
//
// One workgroup owns one pooled list; an invocation owns every WG-th candidate, and adds the heads upwards. Sums go from each
// invocation's own candidates upwards, then halves of the workgroup, so in one order.

override WG: u32;  // a power of two

@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled_scores: array<f32>;

var<workgroup> wg_values: array<f32, WG>;  // 4 bytes per invocation

fn share(score: f32, largest: f32) -> f32 {
  return exp((score - largest) * inverseSqrt(f32(SUBVECTORS * SUB_WIDTH)));
}

@compute @workgroup_size(WG)
fn pool_softmax(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let pooled = job_ix(workgroup_id, num_workgroups);
  if (pooled >= n_pooled()) { return; }
  let begin = params.rows[pooled % params.n_rows].cand_begin;
  let end = params.rows[pooled % params.n_rows].cand_end;
  for (var g = 0u; g < HEADS / KV_HEADS; g++) {
    let first = list_of_head(pooled, g) * params.coded_stride;
    var own = -3.4028234e38;
    for (var i = begin + lane; i < end; i += WG) { own = max(own, scores[first + i]); }
    wg_values[lane] = own;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
      if (lane < half) { wg_values[lane] = max(wg_values[lane], wg_values[lane + half]); }
      workgroupBarrier();
    }
    let largest = workgroupUniformLoad(&wg_values[0]);
    own = 0.0;
    for (var i = begin + lane; i < end; i += WG) { own += share(scores[first + i], largest); }
    wg_values[lane] = own;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
      if (lane < half) { wg_values[lane] += wg_values[lane + half]; }
      workgroupBarrier();
    }
    let total = workgroupUniformLoad(&wg_values[0]);
    for (var i = begin + lane; i < end; i += WG) {
      let at = pooled * params.coded_stride + i;
      var sum = 0.0;
      if (g > 0u) { sum = pooled_scores[at]; }
      pooled_scores[at] = sum + share(scores[first + i], largest) / total;
    }
  }
}
