// topk: the n_heavy highest ranks of a list, best first; equal ranks by position, lower first.
// Stage: top-K (e01). What torch.topk(sorted=True) does, with the tie rule fixed.
//
// ranks:      u32[B, H, rows, coded_stride], 0 where there is no candidate
// topk_ix:    u32[B, H, rows, heavy_stride], position among the coded tokens
// topk_ranks: u32[B, H, rows, heavy_stride]
//
// One workgroup owns one list; see `pick_best.wgsl` for how.

override WG: u32;

@group(0) @binding(1) var<storage, read> ranks: array<u32>;
@group(0) @binding(2) var<storage, read_write> topk_ix: array<u32>;
@group(0) @binding(3) var<storage, read_write> topk_ranks: array<u32>;

fn n_entries() -> u32 { return params.n_coded; }
fn entry_stride() -> u32 { return params.coded_stride; }
fn rank_at(at: u32) -> u32 { return ranks[at]; }
fn token_at(at: u32, i: u32) -> u32 { return i; }

@compute @workgroup_size(WG)
fn topk(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  let n_heavy = params.rows[list_ix % params.n_rows].n_heavy;
  if (list_ix < n_lists() && n_heavy > 0u) {
    pick_best(lane, list_ix, n_heavy);
  }
}
