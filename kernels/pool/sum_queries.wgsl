// sum_queries: pooled_query[kv, r] = sum over the group's heads of query[h, r], heads upwards. Stage: pooling by sums of scores:
// the sum of q_h·x over the heads h is (sum of q_h)·x, so a step of one summed query per KV head is all that it takes.
//
// query:        f32[B, H, rows, D]
// pooled_query: f32[B, Hkv, rows, D]
//
// One invocation owns one value.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled_query: array<f32>;

@compute @workgroup_size(WG)
fn sum_queries(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let row = params.n_rows * (SUBVECTORS * SUB_WIDTH);
  if (ix < BATCH * KV_HEADS * row) {
    let heads = HEADS / KV_HEADS;
    let first = ix / row * heads * row + ix % row;
    var sum = query[first];
    for (var g = 1u; g < heads; g++) { sum += query[first + g * row]; }
    pooled_query[ix] = sum;
  }
}
