// attend_parts: softmax(q·k / √D) over a part of a list's tokens, and the sum of their values under it.
//
// query:   f32[B, H, rows, D]
// keys:    f32[B, Hkv, key_stride, D], or f16
// values:  f32[B, Hkv, key_stride, D], or f16
// partial: f32[lists, n_parts(), D + 2], see `attend.wgsl`
// output:  f32[B, H, rows, D], written where there is one part
//
// One workgroup owns one part of one list: PART tokens, as many as it has invocations. Sixteen invocations share a token and
// read eight neighbouring columns each (sixteen bytes of f16), and eight more 128 columns on. Scores are taken relative to
// the largest of the part (`attend_merge` does the same with the parts), so nothing overflows.
// Source: Dao, Fu, Ermon, Rudra, Ré 2022; the split over the list as in Flash-Decoding (Dao, Haziza, Massa, Sizov 2023).

override WG: u32;  // PART, a power of two from 64 on

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(4) var<storage, read_write> partial: array<f32>;
@group(0) @binding(5) var<storage, read_write> output: array<f32>;

const NONE = -3.4028234e38;  // below every score

override GROUPS: u32 = WG / 16u;
override SUM_WORDS: u32 = GROUPS * HEAD_WIDTH;

var<workgroup> wg_scores: array<f32, WG>;       // scores, then weights; 4 bytes per invocation
var<workgroup> wg_tokens: array<u32, WG>;       // 4 bytes per invocation
var<workgroup> wg_sums: array<f32, SUM_WORDS>;  // D / 4 bytes per invocation

// This invocation's part of the product of the query and the key of the part's i-th token.
fn score_part(kv: u32, i: u32, part: u32, low: Eight, high: Eight) -> f32 {
  let token = wg_tokens[i];
  var sum = product(low, eight_keys(eight_at(kv, token, part)));
  if (HEAD_WIDTH > 128u) { sum += product(high, eight_keys(eight_at(kv, token, part + 16u))); }
  return sum;
}

// Scores of a quarter of the part.
fn score_quarter(lane: u32, kv: u32, quarter: u32, low: Eight, high: Eight) {
  let part = lane % 16u;
  let first = quarter * (WG / 4u) + lane / 16u;
  let sum = add_rows(lane, vec4f(
    score_part(kv, first, part, low, high),
    score_part(kv, first + GROUPS, part, low, high),
    score_part(kv, first + 2u * GROUPS, part, low, high),
    score_part(kv, first + 3u * GROUPS, part, low, high),
  ));
  let row = row_of(lane);
  if (row < WG / 4u) { wg_scores[quarter * (WG / 4u) + row] = sum; }
  workgroupBarrier();  // also where shuffles add rows: they need the subgroup together
}

struct Sums {
  low: Eight,
  high: Eight,
}

fn add_eight(sum: Eight, weight: f32, value: Eight) -> Eight {
  return Eight(fma(vec4f(weight), value.a, sum.a), fma(vec4f(weight), value.b, sum.b));
}

// Adds the value of the part's i-th token, unless it has no weight: what no token stands for may hold anything.
fn add_value(sums: Sums, kv: u32, i: u32, part: u32) -> Sums {
  let weight = wg_scores[i];
  let token = wg_tokens[i];
  var result = sums;
  if (weight > 0.0) {
    result.low = add_eight(sums.low, weight, eight_values(eight_at(kv, token, part)));
    if (HEAD_WIDTH > 128u) { result.high = add_eight(sums.high, weight, eight_values(eight_at(kv, token, part + 16u))); }
  }
  return result;
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

// In uniform control flow only.
fn attend_part(lane: u32, list_ix: u32, part_ix: u32) {
  let kv = kv_of_list(list_ix);
  let part = lane % 16u;
  let low = query_columns(list_ix, 8u * part);
  var high = Eight();
  if (HEAD_WIDTH > 128u) { high = query_columns(list_ix, 8u * part + 128u); }
  let at = part_ix * PART + lane;
  let is_listed = at < list_length(list_ix);
  var token = 0u;
  var weight = 0.0;
  if (is_listed) {
    token = listed_token(list_ix, at);
    weight = weight_of(list_ix, token);
  }
  wg_tokens[lane] = token;
  workgroupBarrier();
  score_quarter(lane, kv, 0u, low, high);
  score_quarter(lane, kv, 1u, low, high);
  score_quarter(lane, kv, 2u, low, high);
  score_quarter(lane, kv, 3u, low, high);

  var score = NONE;
  if (weight > 0.0) { score = wg_scores[lane] * inverseSqrt(f32(HEAD_WIDTH)) + log(weight); }
  let largest = greatest(lane, score);
  var share = 0.0;
  if (weight > 0.0) { share = exp(score - largest); }
  wg_scores[lane] = share;
  let sum = total(lane, share);

  var sums = Sums();
  for (var k = 0u; k < 16u; k += 4u) {
    let i = lane / 16u + k * GROUPS;
    sums = add_value(sums, kv, i, part);
    sums = add_value(sums, kv, i + GROUPS, part);
    sums = add_value(sums, kv, i + 2u * GROUPS, part);
    sums = add_value(sums, kv, i + 3u * GROUPS, part);
  }
  let row = lane / 16u * HEAD_WIDTH;
  if (8u * part < HEAD_WIDTH) { keep_eight(row + 8u * part, sums.low); }
  if (8u * part + 128u < HEAD_WIDTH) { keep_eight(row + 8u * part + 128u, sums.high); }
  workgroupBarrier();

  let out = (list_ix * n_parts() + part_ix) * (HEAD_WIDTH + 2u);
  for (var column = lane; column < HEAD_WIDTH; column += WG) {
    var all = 0.0;
    for (var group = 0u; group < GROUPS; group += 4u) {
      all += (wg_sums[group * HEAD_WIDTH + column] + wg_sums[(group + 1u) * HEAD_WIDTH + column]) +
        (wg_sums[(group + 2u) * HEAD_WIDTH + column] + wg_sums[(group + 3u) * HEAD_WIDTH + column]);
    }
    if (n_parts() == 1u) {
      output[list_ix * HEAD_WIDTH + column] = select(0.0, all / sum, sum > 0.0);
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
