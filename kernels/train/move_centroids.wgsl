// move_centroids: each centroid becomes the mean of its keys; one without keys stays. Stage: training, fourth of an iteration.
//
// work:  f32[groups, parts, C, CENTROID_WIDTH]: see `sum_clusters.wgsl`
// counts: u32[groups, C]
// model, state: see `train.wgsl`
//
// One invocation owns one column of one centroid; parts are added up in order.

override WG: u32;
override PART: u32;

@group(0) @binding(1) var<storage, read> work: array<f32>;
@group(0) @binding(2) var<storage, read> counts: array<u32>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> model: array<f32>;

@compute @workgroup_size(WG)
fn move_centroids(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let group_values = CENTROIDS * CENTROID_WIDTH;
  if (ix < N_GROUPS * group_values) {
    let group = ix / group_values;
    let value = ix % group_values;
    let c = value / CENTROID_WIDTH;
    let count = counts[group * CENTROIDS + c];
    if (count > 0u && state[group * STATE_WORDS + STATE_DONE] == 0u) {
      let n_parts = (params.n_new + PART - 1u) / PART;
      var sum = 0.0;
      for (var part = 0u; part < n_parts; part++) {
        sum += work[(group * n_parts + part) * group_values + value];
      }
      model[model_row(group, c) + value % CENTROID_WIDTH] = sum / f32(count);
    }
  }
}
