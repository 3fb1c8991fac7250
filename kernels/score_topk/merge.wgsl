// merge: the n_heavy best of the tiles' candidates of a list, best first; equal ranks by token, lower first.
// Stages: top-K (e04), after candidates. As topk of e01 on n_tiles * kept() entries instead of n_coded.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// topk_ix:         u32[B, H, rows, heavy_stride], position among the coded tokens
// topk_ranks:      u32[B, H, rows, heavy_stride]
//
// One workgroup owns one list; see `pick_best.wgsl` for how.

override WG: u32;

@group(0) @binding(1) var<storage, read> candidate_ranks: array<u32>;
@group(0) @binding(2) var<storage, read> candidate_ix: array<u32>;
@group(0) @binding(3) var<storage, read_write> topk_ix: array<u32>;
@group(0) @binding(4) var<storage, read_write> topk_ranks: array<u32>;

fn n_entries() -> u32 { return n_tiles() * kept(); }
fn entry_stride() -> u32 { return tiles_stride(); }
fn rank_at(at: u32) -> u32 { return candidate_ranks[at]; }
fn token_at(at: u32, i: u32) -> u32 { return candidate_ix[at]; }

@compute @workgroup_size(WG)
fn merge(
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
