// mask: rank[l, i] = rank_of(score[l, i]) for candidates, 0 for coded tokens in sink or window.
// Stage: top-K (e01).
//
// scores: f32[B, H, rows, coded_stride]
// ranks:  u32[B, H, rows, coded_stride]
//
// One invocation owns one element; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> ranks: array<u32>;

@compute @workgroup_size(WG)
fn mask(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.n_coded) {
    let i = ix % params.n_coded;
    let list_ix = ix / params.n_coded;
    let r = list_ix % params.n_rows;
    let at = list_ix * params.coded_stride + i;

    let is_candidate = i >= params.rows[r].cand_begin && i < params.rows[r].cand_end;

    ranks[at] = select(NO_CANDIDATE, rank_of(scores[at]), is_candidate);
  }
}
