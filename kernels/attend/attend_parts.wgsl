// attend_parts: softmax(q·k / √D) over a part of a list's tokens, and the sum of their values under it.
//
// query:   f32[B, H, rows, D]
// keys:    f32[B, Hkv, key_stride, D], or f16
// values:  f32[B, Hkv, key_stride, D], or f16
// partial: f32[lists, n_parts(), D + 2], see `attend.wgsl`
// output:  f32[B, H, rows, D], written where there is one part
//
// One workgroup owns one part of one list, which it goes over in rounds of as many tokens as it has invocations. Sixteen
// invocations, a group, share sixteen tokens of a round and read eight neighbouring columns of each (sixteen bytes of f16),
// and eight more 128 columns on; no load waits for another token's. A group takes its scores relative to its own largest so
// far and needs no other until the end: there the groups are merged, as `attend_merge` merges the parts, so nothing
// overflows.
// Source: Dao, Fu, Ermon, Rudra, Ré 2022; the split over the list as in Flash-Decoding (Dao, Haziza, Massa, Sizov 2023).

override WG: u32;  // ROUND, a power of two from 64 on

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(3) var<storage, read_write> partial: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

const NONE = -3.4028234e38;  // below every score

override GROUPS: u32 = WG / 16u;  // a power of two from 4 on; token i of a round belongs to group i % GROUPS
override SUM_WORDS: u32 = GROUPS * HEAD_WIDTH;

var<workgroup> wg_scores: array<f32, WG>;       // scores, then weights; 4 bytes per invocation
var<workgroup> wg_tokens: array<u32, WG>;       // 4 bytes per invocation
var<workgroup> wg_sums: array<f32, SUM_WORDS>;  // D / 4 bytes per invocation
var<workgroup> wg_largest: array<f32, GROUPS>;  // the groups' largest scores
var<workgroup> wg_shares: array<vec2f, GROUPS>; // what a group's sums count for, and the sum of its weights by that

// This invocation's part of the product of the query and the key of the round's i-th token.
fn score_part(kv: u32, i: u32, part: u32, low: Eight, high: Eight) -> f32 {
  let token = wg_tokens[i];
  var sum = product(low, eight_keys(eight_at(kv, token, part)));
  if (HEAD_WIDTH > 128u) { sum += product(high, eight_keys(eight_at(kv, token, part + 16u))); }
  return sum;
}

// The parts of four tokens' products from the first-th on, GROUPS apart.
fn score_parts(kv: u32, first: u32, part: u32, low: Eight, high: Eight) -> vec4f {
  return vec4f(
    score_part(kv, first, part, low, high),
    score_part(kv, first + GROUPS, part, low, high),
    score_part(kv, first + 2u * GROUPS, part, low, high),
    score_part(kv, first + 3u * GROUPS, part, low, high),
  );
}

// Keeps the scores of a quarter of the round.
fn keep_scores(lane: u32, quarter: u32, parts: vec4f) {
  let sum = add_rows(lane, parts);
  let row = row_of(lane);
  if (row < WG / 4u) { wg_scores[quarter * (WG / 4u) + row] = sum; }
  workgroupBarrier();  // also where shuffles add rows: they need the subgroup together
}

fn highest(x: vec4f) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

// Four of a group's scores, or weights.
fn four_scores(first: u32) -> vec4f {
  return vec4f(
    wg_scores[first],
    wg_scores[first + GROUPS],
    wg_scores[first + 2u * GROUPS],
    wg_scores[first + 3u * GROUPS],
  );
}

struct Sums {
  low: Eight,
  high: Eight,
}

fn add_eight(sum: Eight, weight: f32, value: Eight) -> Eight {
  let counts = weight != 0.0;
  return Eight(
    select(sum.a, fma(vec4f(weight), value.a, sum.a), counts),
    select(sum.b, fma(vec4f(weight), value.b, sum.b), counts),
  );
}

// Adds the value of the round's i-th token, unless it has no weight: what no token stands for may hold anything.
fn add_value(sums: Sums, kv: u32, i: u32, part: u32, weight: f32) -> Sums {
  let token = wg_tokens[i];
  var result = sums;
  result.low = add_eight(sums.low, weight, eight_values(eight_at(kv, token, part)));
  if (HEAD_WIDTH > 128u) { result.high = add_eight(sums.high, weight, eight_values(eight_at(kv, token, part + 16u))); }
  return result;
}

fn add_values(sums: Sums, kv: u32, first: u32, part: u32) -> Sums {
  let weights = four_scores(first);
  let a = add_value(sums, kv, first, part, weights.x);
  let b = add_value(a, kv, first + GROUPS, part, weights.y);
  let c = add_value(b, kv, first + 2u * GROUPS, part, weights.z);
  return add_value(c, kv, first + 3u * GROUPS, part, weights.w);
}

// Of four groups from the first on: a column's sum, the sum of the weights, the largest score.
fn merged_column(first: u32, column: u32) -> f32 {
  return fma(wg_shares[first].x, wg_sums[first * HEAD_WIDTH + column],
      wg_shares[first + 1u].x * wg_sums[(first + 1u) * HEAD_WIDTH + column]) +
    fma(wg_shares[first + 2u].x, wg_sums[(first + 2u) * HEAD_WIDTH + column],
      wg_shares[first + 3u].x * wg_sums[(first + 3u) * HEAD_WIDTH + column]);
}

fn merged_weight(first: u32) -> f32 {
  return (wg_shares[first].y + wg_shares[first + 1u].y) + (wg_shares[first + 2u].y + wg_shares[first + 3u].y);
}

fn largest_of(first: u32) -> f32 {
  return max(max(wg_largest[first], wg_largest[first + 1u]), max(wg_largest[first + 2u], wg_largest[first + 3u]));
}

fn keep_eight(at: u32, eight: Eight) {
  wg_sums[at] = eight.a.x;
  wg_sums[at + 1u] = eight.a.y;
  wg_sums[at + 2u] = eight.a.z;
  wg_sums[at + 3u] = eight.a.w;
  wg_sums[at + 4u] = eight.b.x;
  wg_sums[at + 5u] = eight.b.y;
  wg_sums[at + 6u] = eight.b.z;
  wg_sums[at + 7u] = eight.b.w;
}

// What a group knows of the tokens so far.
struct Attended {
  largest: f32,  // score
  weight: f32,   // sum of the weights, relative to it
  sums: Sums,    // of the values by their weights
}

fn scaled_eight(eight: Eight, factor: f32) -> Eight {
  return Eight(eight.a * factor, eight.b * factor);
}

// Adds WG tokens of a list from the first-th on. In uniform control flow only; a barrier must separate two calls.
fn attend_round(lane: u32, list_ix: u32, kv: u32, first: u32, low: Eight, high: Eight, before: Attended) -> Attended {
  let at = first + lane;
  // Loaded before it is known whether there is one: nothing waits for the list's length.
  let listed = listed_token(list_ix, at);
  let is_listed = at < list_length(list_ix);
  let token = select(0u, listed, is_listed);
  let weight = select(0.0, weight_of(list_ix, listed), is_listed);
  wg_tokens[lane] = token;
  workgroupBarrier();
  let part = lane % 16u;
  let group = lane / 16u;
  let quarter = 4u * GROUPS;
  let parts_0 = score_parts(kv, group, part, low, high);
  let parts_1 = score_parts(kv, group + quarter, part, low, high);
  let parts_2 = score_parts(kv, group + 2u * quarter, part, low, high);
  let parts_3 = score_parts(kv, group + 3u * quarter, part, low, high);
  keep_scores(lane, 0u, parts_0);
  keep_scores(lane, 1u, parts_1);
  keep_scores(lane, 2u, parts_2);
  keep_scores(lane, 3u, parts_3);
  wg_scores[lane] = select(NONE, wg_scores[lane] * inverseSqrt(f32(HEAD_WIDTH)) + log(weight), weight > 0.0);
  workgroupBarrier();

  // An invocation weighs one of its group's sixteen tokens.
  let highest_here = max(
    max(highest(four_scores(group)), highest(four_scores(group + quarter))),
    max(highest(four_scores(group + 2u * quarter)), highest(four_scores(group + 3u * quarter))),
  );
  let largest = max(before.largest, highest_here);
  let score = wg_scores[group + part * GROUPS];
  workgroupBarrier();
  wg_scores[group + part * GROUPS] = select(0.0, exp(score - largest), score != NONE);
  workgroupBarrier();

  let factor = exp(before.largest - largest);
  var result = Attended(largest, before.weight * factor, before.sums);
  if (MOST_ROUNDS > 1u) {
    result.sums.low = scaled_eight(before.sums.low, factor);
    if (HEAD_WIDTH > 128u) { result.sums.high = scaled_eight(before.sums.high, factor); }
  }
  let four = vec4f(1.0);
  result.weight += (dot(four_scores(group), four) + dot(four_scores(group + quarter), four)) +
    (dot(four_scores(group + 2u * quarter), four) + dot(four_scores(group + 3u * quarter), four));
  result.sums = add_values(result.sums, kv, group, part);
  result.sums = add_values(result.sums, kv, group + quarter, part);
  result.sums = add_values(result.sums, kv, group + 2u * quarter, part);
  result.sums = add_values(result.sums, kv, group + 3u * quarter, part);
  return result;
}

// In uniform control flow only.
fn attend_part(lane: u32, list_ix: u32, part_ix: u32) {
  let kv = kv_of_list(list_ix);
  let part = lane % 16u;
  let group = lane / 16u;
  let low = query_columns(list_ix, 8u * part);
  var high = Eight();
  if (HEAD_WIDTH > 128u) { high = query_columns(list_ix, 8u * part + 128u); }
  var own = Attended(NONE, 0.0, Sums());
  let first = part_ix * part_tokens();
  for (var at = 0u; at < part_tokens(); at += WG) {
    own = attend_round(lane, list_ix, kv, first + at, low, high, own);
    workgroupBarrier();
  }
  let row = group * HEAD_WIDTH;
  if (8u * part < HEAD_WIDTH) { keep_eight(row + 8u * part, own.sums.low); }
  if (8u * part + 128u < HEAD_WIDTH) { keep_eight(row + 8u * part + 128u, own.sums.high); }
  if (part == 0u) {
    wg_largest[group] = own.largest;
    wg_shares[group].y = own.weight;
  }
  workgroupBarrier();
  var largest = NONE;
  for (var first = 0u; first < GROUPS; first += 16u) {
    largest = max(largest, largest_of(first));
    if (GROUPS > 4u) { largest = max(largest, largest_of(first + 4u)); }
    if (GROUPS > 8u) { largest = max(largest, max(largest_of(first + 8u), largest_of(first + 12u))); }
  }
  if (lane < GROUPS) {
    let share = exp(wg_largest[lane] - largest);
    wg_shares[lane] = vec2f(share, share * wg_shares[lane].y);
  }
  workgroupBarrier();

  var sum = 0.0;
  for (var first = 0u; first < GROUPS; first += 16u) {
    sum += merged_weight(first);
    if (GROUPS > 4u) { sum += merged_weight(first + 4u); }
    if (GROUPS > 8u) { sum += merged_weight(first + 8u) + merged_weight(first + 12u); }
  }
  let out = (list_ix * n_parts() + part_ix) * (HEAD_WIDTH + 2u);
  for (var column = lane; column < HEAD_WIDTH; column += WG) {
    var all = 0.0;
    for (var first = 0u; first < GROUPS; first += 16u) {
      all += merged_column(first, column);
      if (GROUPS > 4u) { all += merged_column(first + 4u, column); }
      if (GROUPS > 8u) { all += merged_column(first + 8u, column) + merged_column(first + 12u, column); }
    }
    if (n_parts() == 1u) {
      output[list_ix * HEAD_WIDTH + column] = select(all / sum, 0.0, sum == 0.0);
    } else {
      partial[out + column] = all;
    }
  }
  if (lane == 0u && n_parts() > 1u) {
    partial[out + HEAD_WIDTH] = largest;
    partial[out + HEAD_WIDTH + 1u] = sum;
  }
}

@compute @workgroup_size(WG)
fn attend_parts(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists() * n_parts()) {
    attend_part(lane, ix / n_parts(), ix % n_parts());
  }
}
