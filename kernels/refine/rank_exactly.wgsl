// Shared part of the kernels that re-rank a shortlist: the rank of the exact q·k of each of its tokens. Sixteen invocations
// share a key. No 1/√D, as it changes no order. Needs the parts that read keys, add_rows, WG, and of the kernel:
//   short_token(first, i): the i-th token of the shortlist that begins at `first`
//   keep_rank(i, rank): takes its rank

override HEAD_WIDTH: u32;  // D, a multiple of 8, at most 256

// This invocation's part of the product of the query and the key of a token.
fn exact_part(kv: u32, token: u32, part: u32, low: Eight, high: Eight) -> f32 {
  let at = min(token, params.key_stride - 1u);
  var sum = product(low, eight_keys(eight_at(kv, at, part)));
  if (HEAD_WIDTH > 128u) { sum += product(high, eight_keys(eight_at(kv, at, part + 16u))); }
  return sum;
}

// The parts of four tokens of a turn; past the shortlist's end those of its last one.
fn exact_parts(lane: u32, kv: u32, turn: u32, first: u32, n: u32, low: Eight, high: Eight) -> vec4f {
  let part = lane % 16u;
  let i = turn * (WG / 4u) + lane / 16u;
  let last = max(n, 1u) - 1u;
  return vec4f(
    exact_part(kv, short_token(first, min(i, last)), part, low, high),
    exact_part(kv, short_token(first, min(i + WG / 16u, last)), part, low, high),
    exact_part(kv, short_token(first, min(i + WG / 8u, last)), part, low, high),
    exact_part(kv, short_token(first, min(i + WG / 16u * 3u, last)), part, low, high),
  );
}

// Keeps the ranks of two turns. Ends with a barrier, also where shuffles add rows: they need the subgroup together.
fn keep_ranks(lane: u32, turn: u32, n: u32, parts: vec4f, next_parts: vec4f) {
  let sum = add_rows(lane, parts);
  if (ROWS_NEED_BARRIER) { workgroupBarrier(); }
  let next_sum = add_rows(lane, next_parts);
  let row = row_of(lane);
  let at = turn * (WG / 4u) + row;
  if (row < WG / 4u && at < n) { keep_rank(at, rank_of(sum)); }
  if (row < WG / 4u && at + WG / 4u < n) { keep_rank(at + WG / 4u, rank_of(next_sum)); }
  workgroupBarrier();
}

// Ranks the n tokens of a shortlist; ends with a barrier if there are any. In uniform control flow only.
fn rank_exactly(lane: u32, list_ix: u32, first: u32, n: u32) {
  let kv = kv_of_list(list_ix);
  let low = query_columns(list_ix, lane % 16u * 8u);
  var high = Eight();
  if (HEAD_WIDTH > 128u) { high = query_columns(list_ix, lane % 16u * 8u + 128u); }
  // A turn ranks WG / 4 tokens; two at a time, so that the loads of both are under way together.
  for (var turn = 0u; turn * (WG / 4u) < n; turn += 2u) {
    let these = exact_parts(lane, kv, turn, first, n, low, high);
    let others = exact_parts(lane, kv, turn + 1u, first, n, low, high);
    keep_ranks(lane, turn, n, these, others);
  }
}
