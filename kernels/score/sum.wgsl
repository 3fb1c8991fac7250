// sum: score[l, i] = sum over m of gathered[l, m, i], m ascending.
// Stage: score (e01). No 1/sqrt(D) and no softmax: they would not change the order.
//
// gathered: f32[B, H, rows, M, coded_stride]
// scores:   f32[B, H, rows, coded_stride]
//
// One invocation owns one score; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> gathered: array<f32>;
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;

@compute @workgroup_size(WG)
fn sum(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.n_coded) {
    let i = ix % params.n_coded;
    let list_ix = ix / params.n_coded;

    var score = gathered[list_ix * SUBVECTORS * params.coded_stride + i];
    for (var m = 1u; m < SUBVECTORS; m++) {
      score += gathered[(list_ix * SUBVECTORS + m) * params.coded_stride + i];
    }

    scores[list_ix * params.coded_stride + i] = score;
  }
}
