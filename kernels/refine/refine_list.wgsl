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
// One workgroup owns one list. Sixteen invocations share a key; the ranks of the scores stay in workgroup memory, and
// `make_list.wgsl` makes the list of them as if they were a tile's candidates. No 1/√D, as it changes no order. A row without heavy
// tokens has no shortlist. Precondition: n_heavy tokens at least and SHORT at most are on the shortlist.

override WG: u32;
override HEAD_WIDTH: u32;  // D, a multiple of 8, at most 256
override SHORT: u32;       // the most tokens of a shortlist, a multiple of 4

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(3) var<storage, read> short_indices: array<u32>;
@group(0) @binding(4) var<storage, read> short_lengths: array<u32>;
@group(0) @binding(5) var<storage, read_write> indices: array<u32>;
@group(0) @binding(6) var<storage, read_write> lengths: array<u32>;

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

// This invocation's part of the product of the query and the key of a shortlist's token.
fn exact_part(kv: u32, listed: u32, part: u32, low: Eight, high: Eight) -> f32 {
  let token = min(short_indices[listed], params.key_stride - 1u);
  var sum = product(low, eight_keys(eight_at(kv, token, part)));
  if (HEAD_WIDTH > 128u) { sum += product(high, eight_keys(eight_at(kv, token, part + 16u))); }
  return sum;
}

// The parts of four tokens of a turn; past the shortlist's end those of its last one.
fn exact_parts(lane: u32, kv: u32, turn: u32, first: u32, n: u32, low: Eight, high: Eight) -> vec4f {
  let part = lane % 16u;
  let i = turn * (WG / 4u) + lane / 16u;
  let last = max(n, 1u) - 1u;
  return vec4f(
    exact_part(kv, first + min(i, last), part, low, high),
    exact_part(kv, first + min(i + WG / 16u, last), part, low, high),
    exact_part(kv, first + min(i + WG / 8u, last), part, low, high),
    exact_part(kv, first + min(i + WG / 16u * 3u, last), part, low, high),
  );
}

fn keep_ranks(lane: u32, turn: u32, n: u32, parts: vec4f) {
  let sum = add_rows(lane, parts);
  let row = row_of(lane);
  let at = turn * (WG / 4u) + row;
  if (row < WG / 4u && at < SHORT) { wg_ranks[at] = select(NO_CANDIDATE, rank_of(sum), at < n); }
  workgroupBarrier();  // also where shuffles add rows: they need the subgroup together
}

// In uniform control flow only.
fn rank_exactly(lane: u32, list_ix: u32, row: Row) {
  let kv = kv_of_list(list_ix);
  let first = first_short(list_ix, row);
  let n = n_short(list_ix, row);
  let low = query_columns(list_ix, lane % 16u * 8u);
  var high = Eight();
  if (HEAD_WIDTH > 128u) { high = query_columns(list_ix, lane % 16u * 8u + 128u); }
  // A turn ranks WG / 4 tokens; two at a time, so that the loads of both are under way together. What no turn reaches stays 0,
  // NO_CANDIDATE.
  for (var turn = 0u; turn * (WG / 4u) < n; turn += 2u) {
    let these = exact_parts(lane, kv, turn, first, n, low, high);
    let others = exact_parts(lane, kv, turn + 1u, first, n, low, high);
    keep_ranks(lane, turn, n, these);
    keep_ranks(lane, turn + 1u, n, others);
  }
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
    if (row.n_heavy > 0u) { rank_exactly(lane, list_ix, row); }
    make_list(lane, list_ix);
  }
}
