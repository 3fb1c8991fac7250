// refine_list: the n_heavy best of a shortlist by the exact q·k, ties to the lower token, between sink and window. Stage:
// exact re-ranking, after any pipeline's step, whose lists are the shortlists.
//
// query:         f32[B, H, rows, D]
// keys:          f32 or f16 [B, Hkv, key_stride, D]
// short_indices: u32[B, H, rows, attended]: sink, shortlist and window, ascending
// short_lengths: u32[B, H, rows]
// indices:       u32[B, H, rows, list_stride]
// lengths:       u32[B, H, rows]
// weights:       f32[B, H, rows, weight_stride], if weights are written
//
// One workgroup owns one list. The ranks of the exact scores stay in workgroup memory, and `make_list.wgsl` makes the list of
// them as if they were a tile's candidates. A row without heavy tokens has no shortlist. Precondition: n_heavy tokens at least
// and SHORT at most are on the shortlist.

override WG: u32;
override SHORT: u32;       // the most tokens of a shortlist, a multiple of 4

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> short_indices: array<u32>;
@group(0) @binding(3) var<storage, read> short_lengths: array<u32>;
@group(0) @binding(4) var<storage, read_write> indices: array<u32>;
@group(0) @binding(5) var<storage, read_write> lengths: array<u32>;

var<workgroup> wg_ranks: array<u32, SHORT>;  // 4 bytes per token of a shortlist

// Where the shortlist begins.
fn first_short(list_ix: u32, row: Row) -> u32 {
  return list_ix * params.attended + row.n_sink;
}

fn n_short(list_ix: u32, row: Row) -> u32 {
  let others = row.n_sink + (row.n_tokens - row.window_begin);
  return min(max(short_lengths[list_ix], others) - others, SHORT);
}

// What `make_list.wgsl` asks for: the shortlist as the candidates of one tile.
fn first_four(list_ix: u32) -> u32 {
  return first_short(list_ix, row_of_list(list_ix));
}

fn n_fours_of(row: Row) -> u32 {
  return select(0u, SHORT / 4u, row.n_heavy > 0u);
}

fn four_ranks(first: u32, at: u32, n_fours: u32) -> vec4u {
  if (at >= n_fours) { return vec4u(NO_CANDIDATE); }
  return vec4u(wg_ranks[4u * at], wg_ranks[4u * at + 1u], wg_ranks[4u * at + 2u], wg_ranks[4u * at + 3u]);
}

fn four_ix(first: u32, at: u32, n_fours: u32) -> vec4u {
  let begin = first + 4u * min(at, max(n_fours, 1u) - 1u);
  return vec4u(short_indices[begin], short_indices[begin + 1u], short_indices[begin + 2u], short_indices[begin + 3u]) -
    params.init_offset;
}

// What `rank_exactly.wgsl` asks for.
fn short_token(first: u32, i: u32) -> u32 {
  return short_indices[first + i];
}

fn keep_rank(i: u32, rank: u32) {
  wg_ranks[i] = rank;
}

@compute @workgroup_size(WG)
fn refine_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    let row = row_of_list(list_ix);
    if (row.n_heavy > 0u) { rank_exactly(lane, list_ix, first_short(list_ix, row), n_short(list_ix, row)); }
    make_list(lane, list_ix);
  }
}
