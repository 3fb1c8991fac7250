// score: score[l, i] = sum over m of q[l, m, :] . centroid[kv(l), m, code[kv(l), m, i], :], m ascending.
// Stage: score (e02). Replaces table, gather and sum of e01: scores are written once and nothing else
// is stored. The dot products are computed anew for every token: D multiply-adds instead of M lookups.
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     in the format of the `code_at` part
// scores:    f32[B, H, rows, coded_stride]
//
// One invocation owns one score; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

@compute @workgroup_size(WG)
fn score(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.n_coded) {
    let i = ix % params.n_coded;
    let list_ix = ix / params.n_coded;
    let first_group = kv_of_list(list_ix) * SUBVECTORS;
    let first_query = list_ix * SUBVECTORS * SUB_WIDTH;

    var score = product(first_query, (first_group * CENTROIDS + code_at(first_group, i)) * CENTROID_WIDTH);
    for (var m = 1u; m < SUBVECTORS; m++) {
      let centroid = (first_group + m) * CENTROIDS + code_at(first_group + m, i);
      score += product(first_query + m * SUB_WIDTH, centroid * CENTROID_WIDTH);
    }

    scores[list_ix * params.coded_stride + i] = score;
  }
}
