// start_points: the points that the start is drawn from, every (n_new / n_start)-th of the sample, with columns as rows, so
// that the rounds of `start_centroids` read them side by side. Stage: training.
//
// keys, sampled, extra: see `sample_keys.wgsl`
// work: f32[groups, CENTROID_WIDTH + 1, n_start]: the points' columns; then LARGEST, or -1 for a slot without a key
//
// One invocation owns one column of one point.

override WG: u32;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read_write> work: array<f32>;

@compute @workgroup_size(WG)
fn start_points(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let n_start = n_start_points();
  if (ix < N_GROUPS * n_start * MODEL_COLUMNS) {
    let j = ix % MODEL_COLUMNS;
    let t = ix / MODEL_COLUMNS % n_start;
    let group = ix / MODEL_COLUMNS / n_start;
    let kv = group / SUBVECTORS;
    let slot = begin_of(t, params.n_new, n_start);
    let row = sampled[kv * params.n_new + slot];
    var value = 0.0;
    if (j == CENTROID_WIDTH) {
      value = select(LARGEST, -1.0, row == NO_KEY);
    } else if (row != NO_KEY) {
      if (j == SUB_WIDTH) {
        value = extra[group * params.n_new + slot];
      } else {
        let token = kv * params.key_stride + params.init_offset + row;
        value = key_value((token * SUBVECTORS + group % SUBVECTORS) * SUB_WIDTH + j);
      }
    }
    work[(group * MODEL_COLUMNS + j) * n_start + t] = value;
  }
}
