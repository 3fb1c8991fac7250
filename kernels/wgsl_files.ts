// Generated from the .wgsl files by `deno task generate`: edit those, not this.
// deno-fmt-ignore-file

/** WGSL texts by path below `kernels/`. */
export const WGSL_FILES: Readonly<Record<string, string>> = {
  "attend/attend.wgsl": `// Shared part of the attention kernels: how partial results lie. A part is one or more rounds of ROUND tokens of one list;
// where a list has one part only, its result goes to the output at once. Few lists, or short ones, make short parts,
// so that there is work for the whole GPU; many make long ones, which share what a workgroup begins and ends with.
//
// partial: f32[lists, n_parts(), D + 2]: the weighted sum of values, then the maximum and the sum of the weights.

override HEAD_WIDTH: u32;   // D, a multiple of 8, at most 256
override ROUND: u32;        // tokens per round
override MOST_ROUNDS: u32;  // per part
override WORKGROUPS: u32;   // as many as rounds are to leave

fn part_tokens() -> u32 {
  let step = ROUND * max(WORKGROUPS / max(n_lists(), 1u), 1u);
  return ROUND * clamp((params.attended + step - 1u) / step, 1u, MOST_ROUNDS);
}

fn n_parts() -> u32 {
  return (params.attended + part_tokens() - 1u) / part_tokens();
}
`,
  "attend/attend_merge.wgsl": `// attend_merge: the parts of each list's attention become one. Follows attend_parts where lists have several parts.
//
// partial: f32[lists, n_parts(), D + 2], see \`attend.wgsl\`
// output:  f32[B, H, rows, D]
//
// One workgroup owns one list, an invocation a column. Parts count relative to the largest score of all.

override WG: u32;  // a power of two

@group(0) @binding(1) var<storage, read> partial: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const NONE = -3.4028234e38;  // below every score

@compute @workgroup_size(WG)
fn attend_merge(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    let row = HEAD_WIDTH + 2u;
    let first = list_ix * n_parts() * row;
    var own = NONE;
    for (var p = lane; p < n_parts(); p += WG) { own = max(own, partial[first + p * row + HEAD_WIDTH]); }
    let largest = greatest(lane, own);
    var share = 0.0;
    for (var p = lane; p < n_parts(); p += WG) {
      let at = first + p * row + HEAD_WIDTH;
      share = fma(exp(partial[at] - largest), partial[at + 1u], share);
    }
    let sum = total(lane, share);
    for (var column = lane; column < HEAD_WIDTH; column += WG) {
      var all = 0.0;
      for (var p = 0u; p < n_parts(); p++) {
        let at = first + p * row;
        all = fma(exp(partial[at + HEAD_WIDTH] - largest), partial[at + column], all);
      }
      output[list_ix * HEAD_WIDTH + column] = select(all / sum, 0.0, sum == 0.0);
    }
  }
}
`,
  "attend/attend_parts.wgsl": `// attend_parts: softmax(q·k / √D) over a part of a list's tokens, and the sum of their values under it.
//
// query:   f32[B, H, rows, D]
// keys:    f32[B, Hkv, key_stride, D], or f16
// values:  f32[B, Hkv, key_stride, D], or f16
// partial: f32[lists, n_parts(), D + 2], see \`attend.wgsl\`
// output:  f32[B, H, rows, D], written where there is one part
//
// One workgroup owns one part of one list, which it goes over in rounds of as many tokens as it has invocations. Sixteen
// invocations, a group, share sixteen tokens of a round and read eight neighbouring columns of each (sixteen bytes of f16),
// and eight more 128 columns on; no load waits for another token's. A group takes its scores relative to its own largest so
// far and needs no other until the end: there the groups are merged, as \`attend_merge\` merges the parts, so nothing
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
`,
  "attend/dense.wgsl": `// In place of \`listed.wgsl\`: attention over all tokens that a row sees.

fn list_length(list_ix: u32) -> u32 {
  return min(row_of_list(list_ix).n_tokens, params.key_stride);
}

fn listed_token(list_ix: u32, at: u32) -> u32 {
  return min(at, params.key_stride - 1u);
}
`,
  "attend/listed.wgsl": `// Attention over the tokens of lists, one per query head or one for the heads of a KV head. Bindings are this part's.
//
// indices: u32[B, LIST_HEADS, rows, list_stride]
// lengths: u32[B, LIST_HEADS, rows]

override LIST_HEADS: u32;  // H, or a divisor of it

// Which list query head and row \`list_ix\` attend to.
fn shared_list(list_ix: u32) -> u32 {
  if (LIST_HEADS == HEADS) { return list_ix; }
  return list_ix / params.n_rows / (HEADS / LIST_HEADS) * params.n_rows + list_ix % params.n_rows;
}

@group(0) @binding(5) var<storage, read> indices: array<u32>;
@group(0) @binding(6) var<storage, read> lengths: array<u32>;

fn list_length(list_ix: u32) -> u32 {
  return min(lengths[shared_list(list_ix)], params.list_stride);
}

fn listed_token(list_ix: u32, at: u32) -> u32 {
  let within = min(at, params.list_stride - 1u);
  return min(indices[shared_list(list_ix) * params.list_stride + within], params.key_stride - 1u);
}
`,
  "attend/reduce_shared.wgsl": `// Maximum and sum over a workgroup, through workgroup memory, halving. Needs WG, a power of two. In uniform control flow
// only; both begin and end with a barrier.

var<workgroup> wg_reduced: array<f32, WG>;  // 4 bytes per invocation

fn greatest(lane: u32, value: f32) -> f32 {
  wg_reduced[lane] = value;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) { wg_reduced[lane] = max(wg_reduced[lane], wg_reduced[lane + half]); }
  }
  return workgroupUniformLoad(&wg_reduced[0]);
}

fn total(lane: u32, value: f32) -> f32 {
  wg_reduced[lane] = value;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) { wg_reduced[lane] += wg_reduced[lane + half]; }
  }
  return workgroupUniformLoad(&wg_reduced[0]);
}
`,
  "attend/unweighted.wgsl": `// In place of \`weighted.wgsl\`: every listed token counts alike.

fn weight_of(list_ix: u32, token: u32) -> f32 {
  return 1.0;
}
`,
  "attend/weighted.wgsl": `// Attention whose tokens carry weights: exp(score) is multiplied by them, and 0 excludes. The binding is this part's.
//
// weights: f32[B, LIST_HEADS, rows, weight_stride]

@group(0) @binding(9) var<storage, read> weights: array<f32>;

fn weight_of(list_ix: u32, token: u32) -> f32 {
  return weights[shared_list(list_ix) * params.weight_stride + min(token, params.weight_stride - 1u)];
}
`,
  "layer/columns.wgsl": `// Shared part of everything that sums over the columns of a subvector. All kernels add up in one order,
// whether one invocation walks all columns or 16 share them, so all GPU pipelines agree to the byte:
// partial sum p takes columns p, p + 16, p + 32, ... upwards by fma, from 0; then the partial sums that are
// 8 apart are added, then those 4, 2 and 1 apart. The chain is d / 16 + 4 long instead of d.

const N_PARTS = 16u;

// Partial sums 0 .. 3, 4 .. 7, 8 .. 11 and 12 .. 15.
fn add_parts(a: vec4f, b: vec4f, c: vec4f, d: vec4f) -> f32 {
  let four = (a + c) + (b + d);
  let two = four.xy + four.zw;
  return two.x + two.y;
}

// Whether column first + part exists, for a multiple \`first\` of 16; known to the compiler for whole blocks.
fn has_column(part: u32, first: u32) -> bool {
  return first + N_PARTS <= SUB_WIDTH || first + part < SUB_WIDTH;
}
`,
  "layer/eight.wgsl": `// Shared part of the kernels that read cached keys and values: eight neighbouring columns at a time, sixteen bytes of f16.

struct Eight {
  a: vec4f,
  b: vec4f,
}

fn unpacked(words: vec4u) -> Eight {
  return Eight(
    vec4f(unpack2x16float(words.x), unpack2x16float(words.y)),
    vec4f(unpack2x16float(words.z), unpack2x16float(words.w)),
  );
}

fn product(x: Eight, y: Eight) -> f32 {
  let z = fma(x.b, y.b, x.a * y.a);
  return (z.x + z.y) + (z.z + z.w);
}
`,
  "layer/keys_f16.wgsl": `// In place of \`keys_f32.wgsl\` where keys are f16, two per word: eight neighbouring columns are one vector. Needs no
// optional feature: the words are unpacked to f32.

@group(0) @binding(10) var<storage, read> keys: array<vec4u>;

fn eight_keys(at: u32) -> Eight {
  return unpacked(keys[at]);
}
`,
  "layer/keys_f32.wgsl": `// How cached keys are read: f32, eight neighbouring columns are two vectors.

@group(0) @binding(10) var<storage, read> keys: array<vec4f>;

fn eight_keys(at: u32) -> Eight {
  return Eight(keys[2u * at], keys[2u * at + 1u]);
}
`,
  "layer/layer.wgsl": `// The shape of the layer, the step's Params, and how workgroups and lists are numbered.
// First part of every kernel of a step.
//
// A "list" is one (batch, query head, row): list_ix = (b * HEADS + h) * n_rows + r.
// A "kv" is one (batch, KV head): kv = b * KV_HEADS + h_kv.

override BATCH: u32;
override HEADS: u32;
override KV_HEADS: u32;
override SUBVECTORS: u32;      // M
override CENTROIDS: u32;       // C
override SUB_WIDTH: u32;       // d = D / M
override CENTROID_WIDTH: u32;  // columns of a centroid: d, or d + 1 for metric "ip"

const MAX_ROWS = 64u;

// What one query row asks for, already resolved by the host: plain ranges, no rules.
struct Row {
  n_tokens: u32,      // tokens that the row sees
  n_sink: u32,        // tokens 0 .. n_sink are listed
  n_heavy: u32,       // so many candidates are picked; there are at least as many
  window_begin: u32,  // tokens window_begin .. n_tokens are listed
  cand_begin: u32,    // candidates cand_begin .. cand_end, counted in coded tokens
  cand_end: u32,
  list_length: u32,
  n_short: u32,       // so many are taken by score, to choose n_heavy of them; n_heavy where nothing is re-ranked
}

struct Params {
  n_coded: u32,        // coded tokens, the new ones included; coded token i is token init_offset + i
  n_new: u32,          // keys coded in this step: the last n_new coded tokens
  first_new_key: u32,  // position among the step's new keys of the first coded one
  n_new_keys: u32,     // new keys per kv in the key input
  init_offset: u32,
  coded_stride: u32,   // rows of codes and scores start at multiples of this
  heavy_stride: u32,   // rows of heavy tokens
  list_stride: u32,    // rows of indices
  weight_stride: u32,  // rows of weights
  n_rows: u32,
  n_beside: u32,       // keys that the kernel of the lists codes beside them: n_new or 0
  clears_previous: u32,  // 1: indices and lengths hold the lists that weights hold; 0: weights are 0
  post_begin: u32,       // the postings hold the coded tokens post_begin .. post_end
  post_end: u32,
  key_stride: u32,       // tokens from one kv's keys and values to the next
  attended: u32,         // the most tokens that a list attends to, or the distance of rows of a shortlist
  @align(16) rows: array<Row, MAX_ROWS>,
}

@group(0) @binding(0) var<uniform> params: Params;

// Workgroups form one line, folded into y where it is longer than 65,535.
fn job_ix(workgroup_id: vec3u, num_workgroups: vec3u) -> u32 {
  return workgroup_id.y * num_workgroups.x + workgroup_id.x;
}

fn n_lists() -> u32 {
  return BATCH * HEADS * params.n_rows;
}

// The row of a list; in the common case of one row, at an address that the compiler knows.
fn row_of_list(list_ix: u32) -> Row {
  if (params.n_rows == 1u) { return params.rows[0]; }
  return params.rows[list_ix % params.n_rows];
}

fn kv_of_list(list_ix: u32) -> u32 {
  let query_head = list_ix / params.n_rows;
  return (query_head / HEADS) * KV_HEADS + (query_head % HEADS) / (HEADS / KV_HEADS);
}
`,
  "layer/query_columns.wgsl": `// Shared part of the kernels that multiply a query with cached keys: sixteen invocations share a key and have eight
// neighbouring columns each, and eight more 128 columns on. Needs query and HEAD_WIDTH.

fn query_eight(at: u32) -> Eight {
  return Eight(
    vec4f(query[at], query[at + 1u], query[at + 2u], query[at + 3u]),
    vec4f(query[at + 4u], query[at + 5u], query[at + 6u], query[at + 7u]),
  );
}

// Eight neighbouring columns of the query; 0 past the last.
fn query_columns(list_ix: u32, first: u32) -> Eight {
  let at = list_ix * HEAD_WIDTH + min(first, HEAD_WIDTH - 8u);
  let eight = query_eight(at);
  let is_there = first < HEAD_WIDTH;
  return Eight(select(vec4f(), eight.a, is_there), select(vec4f(), eight.b, is_there));
}

// Where eight columns of a token lie; past the last, those before.
fn eight_at(kv: u32, token: u32, part: u32) -> u32 {
  return (kv * params.key_stride + token) * (HEAD_WIDTH / 8u) + min(part, HEAD_WIDTH / 8u - 1u);
}
`,
  "layer/rows_shared.wgsl": `// How 16 invocations that share a row add their partial sums: through workgroup memory. Needs WG, a multiple of 16.
// Rows go WG / 4 at a time: lane / 16 owns four of them, WG / 16 apart.

const ROWS_NEED_BARRIER = true;

override ROWS: u32 = WG / 4u;
override ROW_WORDS: u32 = ROWS * 17u;  // a stride of 17: no two invocations that add up rows meet in a bank

var<workgroup> wg_rows: array<f32, ROW_WORDS>;  // 17 bytes per invocation

// The sum of row row_of(lane) out of four rows, whose partial sums are \`parts\`. In uniform control flow only; a barrier
// must separate two calls where ROWS_NEED_BARRIER.
fn add_rows(lane: u32, parts: vec4f) -> f32 {
  let at = lane / N_PARTS * 17u + lane % N_PARTS;
  wg_rows[at] = parts.x;
  wg_rows[at + ROW_WORDS / 4u] = parts.y;
  wg_rows[at + ROW_WORDS / 2u] = parts.z;
  wg_rows[at + ROW_WORDS / 4u * 3u] = parts.w;
  workgroupBarrier();
  var sum = 0.0;
  if (lane < ROWS) {
    let r = lane * 17u;
    sum = add_parts(
      vec4f(wg_rows[r], wg_rows[r + 1u], wg_rows[r + 2u], wg_rows[r + 3u]),
      vec4f(wg_rows[r + 4u], wg_rows[r + 5u], wg_rows[r + 6u], wg_rows[r + 7u]),
      vec4f(wg_rows[r + 8u], wg_rows[r + 9u], wg_rows[r + 10u], wg_rows[r + 11u]),
      vec4f(wg_rows[r + 12u], wg_rows[r + 13u], wg_rows[r + 14u], wg_rows[r + 15u]),
    );
  }
  return sum;
}

// Which row's sum an invocation keeps; ROWS and above: none.
fn row_of(lane: u32) -> u32 {
  return lane;
}
`,
  "layer/rows_subgroup.wgsl": `// How 16 invocations that share a row add their partial sums: by shuffles, in the order of \`add_parts\`, without
// a barrier. In place of \`rows_shared.wgsl\` where subgroups have 16 invocations or more.
// Shuffles need the subgroup together (see \`scan_subgroup.wgsl\`). Sums of widths that are no multiple of 16 end in a branch
// that some invocations skip: there a barrier brings them together.
// While there is more than one row, half of the 16 give away what the other half goes on with: 5 shuffles, not 16.

enable subgroups;

const ROWS_NEED_BARRIER = false;

override ROWS: u32 = WG / 4u;

fn add_rows(lane: u32, parts: vec4f) -> f32 {
  if (SUB_WIDTH % N_PARTS != 0u || CENTROID_WIDTH % N_PARTS != 0u) { workgroupBarrier(); }
  let is_upper = (lane & 8u) != 0u;
  let two = select(parts.xy, parts.zw, is_upper) + subgroupShuffleXor(select(parts.zw, parts.xy, is_upper), 8u);
  let is_odd = (lane & 4u) != 0u;
  var sum = select(two.x, two.y, is_odd) + subgroupShuffleXor(select(two.y, two.x, is_odd), 4u);
  sum += subgroupShuffleXor(sum, 2u);
  sum += subgroupShuffleXor(sum, 1u);
  return sum;
}

// Four invocations have the sum of one row; the first of them keeps it.
fn row_of(lane: u32) -> u32 {
  return select(WG, lane / N_PARTS + lane / 4u % 4u * (WG / N_PARTS), lane % 4u == 0u);
}
`,
  "layer/values_f16.wgsl": `// In place of \`values_f32.wgsl\` where values are f16, two per word: eight neighbouring columns are one vector. Needs no
// optional feature: the words are unpacked to f32.

@group(0) @binding(2) var<storage, read> values: array<vec4u>;

fn eight_values(at: u32) -> Eight {
  return unpacked(values[at]);
}
`,
  "layer/values_f32.wgsl": `// How cached values are read: f32, eight neighbouring columns are two vectors.

@group(0) @binding(2) var<storage, read> values: array<vec4f>;

fn eight_values(at: u32) -> Eight {
  return Eight(values[2u * at], values[2u * at + 1u]);
}
`,
  "list/concat.wgsl": `// concat: indices[l, :] = [sink | heavy | window], not sorted yet; lengths[l] = how many.
// Stage: list (e01). A short sequence lists everything: its row has n_sink = n_tokens.
//
// heavy:    u32[B, H, rows, heavy_stride]
// indices:  u32[B, H, rows, list_stride]
// lengths:  u32[B, H, rows]
//
// One invocation owns one position of a list; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> heavy: array<u32>;
@group(0) @binding(2) var<storage, read_write> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(WG)
fn concat(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.list_stride) {
    let j = ix % params.list_stride;
    let list_ix = ix / params.list_stride;
    let r = list_ix % params.n_rows;
    let n_sink = params.rows[r].n_sink;
    let n_before_window = n_sink + params.rows[r].n_heavy;
    let length = params.rows[r].list_length;
    if (j == 0u) { lengths[list_ix] = length; }
    if (j < length) {
      var token = j;
      if (j >= n_before_window) {
        token = params.rows[r].window_begin + j - n_before_window;
      } else if (j >= n_sink) {
        token = heavy[list_ix * params.heavy_stride + j - n_sink];
      }
      indices[ix] = token;
    }
  }
}
`,
  "list/offset.wgsl": `// offset: heavy[l, j] = topk_ix[l, j] + init_offset: from positions among coded tokens to tokens.
// Stage: list (e01).
//
// topk_ix: u32[B, H, rows, heavy_stride]
// heavy:   u32[B, H, rows, heavy_stride]
//
// One invocation owns one element; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> topk_ix: array<u32>;
@group(0) @binding(2) var<storage, read_write> heavy: array<u32>;

@compute @workgroup_size(WG)
fn offset(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.heavy_stride) {
    let j = ix % params.heavy_stride;
    let list_ix = ix / params.heavy_stride;
    if (j < params.rows[list_ix % params.n_rows].n_heavy) {
      heavy[ix] = topk_ix[ix] + params.init_offset;
    }
  }
}
`,
  "list/scatter.wgsl": `// scatter: weights[l, indices[l, j]] = 1.
// Stage: weights (e01), after zeros.
//
// indices: u32[B, H, rows, list_stride]
// weights: f32[B, H, rows, weight_stride]
//
// One invocation owns one position of a list; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> indices: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

@compute @workgroup_size(WG)
fn scatter(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.list_stride) {
    let j = ix % params.list_stride;
    let list_ix = ix / params.list_stride;
    if (j < params.rows[list_ix % params.n_rows].list_length) {
      weights[list_ix * params.weight_stride + indices[ix]] = 1.0;
    }
  }
}
`,
  "list/sort.wgsl": `// sort: indices[l, :] in ascending order, in place.
// Stage: list (e01).
//
// indices: u32[B, H, rows, list_stride]
//
// One workgroup owns one list and sorts it through storage, with a bitonic network.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> indices: array<u32>;

fn put_lower_first(at: u32, pair: vec2u, n: u32) {
  if (pair.y < n) {
    let a = indices[at + pair.x];
    let b = indices[at + pair.y];
    if (b < a) {
      indices[at + pair.x] = b;
      indices[at + pair.y] = a;
    }
  }
}

@compute @workgroup_size(WG)
fn sort(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  let length = params.rows[list_ix % params.n_rows].list_length;
  if (list_ix < n_lists() && length > 0u) {
    let at = list_ix * params.list_stride;
    let n_pairs = power_of_two(length) / 2u;
    for (var block = 2u; block <= 2u * n_pairs; block *= 2u) {
      for (var t = lane; t < n_pairs; t += WG) {
        put_lower_first(at, flip_pair(t, block), length);
      }
      storageBarrier();
      for (var gap = block / 4u; gap > 0u; gap /= 2u) {
        for (var t = lane; t < n_pairs; t += WG) {
          put_lower_first(at, gap_pair(t, gap), length);
        }
        storageBarrier();
      }
    }
  }
}
`,
  "list/zeros.wgsl": `// zeros: weights[l, :] = 0, the whole row.
// Stage: weights (e01).
//
// weights: f32[B, H, rows, weight_stride]
//
// One invocation owns one weight; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> weights: array<f32>;

@compute @workgroup_size(WG)
fn zeros(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.weight_stride) {
    weights[ix] = 0.0;
  }
}
`,
  "pool/pool.wgsl": `// Shared part of the kernels that pool scores over the query heads of a KV head: a pooled list is one (batch, KV head, row).

fn n_pooled() -> u32 {
  return BATCH * KV_HEADS * params.n_rows;
}

// The list of the g-th head of a pooled list's group.
fn list_of_head(pooled: u32, g: u32) -> u32 {
  let kv = pooled / params.n_rows;
  return (kv * (HEADS / KV_HEADS) + g) * params.n_rows + pooled % params.n_rows;
}
`,
  "pool/pool_max.wgsl": `// pool_max: pooled_scores[kv, r, i] = max over the group's heads of scores[h, r, i]; NaN only if all are. Stage: pooling.
//
// scores:        f32[B, H, rows, coded_stride]
// pooled_scores: f32[B, Hkv, rows, coded_stride]
//
// One invocation owns one coded token of one pooled list.

override WG: u32;

@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled_scores: array<f32>;

@compute @workgroup_size(WG)
fn pool_max(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_pooled() * params.n_coded) {
    let pooled = ix / params.n_coded;
    let i = ix % params.n_coded;
    var best = scores[list_of_head(pooled, 0u) * params.coded_stride + i];
    for (var g = 1u; g < HEADS / KV_HEADS; g++) {
      let other = scores[list_of_head(pooled, g) * params.coded_stride + i];
      best = select(best, other, rank_of(other) > rank_of(best));
    }
    pooled_scores[pooled * params.coded_stride + i] = best;
  }
}
`,
  "pool/pool_softmax.wgsl": `// pool_softmax: pooled_scores[kv, r, i] = sum over the group's heads h of softmax over the row's candidates of
// scores[h, r, :] / √D, at i. Stage: pooling. Source: Zhang, Zheng, Wang, Ye, Miao et al., PQCache, 2024.
//
// scores:        f32[B, H, rows, coded_stride]
// pooled_scores: f32[B, Hkv, rows, coded_stride]: written at the row's candidates
//
// One workgroup owns one pooled list; an invocation owns every WG-th candidate, and adds the heads upwards. Sums go from each
// invocation's own candidates upwards, then halves of the workgroup, so in one order.

override WG: u32;  // a power of two

@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled_scores: array<f32>;

var<workgroup> wg_values: array<f32, WG>;  // 4 bytes per invocation

fn share(score: f32, largest: f32) -> f32 {
  return exp((score - largest) * inverseSqrt(f32(SUBVECTORS * SUB_WIDTH)));
}

@compute @workgroup_size(WG)
fn pool_softmax(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let pooled = job_ix(workgroup_id, num_workgroups);
  if (pooled >= n_pooled()) { return; }
  let begin = params.rows[pooled % params.n_rows].cand_begin;
  let end = params.rows[pooled % params.n_rows].cand_end;
  for (var g = 0u; g < HEADS / KV_HEADS; g++) {
    let first = list_of_head(pooled, g) * params.coded_stride;
    var own = -3.4028234e38;
    for (var i = begin + lane; i < end; i += WG) { own = max(own, scores[first + i]); }
    wg_values[lane] = own;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
      if (lane < half) { wg_values[lane] = max(wg_values[lane], wg_values[lane + half]); }
      workgroupBarrier();
    }
    let largest = workgroupUniformLoad(&wg_values[0]);
    own = 0.0;
    for (var i = begin + lane; i < end; i += WG) { own += share(scores[first + i], largest); }
    wg_values[lane] = own;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
      if (lane < half) { wg_values[lane] += wg_values[lane + half]; }
      workgroupBarrier();
    }
    let total = workgroupUniformLoad(&wg_values[0]);
    for (var i = begin + lane; i < end; i += WG) {
      let at = pooled * params.coded_stride + i;
      var sum = 0.0;
      if (g > 0u) { sum = pooled_scores[at]; }
      pooled_scores[at] = sum + share(scores[first + i], largest) / total;
    }
  }
}
`,
  "pool/sum_queries.wgsl": `// sum_queries: pooled_query[kv, r] = sum over the group's heads of query[h, r], heads upwards. Stage: pooling by sums of scores:
// the sum of q_h·x over the heads h is (sum of q_h)·x, so a step of one summed query per KV head is all that it takes.
//
// query:        f32[B, H, rows, D]
// pooled_query: f32[B, Hkv, rows, D]
//
// One invocation owns one value.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled_query: array<f32>;

@compute @workgroup_size(WG)
fn sum_queries(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let row = params.n_rows * (SUBVECTORS * SUB_WIDTH);
  if (ix < BATCH * KV_HEADS * row) {
    let heads = HEADS / KV_HEADS;
    let first = ix / row * heads * row + ix % row;
    var sum = query[first];
    for (var g = 1u; g < heads; g++) { sum += query[first + g * row]; }
    pooled_query[ix] = sum;
  }
}
`,
  "postings/cell_of.wgsl": `// Shared part of the kernels that make postings: the cell of a token. Needs codes.

// The cell of the i-th coded token of a kv: the code of subvector m in bits m * CODE_BITS and up.
fn cell_of(kv: u32, i: u32) -> u32 {
  var cell = 0u;
  for (var m = 0u; m < SUBVECTORS; m++) {
    let word = codes[(kv * SUBVECTORS + m) * (params.coded_stride / 4u) + i / 4u];
    cell |= extractBits(word, i % 4u * 8u, 8u) << (m * CODE_BITS);
  }
  return cell;
}
`,
  "postings/count_cells.wgsl": `// count_cells: how many tokens of each chunk are in each cell. Stage: postings (e08), first of three.
//
// codes:       u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// cell_counts: u32[B, Hkv, chunks, CELLS]
//
// One workgroup owns one chunk of one kv.

override WG: u32;

@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> cell_counts: array<u32>;

var<workgroup> wg_counts: array<atomic<u32>, CELLS>;  // 4 bytes per cell

@compute @workgroup_size(WG)
fn count_cells(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * n_chunks()) {
    let kv = ix / n_chunks();
    let chunk = ix % n_chunks();
    let begin = max(chunk * chunk_tokens(), params.post_begin);
    let end = min((chunk + 1u) * chunk_tokens(), params.post_end);
    for (var i = begin + lane; i < end; i += WG) {
      atomicAdd(&wg_counts[cell_of(kv, i)], 1u);
    }
    workgroupBarrier();
    let row = (kv * most_chunks() + chunk) * CELLS;
    for (var cell = lane; cell < CELLS; cell += WG) {
      cell_counts[row + cell] = atomicLoad(&wg_counts[cell]);
    }
  }
}
`,
  "postings/postings.wgsl": `// Shared part of the kernels that know tokens by their cells. A cell is a combination of codes, one per subvector: all
// tokens of a cell have the same score. The postings of a kv are its coded tokens post_begin .. post_end, by cell and
// ascending within each cell (a counting sort): an inverted file, as in Jégou, Douze, Schmid 2011.
//
// postings: u32[Hkv of all batches, CELL_ROOM + coded_stride]: where each cell begins, then the tokens as positions among
// the coded ones, cell by cell. What follows the last cell's beginning, up to CELL_ROOM, is where the last one ends.

override CELLS: u32;      // C^M
override CODE_BITS: u32;  // bits of a code

override CELL_ROOM: u32 = (CELLS + 3u) / 4u * 4u + 4u;

// While postings are made, tokens come in chunks of this many, 16 at most.
fn chunk_tokens() -> u32 {
  return max((params.post_end + 4095u) / 4096u * 256u, 4096u);
}

fn n_chunks() -> u32 {
  return (params.post_end + chunk_tokens() - 1u) / chunk_tokens();
}

// Rows of cell_counts: u32[kv, most_chunks(), CELLS].
fn most_chunks() -> u32 {
  return min((params.coded_stride + 4095u) / 4096u, 16u);
}

fn posting_row(kv: u32) -> u32 {
  return kv * (CELL_ROOM + params.coded_stride);
}
`,
  "postings/scan_cells.wgsl": `// scan_cells: where each cell's tokens begin, and within a cell each chunk's. Stage: postings (e08), second of three.
//
// cell_counts: u32[B, Hkv, chunks, CELLS]: counts, replaced by where they begin among the tokens
// postings:    u32[B, Hkv, CELL_ROOM + coded_stride]: its first CELL_ROOM words are written
//
// One workgroup owns one kv, an invocation one cell at a time.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> cell_counts: array<u32>;
@group(0) @binding(2) var<storage, read_write> postings: array<u32>;

var<workgroup> wg_before: u32;

@compute @workgroup_size(WG)
fn scan_cells(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let kv = job_ix(workgroup_id, num_workgroups);
  if (kv < BATCH * KV_HEADS) {
    let counts = kv * most_chunks() * CELLS;
    let row = posting_row(kv);
    var before = 0u;
    for (var first = 0u; first < CELL_ROOM; first += WG) {
      let cell = first + lane;
      var here = 0u;
      if (cell < CELLS) {
        for (var chunk = 0u; chunk < n_chunks(); chunk++) { here += cell_counts[counts + chunk * CELLS + cell]; }
      }
      let upto = before + scan_sum(lane, here);
      if (cell < CELL_ROOM) { postings[row + cell] = upto - here; }
      if (cell < CELLS) {
        var at = upto - here;
        for (var chunk = 0u; chunk < n_chunks(); chunk++) {
          let count = cell_counts[counts + chunk * CELLS + cell];
          cell_counts[counts + chunk * CELLS + cell] = at;
          at += count;
        }
      }
      if (lane == WG - 1u) { wg_before = upto; }
      before = workgroupUniformLoad(&wg_before);
    }
  }
}
`,
  "postings/scatter_cells.wgsl": `// scatter_cells: the tokens, by cell and ascending. Stage: postings (e08), last of three.
//
// codes:       u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// cell_counts: u32[B, Hkv, chunks, CELLS]: where the next token of each cell and chunk goes, moved on
// postings:    u32[B, Hkv, CELL_ROOM + coded_stride]: its tokens are written
//
// One workgroup owns one chunk of one kv and takes WG tokens at a time, in order. Equal cells among them are counted
// by comparing all with each, so that the order is kept: an atomic counter would not.

override WG: u32;

@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> cell_counts: array<u32>;
@group(0) @binding(3) var<storage, read_write> postings: array<u32>;

const NO_CELL = 0xffffffffu;

var<workgroup> wg_cells: array<u32, WG>;  // 4 bytes per invocation

// (1 before this invocation, 1) where another has the same cell.
fn same_cell(lane: u32, cell: u32, other: u32) -> vec2u {
  let is_same = wg_cells[other] == cell;
  return vec2u(u32(is_same && other < lane), u32(is_same));
}

@compute @workgroup_size(WG)
fn scatter_cells(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * n_chunks()) {
    let kv = ix / n_chunks();
    let chunk = ix % n_chunks();
    let counts = (kv * most_chunks() + chunk) * CELLS;
    let begin = max(chunk * chunk_tokens(), params.post_begin);
    let end = min((chunk + 1u) * chunk_tokens(), params.post_end);
    for (var first = begin; first < end; first += WG) {
      let i = first + lane;
      var cell = NO_CELL;
      if (i < end) { cell = cell_of(kv, i); }
      wg_cells[lane] = cell;
      workgroupBarrier();
      var same = vec2u();
      for (var other = 0u; other < WG; other += 4u) {
        same += same_cell(lane, cell, other) + same_cell(lane, cell, other + 1u) +
          same_cell(lane, cell, other + 2u) + same_cell(lane, cell, other + 3u);
      }
      var at = 0u;
      if (i < end) {
        at = cell_counts[counts + cell] + same.x;
        postings[posting_row(kv) + CELL_ROOM + at] = i;
      }
      workgroupBarrier();
      storageBarrier();
      if (i < end && same.x + 1u == same.y) { cell_counts[counts + cell] = at + 1u; }
      storageBarrier();
    }
  }
}
`,
  "quantize/assign.wgsl": `// assign: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie.
// Stage: quantize new keys (e01).
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride], one code per word
//
// One workgroup owns one (kv, m, new key); its invocations share out the centroids.
// Source: product quantization, Jegou, Douze, Schmid 2011; the "ip" column: Shrivastava, Li 2014.

override WG: u32;

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

@compute @workgroup_size(WG)
fn assign(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * SUBVECTORS * params.n_new) {
    let i = ix % params.n_new;
    let group = ix / params.n_new;

    let code = nearest_of_key(lane, group, key_at(group, i));

    if (lane == 0u) {
      codes[group * params.coded_stride + params.n_coded - params.n_new + i] = code;
    }
  }
}
`,
  "quantize/assign_many.wgsl": `// assign_many: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie, as
// assign_packed, for many new keys at once: prompts, and what a codebook was trained on. Stage: quantize new keys.
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
//
// An invocation owns a key's subvector and keeps it in registers; centroids go through workgroup memory, CHUNK at a time,
// and all invocations read the same one at once. A workgroup owns WG / 4 words of codes. Columns are summed in the order of
// \`columns.wgsl\`: what is past the last adds 0, which changes no sum.
// Preconditions: SUB_WIDTH is 64 at most; coded_stride is a multiple of 4.

override WG: u32;     // a multiple of 4
override CHUNK: u32;  // centroids in workgroup memory at a time

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

override BLOCKS: u32 = (SUB_WIDTH + N_PARTS - 1u) / N_PARTS;  // of sixteen columns
override CHUNK_FOURS: u32 = CHUNK * BLOCKS * 4u;

var<workgroup> wg_centroids: array<vec4f, CHUNK_FOURS>;  // 64 bytes per block and centroid
var<workgroup> wg_last: array<f32, CHUNK>;               // the column of metric "ip"
var<workgroup> wg_codes: array<u32, WG>;                 // 4 bytes per invocation

// A block of sixteen columns, or the partial sums.
struct Sixteen {
  a: vec4f,
  b: vec4f,
  c: vec4f,
  d: vec4f,
}

fn key_column(at: u32, j: u32) -> f32 {
  return select(0.0, new_keys[at + min(j, SUB_WIDTH - 1u)], j < SUB_WIDTH);
}

fn key_four(at: u32, j: u32) -> vec4f {
  return vec4f(key_column(at, j), key_column(at, j + 1u), key_column(at, j + 2u), key_column(at, j + 3u));
}

fn key_block(at: u32, j: u32) -> Sixteen {
  return Sixteen(key_four(at, j), key_four(at, j + 4u), key_four(at, j + 8u), key_four(at, j + 12u));
}

fn centroid_column(at: u32, j: u32) -> f32 {
  return select(0.0, centroids[at + min(j, SUB_WIDTH - 1u)], j < SUB_WIDTH);
}

// Four squared differences added, column by column as \`add_squared_difference\`.
fn add_four(sum: vec4f, x: vec4f, c: vec4f) -> vec4f {
  let t = x - c;
  return fma(t, t, sum);
}

fn add_block(sum: Sixteen, x: Sixteen, at: u32) -> Sixteen {
  return Sixteen(
    add_four(sum.a, x.a, wg_centroids[at]),
    add_four(sum.b, x.b, wg_centroids[at + 1u]),
    add_four(sum.c, x.c, wg_centroids[at + 2u]),
    add_four(sum.d, x.d, wg_centroids[at + 3u]),
  );
}

fn add_squares(sum: Sixteen, x: Sixteen) -> Sixteen {
  return Sixteen(
    fma(x.a, x.a, sum.a),
    fma(x.b, x.b, sum.b),
    fma(x.c, x.c, sum.c),
    fma(x.d, x.d, sum.d),
  );
}

// Stages centroids first .. first + CHUNK of a group. Ends with a barrier.
fn stage(lane: u32, group: u32, first: u32) {
  for (var i = lane; i < CHUNK_FOURS; i += WG) {
    let c = first + i / (4u * BLOCKS);
    let j = i % (4u * BLOCKS) * 4u;
    let at = (group * CENTROIDS + min(c, CENTROIDS - 1u)) * CENTROID_WIDTH;
    wg_centroids[i] = vec4f(
      centroid_column(at, j),
      centroid_column(at, j + 1u),
      centroid_column(at, j + 2u),
      centroid_column(at, j + 3u),
    );
  }
  if (CENTROID_WIDTH > SUB_WIDTH) {
    for (var i = lane; i < CHUNK; i += WG) {
      wg_last[i] = centroids[(group * CENTROIDS + min(first + i, CENTROIDS - 1u)) * CENTROID_WIDTH + SUB_WIDTH];
    }
  }
  workgroupBarrier();
}

// The code of the subvector that begins at \`at\`. In uniform control flow only.
fn nearest_in_registers(lane: u32, group: u32, at: u32) -> u32 {
  let x_0 = key_block(at, 0u);
  var x_1 = Sixteen();
  var x_2 = Sixteen();
  var x_3 = Sixteen();
  if (BLOCKS > 1u) { x_1 = key_block(at, 16u); }
  if (BLOCKS > 2u) { x_2 = key_block(at, 32u); }
  if (BLOCKS > 3u) { x_3 = key_block(at, 48u); }
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) {
    var squares = add_squares(Sixteen(), x_0);
    if (BLOCKS > 1u) { squares = add_squares(squares, x_1); }
    if (BLOCKS > 2u) { squares = add_squares(squares, x_2); }
    if (BLOCKS > 3u) { squares = add_squares(squares, x_3); }
    last = augmented_column(phi[group], add_parts(squares.a, squares.b, squares.c, squares.d));
  }

  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var first = 0u; first < CENTROIDS; first += CHUNK) {
    if (first > 0u) { workgroupBarrier(); }
    stage(lane, group, first);
    for (var c = 0u; c < min(CHUNK, CENTROIDS - first); c++) {
      let row = c * BLOCKS * 4u;
      var sum = add_block(Sixteen(), x_0, row);
      if (BLOCKS > 1u) { sum = add_block(sum, x_1, row + 4u); }
      if (BLOCKS > 2u) { sum = add_block(sum, x_2, row + 8u); }
      if (BLOCKS > 3u) { sum = add_block(sum, x_3, row + 12u); }
      var distance = add_parts(sum.a, sum.b, sum.c, sum.d);
      if (CENTROID_WIDTH > SUB_WIDTH) { distance = add_squared_difference(distance, last, wg_last[c]); }
      if (is_nearer(distance, best_bits)) {
        best = first + c;
        best_bits = bitcast<u32>(distance);
      }
    }
  }
  return best;
}

// Words of a group that a workgroup owns: WG / 4 from the first that new keys touch on.
fn n_tiles() -> u32 {
  let words = (params.n_coded + 3u) / 4u - (params.n_coded - params.n_new) / 4u;
  return (words + WG / 4u - 1u) / (WG / 4u);
}

@compute @workgroup_size(WG)
fn assign_many(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * SUBVECTORS * n_tiles()) {
    let group = ix / n_tiles();
    let first = params.n_coded - params.n_new;
    let begin = first / 4u * 4u + ix % n_tiles() * WG;  // a multiple of 4
    let i = begin + lane;
    let near = clamp(i, first, params.n_coded - 1u);
    wg_codes[lane] = select(0u, nearest_in_registers(lane, group, key_at(group, near - first)), i >= first && i < params.n_coded);
    workgroupBarrier();
    if (lane % 4u == 0u && i < params.n_coded) {
      let at = group * (params.coded_stride / 4u) + i / 4u;
      var word = wg_codes[lane] | (wg_codes[lane + 1u] << 8u) | (wg_codes[lane + 2u] << 16u) | (wg_codes[lane + 3u] << 24u);
      if (i < first) { word |= extractBits(codes[at], 0u, first % 4u * 8u); }  // older keys'
      codes[at] = word;
    }
  }
}
`,
  "quantize/assign_packed.wgsl": `// assign_packed: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie.
// Stage: quantize new keys (e03). As assign of e01, but codes lie four per word.
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
//
// One workgroup owns one word that the new keys touch; see \`code_word.wgsl\`.
// Precondition: coded_stride is a multiple of 4.

override WG: u32;

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

@compute @workgroup_size(WG)
fn assign_packed(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * SUBVECTORS * n_new_words()) {
    code_word(lane, ix);
  }
}
`,
  "quantize/code_word.wgsl": `// Shared part of the kernels that code the step's new keys into packed codes: one workgroup owns one word that
// the new keys touch, and so up to four of them: WGSL has no byte stores, and two owners of one word would
// race. Bytes of older keys stay, later ones become 0. Needs codes (written) and nearest_of_key.

// Words per (kv, m) that the step's new keys touch.
fn n_new_words() -> u32 {
  if (params.n_new == 0u) { return 0u; }
  return (params.n_coded + 3u) / 4u - (params.n_coded - params.n_new) / 4u;
}

// Codes the keys of job job_ix out of BATCH * KV_HEADS * SUBVECTORS * n_new_words(). In uniform control flow only.
fn code_word(lane: u32, job: u32) {
  let first = params.n_coded - params.n_new;
  let group = job / n_new_words();
  let word_ix = first / 4u + job % n_new_words();
  let at = group * (params.coded_stride / 4u) + word_ix;

  // Lane 0's copy alone is stored; it is the only one that reads what it will write.
  var word = 0u;
  if (lane == 0u && word_ix == first / 4u) {
    word = extractBits(codes[at], 0u, first % 4u * 8u);
  }
  for (var slot = 0u; slot < 4u; slot++) {
    let i = word_ix * 4u + slot;
    if (i >= first && i < params.n_coded) {
      let code = nearest_of_key(lane, group, key_at(group, i - first));
      word = insertBits(word, code, slot * 8u, 8u);
    }
  }

  if (lane == 0u) { codes[at] = word; }
}
`,
  "quantize/codes_packed.wgsl": `// How a kernel reads codes that lie four per word, the lowest byte first: codes is
// u32[rows, coded_stride / 4], and coded_stride is a multiple of 4.

fn code_at(row: u32, i: u32) -> u32 {
  let word = codes[row * (params.coded_stride / 4u) + i / 4u];
  return extractBits(word, i % 4u * 8u, 8u);
}
`,
  "quantize/codes_word.wgsl": `// How a kernel reads codes that lie one per word: codes is u32[rows, coded_stride].

fn code_at(row: u32, i: u32) -> u32 {
  return codes[row * params.coded_stride + i];
}
`,
  "quantize/distance_part.wgsl": `// Shared part of the kernels in which 16 invocations share a centroid: partial sum \`part\` of the squared distance of
// a subvector of a new key and a centroid. Needs new_keys and centroids. Written out as \`product_part.wgsl\`.

fn distance_part(x_from: u32, c_from: u32, part: u32) -> f32 {
  let x_at = x_from + part;
  let c_at = c_from + part;
  var sum = 0.0;
  if (has_column(part, 0u)) { sum = add_squared_difference(sum, new_keys[x_at + 0u], centroids[c_at + 0u]); }
  if (has_column(part, 16u)) { sum = add_squared_difference(sum, new_keys[x_at + 16u], centroids[c_at + 16u]); }
  if (has_column(part, 32u)) { sum = add_squared_difference(sum, new_keys[x_at + 32u], centroids[c_at + 32u]); }
  if (has_column(part, 48u)) { sum = add_squared_difference(sum, new_keys[x_at + 48u], centroids[c_at + 48u]); }
  if (has_column(part, 64u)) { sum = add_squared_difference(sum, new_keys[x_at + 64u], centroids[c_at + 64u]); }
  if (has_column(part, 80u)) { sum = add_squared_difference(sum, new_keys[x_at + 80u], centroids[c_at + 80u]); }
  if (has_column(part, 96u)) { sum = add_squared_difference(sum, new_keys[x_at + 96u], centroids[c_at + 96u]); }
  if (has_column(part, 112u)) { sum = add_squared_difference(sum, new_keys[x_at + 112u], centroids[c_at + 112u]); }
  if (has_column(part, 128u)) { sum = add_squared_difference(sum, new_keys[x_at + 128u], centroids[c_at + 128u]); }
  if (has_column(part, 144u)) { sum = add_squared_difference(sum, new_keys[x_at + 144u], centroids[c_at + 144u]); }
  if (has_column(part, 160u)) { sum = add_squared_difference(sum, new_keys[x_at + 160u], centroids[c_at + 160u]); }
  if (has_column(part, 176u)) { sum = add_squared_difference(sum, new_keys[x_at + 176u], centroids[c_at + 176u]); }
  if (has_column(part, 192u)) { sum = add_squared_difference(sum, new_keys[x_at + 192u], centroids[c_at + 192u]); }
  if (has_column(part, 208u)) { sum = add_squared_difference(sum, new_keys[x_at + 208u], centroids[c_at + 208u]); }
  if (has_column(part, 224u)) { sum = add_squared_difference(sum, new_keys[x_at + 224u], centroids[c_at + 224u]); }
  if (has_column(part, 240u)) { sum = add_squared_difference(sum, new_keys[x_at + 240u], centroids[c_at + 240u]); }
  for (var j = 256u + part; j < SUB_WIDTH; j += N_PARTS) {
    sum = add_squared_difference(sum, new_keys[x_from + j], centroids[c_from + j]);
  }
  return sum;
}
`,
  "quantize/nearest.wgsl": `// Shared part of every kernel that codes keys. All GPU pipelines use these functions and sum columns in
// the order of \`columns.wgsl\`, so they agree on every code to the byte.
//
// The squared distance is summed as (x - c)^2 column by column, never in the expanded form
// |x|^2 - 2xc + |c|^2, which cancels badly where key and centroid are close.

fn add_squared_difference(sum: f32, x: f32, c: f32) -> f32 {
  let t = x - c;
  return fma(t, t, sum);
}

// The column that metric "ip" appends to a subvector: sqrt(max(phi - |x|^2, 0)).
fn augmented_column(phi: f32, squared_norm: f32) -> f32 {
  return sqrt(max(phi - squared_norm, 0.0));
}

// Nothing was nearer yet: one above +inf, so that an infinite distance still wins over none.
const NO_DISTANCE = 0x7f800001u;

// Distances are >= 0, so their bits order as they do; NaN bits are larger than NO_DISTANCE or equal
// to it, so a NaN never wins. (Comparing as f32 would not do: compilers fold NaN tests away.)
fn is_nearer(distance: f32, best_bits: u32) -> bool {
  return bitcast<u32>(distance) < best_bits;
}

// Where the subvector of \`group\` begins in the step's i-th coded new key.
fn key_at(group: u32, i: u32) -> u32 {
  let key_ix = group / SUBVECTORS * params.n_new_keys + params.first_new_key + i;
  return (key_ix * SUBVECTORS + group % SUBVECTORS) * SUB_WIDTH;
}
`,
  "quantize/nearest_of_key.wgsl": `// Shared part of the kernels that code one subvector per workgroup: the invocations share out the
// centroids, then reduce to the nearest. The order of the reduction does not matter: (distance,
// number) is a total order. Needs new_keys, centroids, phi and WG, a power of two.

var<workgroup> wg_bits: array<u32, WG>;    // 4 bytes per invocation
var<workgroup> wg_number: array<u32, WG>;  // 4 bytes per invocation

// (x - c)^2 of columns j .. j + 3 added to four partial sums; columns past the end add nothing. Without a
// centroid, c is 0: the squared norm.
fn add_columns(sum: vec4f, key_at: u32, centroid_at: u32, has_centroid: bool, j: u32) -> vec4f {
  var result = sum;
  for (var s = 0u; s < 4u; s++) {
    if (j + s < SUB_WIDTH) {
      var c = 0.0;
      if (has_centroid) { c = centroids[centroid_at + j + s]; }
      result[s] = add_squared_difference(sum[s], new_keys[key_at + j + s], c);
    }
  }
  return result;
}

fn squared_distance(key_at: u32, centroid_at: u32, has_centroid: bool) -> f32 {
  var a = vec4f();
  var b = vec4f();
  var c = vec4f();
  var d = vec4f();
  for (var j = 0u; j < SUB_WIDTH; j += N_PARTS) {
    a = add_columns(a, key_at, centroid_at, has_centroid, j);
    b = add_columns(b, key_at, centroid_at, has_centroid, j + 4u);
    c = add_columns(c, key_at, centroid_at, has_centroid, j + 8u);
    d = add_columns(d, key_at, centroid_at, has_centroid, j + 12u);
  }
  return add_parts(a, b, c, d);
}

// The code of the subvector of \`group\` (kv, m) that begins at \`key_at\`. In uniform control flow only.
fn nearest_of_key(lane: u32, group: u32, key_at: u32) -> u32 {
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) { last = augmented_column(phi[group], squared_distance(key_at, 0u, false)); }

  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var c = lane; c < CENTROIDS; c += WG) {
    let centroid_at = (group * CENTROIDS + c) * CENTROID_WIDTH;
    var distance = squared_distance(key_at, centroid_at, true);
    if (CENTROID_WIDTH > SUB_WIDTH) {
      distance = add_squared_difference(distance, last, centroids[centroid_at + SUB_WIDTH]);
    }
    if (is_nearer(distance, best_bits)) {
      best = c;
      best_bits = bitcast<u32>(distance);
    }
  }

  wg_bits[lane] = best_bits;
  wg_number[lane] = best;
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let other_bits = wg_bits[lane + half];
      let other = wg_number[lane + half];
      if (other_bits < wg_bits[lane] || (other_bits == wg_bits[lane] && other < wg_number[lane])) {
        wg_bits[lane] = other_bits;
        wg_number[lane] = other;
      }
    }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&wg_number[0]);
}
`,
  "quantize/nearest_rows.wgsl": `// Shared part of the kernels that code a subvector with a large workgroup: 16 invocations share a centroid. The
// same codes as \`nearest_of_key.wgsl\`. Needs distance_part, add_rows, phi and WG.

var<workgroup> wg_nearest_bits: atomic<u32>;
var<workgroup> wg_nearest: atomic<u32>;
var<workgroup> wg_code: u32;

fn squared_norm(key_at: u32) -> f32 {
  var parts = array<vec4f, 4>();
  for (var j = 0u; j < SUB_WIDTH; j++) {
    let x = new_keys[key_at + j];
    let p = j % N_PARTS;
    parts[p / 4u][p % 4u] = fma(x, x, parts[p / 4u][p % 4u]);
  }
  return add_parts(parts[0], parts[1], parts[2], parts[3]);
}

fn centroid_part(group: u32, key_at: u32, c: u32, part: u32) -> f32 {
  if (c >= CENTROIDS) { return 0.0; }
  return distance_part(key_at, (group * CENTROIDS + c) * CENTROID_WIDTH, part);
}

// The nearer of (bits, number) and centroid c, if there is one.
fn nearer(best: vec2u, group: u32, first: u32, row: u32, sum: f32, last: f32) -> vec2u {
  let c = first + row;
  if (row >= ROWS || c >= CENTROIDS) { return best; }
  var distance = sum;
  if (CENTROID_WIDTH > SUB_WIDTH) {
    distance = add_squared_difference(sum, last, centroids[(group * CENTROIDS + c) * CENTROID_WIDTH + SUB_WIDTH]);
  }
  let bits = bitcast<u32>(distance);
  return select(best, vec2u(bits, c), bits < best.x || (bits == best.x && c < best.y));
}

// The code of the subvector of \`group\` (kv, m) that begins at \`key_at\`. In uniform control flow only.
fn nearest_of_key(lane: u32, group: u32, key_at: u32) -> u32 {
  let part = lane % N_PARTS;
  if (lane == 0u) {
    atomicStore(&wg_nearest_bits, NO_DISTANCE);
    atomicStore(&wg_nearest, CENTROIDS);
  }
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) { last = augmented_column(phi[group], squared_norm(key_at)); }

  // A NaN distance has bits above those of no distance, so it never wins.
  var best = vec2u(NO_DISTANCE, 0u);
  for (var first = 0u; first < CENTROIDS; first += ROWS) {
    let c = first + lane / N_PARTS;
    let sum = add_rows(lane, vec4f(
      centroid_part(group, key_at, c, part),
      centroid_part(group, key_at, c + WG / N_PARTS, part),
      centroid_part(group, key_at, c + WG / N_PARTS * 2u, part),
      centroid_part(group, key_at, c + WG / N_PARTS * 3u, part),
    ));
    best = nearer(best, group, first, row_of(lane), sum, last);
    if (ROWS_NEED_BARRIER) { workgroupBarrier(); }
  }
  if (!ROWS_NEED_BARRIER) { workgroupBarrier(); }
  atomicMin(&wg_nearest_bits, best.x);
  workgroupBarrier();
  if (best.x == atomicLoad(&wg_nearest_bits)) { atomicMin(&wg_nearest, best.y); }
  workgroupBarrier();
  if (lane == 0u) { wg_code = atomicLoad(&wg_nearest); }
  return workgroupUniformLoad(&wg_code);
}
`,
  "quantize_topk_list/code_list.wgsl": `// code_list: lists of the tiles' best candidates, and beside them the codes of the step's new keys: merge_list and
// assign_packed in one dispatch. Stages: quantize, top-K and list (e06). From assign_packed and merge_list of e05.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// indices:         u32[B, H, rows, list_stride]
// lengths:         u32[B, H, rows]
// weights:         f32[B, H, rows, weight_stride], if weights are written
// new_keys:        f32[B, Hkv, n_new_keys, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:             f32[B, Hkv, M], metric "ip" only
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
//
// The first workgroups own one list each (see \`make_list.wgsl\`) and leave most of a GPU idle; the rest own one word of
// new codes each (see \`code_word.wgsl\`). Nothing here reads codes but their owners; the tiles were scored
// before, so precondition: no row's candidates reach the new keys, or no keys are coded here (n_beside is 0).

override WG: u32;

@group(0) @binding(1) var<storage, read> candidate_ranks: array<vec4u>;
@group(0) @binding(2) var<storage, read> candidate_ix: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;
@group(0) @binding(4) var<storage, read_write> lengths: array<u32>;
@group(0) @binding(5) var<storage, read> new_keys: array<f32>;
@group(0) @binding(6) var<storage, read> centroids: array<f32>;
@group(0) @binding(7) var<storage, read> phi: array<f32>;
@group(0) @binding(8) var<storage, read_write> codes: array<u32>;

@compute @workgroup_size(WG)
fn code_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists()) {
    make_list(lane, ix);
  } else if (params.n_beside > 0u && ix - n_lists() < BATCH * KV_HEADS * SUBVECTORS * n_new_words()) {
    code_word(lane, ix - n_lists());
  }
}
`,
  "refine/rank_exactly.wgsl": `// Shared part of the kernels that re-rank a shortlist: the rank of the exact q·k of each of its tokens. Sixteen invocations
// share a key. No 1/√D, as it changes no order. Needs the parts that read keys, add_rows, WG, and of the kernel:
//   short_token(first, i): the i-th token of the shortlist that begins at \`first\`
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
`,
  "refine/refine_list.wgsl": `// refine_list: the n_heavy best of a shortlist by the exact q·k, ties to the lower token, between sink and window. Stage:
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
// One workgroup owns one list. The ranks of the exact scores stay in workgroup memory, and \`make_list.wgsl\` makes the list of
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

// What \`make_list.wgsl\` asks for: the shortlist as the candidates of one tile.
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

// What \`rank_exactly.wgsl\` asks for.
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
`,
  "score/dot.wgsl": `// Shared part of the kernels in which one invocation computes a whole table entry: the product of a
// subvector of the query and a centroid, summed in the order of \`columns.wgsl\`. Needs query and centroids.

// Columns j .. j + 3; those past the end are 0 and add nothing.
fn query_columns(at: u32, j: u32) -> vec4f {
  var x = vec4f();
  for (var s = 0u; s < 4u; s++) {
    if (j + s < SUB_WIDTH) { x[s] = query[at + j + s]; }
  }
  return x;
}

fn centroid_columns(at: u32, j: u32) -> vec4f {
  var x = vec4f();
  for (var s = 0u; s < 4u; s++) {
    if (j + s < SUB_WIDTH) { x[s] = centroids[at + j + s]; }
  }
  return x;
}

fn product(query_at: u32, centroid_at: u32) -> f32 {
  var a = vec4f();
  var b = vec4f();
  var c = vec4f();
  var d = vec4f();
  for (var j = 0u; j < SUB_WIDTH; j += N_PARTS) {
    a = fma(query_columns(query_at, j), centroid_columns(centroid_at, j), a);
    b = fma(query_columns(query_at, j + 4u), centroid_columns(centroid_at, j + 4u), b);
    c = fma(query_columns(query_at, j + 8u), centroid_columns(centroid_at, j + 8u), c);
    d = fma(query_columns(query_at, j + 12u), centroid_columns(centroid_at, j + 12u), d);
  }
  return add_parts(a, b, c, d);
}
`,
  "score/entry_f16.wgsl": `// Entries of the lookup table as f16: half the workgroup memory of \`entry_f32.wgsl\`, opt-in where the device has f16.
//
// A list's entries share a scale, a power of two: 1 while the largest finite magnitude lies between a quarter and
// 65,504, else what brings it to 2^14 .. 2^15. So no finite entry saturates, small entries do not all vanish, and the
// order of a list's scores stays. A table that needs a scale is filled twice, which is rare in real models.
// Workgroup memory: 8 bytes.

enable f16;

alias Entry = f16;

const HALF_MAX_BITS = 0x477fe000u;   // 65,504
const QUARTER_BITS = 0x3e800000u;
const INFINITE_BITS = 0x7f800000u;

var<workgroup> wg_largest: atomic<u32>;  // magnitude of the largest finite entry, as bits; 0 between two tables
var<workgroup> wg_scale: f32;
var<private> entry_scale: f32;

fn begin_entries() {
  entry_scale = 1.0;
}

// Infinite and NaN entries stay what they are. While the scale is not chosen, an entry beyond the range is clamped: it
// is filled again.
fn entry_of(value: f32) -> Entry {
  let is_finite = (bitcast<u32>(value) & INFINITE_BITS) != INFINITE_BITS;
  return f16(select(value, clamp(value * entry_scale, -65504.0, 65504.0), is_finite));
}

fn note_entry(magnitude: u32) {
  if (entry_scale == 1.0 && magnitude < INFINITE_BITS && magnitude > atomicLoad(&wg_largest)) {
    atomicMax(&wg_largest, magnitude);
  }
}

// Chooses the list's scale when all entries are noted; true if the table must be filled again. In uniform control flow
// only; begins and ends with a barrier.
fn choose_scale(lane: u32) -> bool {
  workgroupBarrier();
  if (lane == 0u) {
    let largest = atomicLoad(&wg_largest);
    atomicStore(&wg_largest, 0u);
    var scale = 1.0;
    if (largest != 0u && (largest < QUARTER_BITS || largest > HALF_MAX_BITS)) {
      // 2^(14 - e) for a magnitude from 2^e on; the exponent's bits of a power of two.
      scale = bitcast<f32>((min(268u - (largest >> 23u), 253u)) << 23u);
    }
    wg_scale = scale;
  }
  let scale = workgroupUniformLoad(&wg_scale);
  entry_scale = scale;
  return scale != 1.0;
}
`,
  "score/entry_f32.wgsl": `// Entries of the lookup table as they are, f32.

alias Entry = f32;

fn begin_entries() {}

fn entry_of(value: f32) -> Entry {
  return value;
}

fn note_entry(magnitude: u32) {}

fn choose_scale(lane: u32) -> bool {
  return false;
}
`,
  "score/gather.wgsl": `// gather: gathered[l, m, i] = lut[l, m, code[kv(l), m, i]].
// Stage: score (e01).
//
// lut:      f32[B, H, rows, M, C]
// codes:    u32[B, Hkv, M, coded_stride], one code per word
// gathered: f32[B, H, rows, M, coded_stride]
//
// One invocation owns one element; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> lut: array<f32>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> gathered: array<f32>;

@compute @workgroup_size(WG)
fn gather(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * SUBVECTORS * params.n_coded) {
    let i = ix % params.n_coded;
    let table_row = ix / params.n_coded;
    let m = table_row % SUBVECTORS;
    let kv = kv_of_list(table_row / SUBVECTORS);

    let code = codes[(kv * SUBVECTORS + m) * params.coded_stride + i];

    gathered[table_row * params.coded_stride + i] = lut[table_row * CENTROIDS + code];
  }
}
`,
  "score/lookup.wgsl": `// Shared part of the kernels that score packed codes through a table in workgroup memory. Needs query,
// centroids and WG.

override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;

var<workgroup> wg_lut: array<f32, TABLE_ENTRIES>;   // 4 * M * C bytes

fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  for (var e = lane; e < TABLE_ENTRIES; e += WG) {
    let query_at = (list_ix * SUBVECTORS + e / CENTROIDS) * SUB_WIDTH;
    let centroid_at = (first_group * CENTROIDS + e) * CENTROID_WIDTH;
    wg_lut[e] = product(query_at, centroid_at);
  }
}

fn look_up(m: u32, word: u32) -> vec4f {
  let first = m * CENTROIDS;
  return vec4f(
    wg_lut[first + (word & 0xffu)],
    wg_lut[first + ((word >> 8u) & 0xffu)],
    wg_lut[first + ((word >> 16u) & 0xffu)],
    wg_lut[first + (word >> 24u)],
  );
}
`,
  "score/lookup_rows.wgsl": `// Shared part of the kernels that score packed codes through a table in workgroup memory that 16 invocations per
// entry fill. Needs product_part, add_rows, WG, and what \`entry_f32.wgsl\` or \`entry_f16.wgsl\` says of entries.

override TABLE_ENTRIES: u32 = SUBVECTORS * CENTROIDS;

var<workgroup> wg_lut: array<Entry, TABLE_ENTRIES>;
var<workgroup> wg_wild: atomic<u32>;

// Whether an entry is NaN, infinite, 2^123 or more, or below 2^-100 but not 0. Without such entries no score of 16
// subvectors overflows or is subnormal, and floats order as ranks do.
fn is_wild() -> bool {
  return atomicLoad(&wg_wild) != 0u;
}

fn entry_part(list_ix: u32, first_group: u32, e: u32, part: u32) -> f32 {
  let own = min(e, TABLE_ENTRIES - 1u);  // past the end the last entry again: no invocation goes another way
  let query_at = (list_ix * SUBVECTORS + own / CENTROIDS) * SUB_WIDTH;
  return product_part(query_at, (first_group * CENTROIDS + own) * CENTROID_WIDTH, part);
}

// A quarter of the entries first .. first + ROWS; nothing where all of it is past the end.
fn quarter_part(list_ix: u32, first_group: u32, first: u32, quarter: u32, row: u32, part: u32) -> f32 {
  let begin = first + WG / N_PARTS * quarter;
  if (begin >= TABLE_ENTRIES) { return 0.0; }
  return entry_part(list_ix, first_group, begin + row, part);
}

// Entries first .. first + ROWS.
fn fill_rows(lane: u32, list_ix: u32, first_group: u32, first: u32) {
  let part = lane % N_PARTS;
  let group = lane / N_PARTS;
  let sum = add_rows(lane, vec4f(
    quarter_part(list_ix, first_group, first, 0u, group, part),
    quarter_part(list_ix, first_group, first, 1u, group, part),
    quarter_part(list_ix, first_group, first, 2u, group, part),
    quarter_part(list_ix, first_group, first, 3u, group, part),
  ));
  let row = row_of(lane);
  if (row < ROWS && first + row < TABLE_ENTRIES) {
    wg_lut[first + row] = entry_of(sum);
    let magnitude = bitcast<u32>(sum) & 0x7fffffffu;
    note_entry(magnitude);
    if (magnitude != 0u && (magnitude < 0x0d800000u || magnitude >= 0x7d000000u)) { atomicStore(&wg_wild, 1u); }
  }
  if (ROWS_NEED_BARRIER) { workgroupBarrier(); }
}

// Where sums need no barrier, rows go four times ROWS per turn of the loop, so that loads overlap.
fn fill_all_rows(lane: u32, list_ix: u32, first_group: u32) {
  fill_rows(lane, list_ix, first_group, 0u);
  if (TABLE_ENTRIES > ROWS) {
    let step = select(4u * ROWS, ROWS, ROWS_NEED_BARRIER);
    for (var first = ROWS; first < TABLE_ENTRIES; first += step) {
      fill_rows(lane, list_ix, first_group, first);
      if (!ROWS_NEED_BARRIER) {
        fill_rows(lane, list_ix, first_group, first + ROWS);
        fill_rows(lane, list_ix, first_group, first + 2u * ROWS);
        fill_rows(lane, list_ix, first_group, first + 3u * ROWS);
      }
    }
  }
  if (!ROWS_NEED_BARRIER) { workgroupBarrier(); }
}

// In uniform control flow only; ends with a barrier.
fn fill_table(lane: u32, list_ix: u32, first_group: u32) {
  begin_entries();
  fill_all_rows(lane, list_ix, first_group);
  if (choose_scale(lane)) { fill_all_rows(lane, list_ix, first_group); }
}

fn look_up(m: u32, word: u32) -> vec4f {
  let first = m * CENTROIDS;
  return vec4f(
    f32(wg_lut[first + (word & 0xffu)]),
    f32(wg_lut[first + ((word >> 8u) & 0xffu)]),
    f32(wg_lut[first + ((word >> 16u) & 0xffu)]),
    f32(wg_lut[first + (word >> 24u)]),
  );
}
`,
  "score/product_part.wgsl": `// Shared part of the kernels in which 16 invocations share a table entry: partial sum \`part\` of the product of a
// subvector of the query and a centroid. Neighbours read neighbouring columns. Needs query and centroids.
// Written out to width 256: loops that the compiler does not unroll wait for every load in turn.

fn product_part(query_from: u32, centroid_from: u32, part: u32) -> f32 {
  let query_at = query_from + part;
  let centroid_at = centroid_from + part;
  var sum = 0.0;
  if (has_column(part, 0u)) { sum = fma(query[query_at + 0u], centroids[centroid_at + 0u], sum); }
  if (has_column(part, 16u)) { sum = fma(query[query_at + 16u], centroids[centroid_at + 16u], sum); }
  if (has_column(part, 32u)) { sum = fma(query[query_at + 32u], centroids[centroid_at + 32u], sum); }
  if (has_column(part, 48u)) { sum = fma(query[query_at + 48u], centroids[centroid_at + 48u], sum); }
  if (has_column(part, 64u)) { sum = fma(query[query_at + 64u], centroids[centroid_at + 64u], sum); }
  if (has_column(part, 80u)) { sum = fma(query[query_at + 80u], centroids[centroid_at + 80u], sum); }
  if (has_column(part, 96u)) { sum = fma(query[query_at + 96u], centroids[centroid_at + 96u], sum); }
  if (has_column(part, 112u)) { sum = fma(query[query_at + 112u], centroids[centroid_at + 112u], sum); }
  if (has_column(part, 128u)) { sum = fma(query[query_at + 128u], centroids[centroid_at + 128u], sum); }
  if (has_column(part, 144u)) { sum = fma(query[query_at + 144u], centroids[centroid_at + 144u], sum); }
  if (has_column(part, 160u)) { sum = fma(query[query_at + 160u], centroids[centroid_at + 160u], sum); }
  if (has_column(part, 176u)) { sum = fma(query[query_at + 176u], centroids[centroid_at + 176u], sum); }
  if (has_column(part, 192u)) { sum = fma(query[query_at + 192u], centroids[centroid_at + 192u], sum); }
  if (has_column(part, 208u)) { sum = fma(query[query_at + 208u], centroids[centroid_at + 208u], sum); }
  if (has_column(part, 224u)) { sum = fma(query[query_at + 224u], centroids[centroid_at + 224u], sum); }
  if (has_column(part, 240u)) { sum = fma(query[query_at + 240u], centroids[centroid_at + 240u], sum); }
  for (var j = 256u + part; j < SUB_WIDTH; j += N_PARTS) {
    sum = fma(query[query_from + j], centroids[centroid_from + j], sum);
  }
  return sum;
}
`,
  "score/score.wgsl": `// score: score[l, i] = sum over m of q[l, m, :] . centroid[kv(l), m, code[kv(l), m, i], :], m ascending.
// Stage: score (e02). Replaces table, gather and sum of e01: scores are written once and nothing else
// is stored. The dot products are computed anew for every token: D multiply-adds instead of M lookups.
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     in the format of the \`code_at\` part
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
`,
  "score/score_lookup.wgsl": `// score_lookup: score[l, i] = sum over m of lut[m, code[kv(l), m, i]], m ascending,
// lut[m, c] = q[l, m, :] . centroid[kv(l), m, c, :].
// Stage: score (e03). From score of e02: the table is back, but in workgroup memory, built by every
// workgroup for its own tile; codes are bytes, four tokens per load; scores are stored four at a time.
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// scores:    f32[B, H, rows, coded_stride]
//
// One workgroup owns a tile of WG * WORDS * 4 tokens of one list; invocation \`lane\` owns words lane,
// lane + WG, ... of it, so that neighbours read neighbouring words. Tokens past n_coded in the last
// word get a score that nobody reads. Precondition: coded_stride is a multiple of 4.

override WG: u32;
override WORDS: u32;  // words per invocation

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scores: array<vec4f>;

@compute @workgroup_size(WG)
fn score_lookup(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let n_words = (params.n_coded + 3u) / 4u;
  let n_tiles = (n_words + WG * WORDS - 1u) / (WG * WORDS);
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists() * n_tiles) {
    let list_ix = ix / n_tiles;
    let tile = ix % n_tiles;
    let stride = params.coded_stride / 4u;
    let first_group = kv_of_list(list_ix) * SUBVECTORS;
    fill_table(lane, list_ix, first_group);
    workgroupBarrier();

    for (var k = 0u; k < WORDS; k++) {
      let w = (tile * WORDS + k) * WG + lane;
      if (w < n_words) {
        var score = look_up(0u, codes[first_group * stride + w]);
        for (var m = 1u; m < SUBVECTORS; m++) {
          score += look_up(m, codes[(first_group + m) * stride + w]);
        }

        scores[list_ix * stride + w] = score;
      }
    }
  }
}
`,
  "score/sum.wgsl": `// sum: score[l, i] = sum over m of gathered[l, m, i], m ascending.
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
`,
  "score/table.wgsl": `// table: lut[l, m, c] = q[l, m, :] . centroid[kv(l), m, c, :], the first d columns.
// Stage: score (e01).
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// lut:       f32[B, H, rows, M, C]
//
// One invocation owns one entry; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> lut: array<f32>;

@compute @workgroup_size(WG)
fn table(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * SUBVECTORS * CENTROIDS) {
    let c = ix % CENTROIDS;
    let m = ix / CENTROIDS % SUBVECTORS;
    let list_ix = ix / (CENTROIDS * SUBVECTORS);
    let query_at = (list_ix * SUBVECTORS + m) * SUB_WIDTH;
    let centroid_at = ((kv_of_list(list_ix) * SUBVECTORS + m) * CENTROIDS + c) * CENTROID_WIDTH;

    lut[ix] = product(query_at, centroid_at);
  }
}
`,
  "score_topk/candidates.wgsl": `// candidates: the best tokens of every tile: score_lookup, mask and a top-K of the tile in one kernel. The
// scores of a tile live in workgroup memory as ranks and are never stored.
// Stages: score and top-K (e04). From score_lookup of e03, and mask and topk of e01.
//
// query:           f32[B, H, rows, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where the tile has fewer candidates
// candidate_ix:    u32[B, H, rows, tiles, kept], position among the coded tokens, ascending
//
// One workgroup owns one tile of one list; see \`keep_best.wgsl\`.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> candidate_ranks: array<u32>;
@group(0) @binding(5) var<storage, read_write> candidate_ix: array<u32>;

@compute @workgroup_size(WG)
fn candidates(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists() * n_tiles()) {
    keep_best(lane, ix / n_tiles(), ix % n_tiles());
  }
}
`,
  "score_topk/keep_best.wgsl": `// Shared part of the kernels that score a tile and keep its best tokens; ranks live in workgroup memory and
// scores are never stored. Needs query, centroids, codes, candidate_ranks, candidate_ix, WG and scan_inclusive.
//
// One workgroup owns one tile of one list; invocation \`lane\` scores words lane, lane + WG, ... of it. The
// rank of the tile's last taken token is found by radix select with a scan instead of a loop over the
// digits; an ordered compaction then keeps tokens ascending, ties to the lower. A list's best n_heavy are
// among its tiles' best n_heavy. Preconditions: coded_stride is a multiple of 4, WG is 256 (one
// invocation per digit), CHUNK is a multiple of 4 * WG, MOST_CHUNKS is 1.
// Source: radix select as in Alabi, Blanchard, Gordon, Steinbach 2012.

override TILE_WORDS: u32 = CHUNK / 4u;

var<workgroup> wg_ranks: array<vec4u, TILE_WORDS>;      // 4 * CHUNK bytes
var<workgroup> wg_histogram: array<atomic<u32>, WG>;    // 1 KiB
var<workgroup> wg_chosen: vec2u;                        // prefix so far, ranks still to take

fn count_digit(rank: u32, shift: u32, prefix: u32) {
  // The digits above this one must be those chosen so far; the topmost has none above it.
  if (rank != NO_CANDIDATE && (shift == 24u || rank >> (shift + 8u) == prefix >> (shift + 8u))) {
    atomicAdd(&wg_histogram[(rank >> shift) & 0xffu], 1u);
  }
}

// Narrows the range of the last taken rank by one digit: invocation \`lane\` stands for digit 255 - lane, and
// the one whose digit brings the count to \`need\` chooses.
fn narrow(lane: u32, shift: u32, chosen: vec2u) -> vec2u {
  atomicStore(&wg_histogram[lane], 0u);
  workgroupBarrier();
  for (var w = lane; w < TILE_WORDS; w += WG) {
    let ranks = wg_ranks[w];
    count_digit(ranks.x, shift, chosen.x);
    count_digit(ranks.y, shift, chosen.x);
    count_digit(ranks.z, shift, chosen.x);
    count_digit(ranks.w, shift, chosen.x);
  }
  workgroupBarrier();
  let digit = 255u - lane;
  let here = atomicLoad(&wg_histogram[digit]);
  let upto = scan_inclusive(lane, vec2u(here, 0u)).x;
  if (upto >= chosen.y && upto - here < chosen.y) {
    wg_chosen = vec2u(chosen.x | (digit << shift), chosen.y - (upto - here));
  }
  return workgroupUniformLoad(&wg_chosen);
}

// In uniform control flow only.
fn keep_best(lane: u32, list_ix: u32, tile: u32) {
  let row = params.rows[list_ix % params.n_rows];
  let stride = params.coded_stride / 4u;
  let first_group = kv_of_list(list_ix) * SUBVECTORS;
  fill_table(lane, list_ix, first_group);
  workgroupBarrier();

  var n_mine = 0u;
  for (var w = lane; w < TILE_WORDS; w += WG) {
    let word_ix = tile * TILE_WORDS + w;
    var ranks = vec4u(NO_CANDIDATE);
    if (word_ix * 4u < row.cand_end) {
      var score = look_up(0u, codes[first_group * stride + word_ix]);
      for (var m = 1u; m < SUBVECTORS; m++) {
        score += look_up(m, codes[(first_group + m) * stride + word_ix]);
      }
      let i = vec4u(0u, 1u, 2u, 3u) + word_ix * 4u;
      let is_candidate = (i >= vec4u(row.cand_begin)) & (i < vec4u(row.cand_end));
      let all = vec4u(rank_of(score.x), rank_of(score.y), rank_of(score.z), rank_of(score.w));
      ranks = select(ranks, all, is_candidate);
      n_mine += dot(vec4u(is_candidate), vec4u(1u));
    }
    wg_ranks[w] = ranks;
  }

  // How many the tile keeps: all of its candidates, or n_heavy of them.
  let counted = scan_inclusive(lane, vec2u(n_mine, 0u)).x;
  if (lane == WG - 1u) { wg_chosen = vec2u(0u, min(counted, row.n_heavy)); }
  var chosen = workgroupUniformLoad(&wg_chosen);
  let n_kept = chosen.y;
  if (n_kept > 0u) {
    for (var shift = 24i; shift >= 0i; shift -= 8i) {
      chosen = narrow(lane, u32(shift), chosen);
    }
  }
  let threshold = chosen.x;
  let need = chosen.y;

  // (ranks above the threshold, ranks equal to it) before this invocation's word.
  let out = list_ix * tiles_stride() + tile * kept();
  var before = vec2u(0u);
  for (var first = 0u; n_kept > 0u && first < TILE_WORDS; first += WG) {
    let ranks = wg_ranks[first + lane];
    let above = ranks > vec4u(threshold);
    let equal = ranks == vec4u(threshold);
    let mine = vec2u(dot(vec4u(above), vec4u(1u)), dot(vec4u(equal), vec4u(1u)));
    let upto = before + scan_inclusive(lane, mine);
    var at = upto - mine;
    for (var s = 0u; s < 4u; s++) {
      let is_taken = above[s] || (equal[s] && at.y < need);
      if (is_taken) {
        let slot = out + at.x + min(at.y, need);
        candidate_ranks[slot] = ranks[s];
        candidate_ix[slot] = tile * CHUNK + (first + lane) * 4u + s;
      }
      at += vec2u(u32(above[s]), u32(equal[s]));
    }
    if (lane == WG - 1u) { wg_chosen = upto; }
    before = workgroupUniformLoad(&wg_chosen);
  }
  for (var slot = n_kept + lane; slot < kept(); slot += WG) {
    candidate_ranks[out + slot] = NO_CANDIDATE;
  }
}
`,
  "score_topk/merge.wgsl": `// merge: the n_heavy best of the tiles' candidates of a list, best first; equal ranks by token, lower first.
// Stages: top-K (e04), after candidates. As topk of e01 on n_tiles * kept() entries instead of n_coded.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// topk_ix:         u32[B, H, rows, heavy_stride], position among the coded tokens
// topk_ranks:      u32[B, H, rows, heavy_stride]
//
// One workgroup owns one list; see \`pick_best.wgsl\` for how.

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
`,
  "score_topk/score_tiles.wgsl": `// score_tiles: as candidates of e04, for large tiles: 16 invocations share a table entry, codes come 16 at a
// time, scores stay in registers, and the lists of a kv share a tile's codes. Stages: score and top-K (e07).
//
// query:           f32[B, H, rows, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where the tile has fewer candidates
// candidate_ix:    u32[B, H, rows, tiles, kept], position among the coded tokens, ascending
//
// A group is 16 neighbouring tokens, a chunk WG groups, a tile n_chunks() chunks. One workgroup owns one tile of
// LISTS lists of one kv (query heads of a group, rows), so that memory is read once for all of them; invocation
// \`lane\` scores group \`lane\` of every chunk and remembers nothing but the group's best rank.
//
// Which tokens are kept: a histogram of the ranks finds a bound that the n_heavy best reach and hardly any other; what
// reaches it is kept where it fits, else (ties) exactly the n_heavy best. Either way a list's best are among them. In
// a tile of several chunks only the groups go into it whose best ranks are the n_heavy best, and some more: no other group
// can hold one of the n_heavy best tokens. They are scored again, an invocation each. Nothing here depends on
// neighbours' scores being independent: in real keys they are not.
// Preconditions: coded_stride is a multiple of 16; WG a power of two from 64 on; where IS_LONG, n_heavy is WG and
// MOST_CHUNKS 32 at most.

override WG: u32;
override LISTS: u32;    // lists per workgroup
override IS_LONG: bool;  // for tiles of several chunks; else for tiles of one
override BESTS: u32 = select(WG, MOST_CHUNKS * WG, IS_LONG);
override HIT_WORDS: u32 = BESTS / 32u;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<vec4u>;
@group(0) @binding(4) var<storage, read_write> candidate_ranks: array<u32>;
@group(0) @binding(5) var<storage, read_write> candidate_ix: array<u32>;

var<workgroup> wg_total: u32;
var<workgroup> wg_bests: array<u32, BESTS>;               // best ranks of groups; then the groups that matter
var<workgroup> wg_hits: array<atomic<u32>, HIT_WORDS>;    // a bit per group that does; 0 between two lists

// Scores of a group.
struct Scores {
  a: vec4f,
  b: vec4f,
  c: vec4f,
  d: vec4f,
}

// A group's ranks, NO_CANDIDATE for tokens that are none.
struct Group {
  at: u32,  // among the kv's groups; its first token is the 16 * at-th coded one
  a: vec4u,
  b: vec4u,
  c: vec4u,
  d: vec4u,
}

// A tile of one list.
struct Tile {
  list_ix: u32,
  first_group: u32,  // of the kv's codes: [B, Hkv, M] flattened
  first: u32,        // its first group of tokens
}

fn codes_of(first_group: u32, m: u32, at: u32) -> vec4u {
  return codes[(first_group + m) * (params.coded_stride / 16u) + min(at, params.coded_stride / 16u - 1u)];
}

fn add_lookups(scores: Scores, m: u32, words: vec4u) -> Scores {
  return Scores(
    scores.a + look_up(m, words.x),
    scores.b + look_up(m, words.y),
    scores.c + look_up(m, words.z),
    scores.d + look_up(m, words.w),
  );
}

// A bit for each of a group's tokens that is a candidate.
fn candidates_in(at: u32, row: Row) -> u32 {
  let begin = min(max(row.cand_begin, at * 16u) - at * 16u, 16u);
  let end = min(max(row.cand_end, at * 16u) - at * 16u, 16u);
  return ((1u << end) - 1u) & ~((1u << begin) - 1u);
}

fn ranks_of(score: vec4f, valid: u32) -> vec4u {
  let ranks = vec4u(rank_of(score.x), rank_of(score.y), rank_of(score.z), rank_of(score.w));
  return select(vec4u(NO_CANDIDATE), ranks, (vec4u(valid) & vec4u(1u, 2u, 4u, 8u)) != vec4u(0u));
}

fn ranked(at: u32, scores: Scores, valid: u32) -> Group {
  return Group(
    at,
    ranks_of(scores.a, valid),
    ranks_of(scores.b, valid >> 4u),
    ranks_of(scores.c, valid >> 8u),
    ranks_of(scores.d, valid >> 12u),
  );
}

fn best_of(group: Group) -> u32 {
  let four = max(max(group.a, group.b), max(group.c, group.d));
  return max(max(four.x, four.y), max(four.z, four.w));
}

// The best rank of a group. Where the table is tame, floats order as ranks do, and one token needs its rank.
fn best_rank(at: u32, scores: Scores, valid: u32) -> u32 {
  if (valid != 0xffffu || is_wild()) { return best_of(ranked(at, scores, valid)); }
  let four = max(max(scores.a, scores.b), max(scores.c, scores.d));
  return rank_of(max(max(four.x, four.y), max(four.z, four.w)));
}

// Scores in ascending order of m. The first two subvectors' codes come as arguments: loaded before they are used. The
// others are written out to 8: no loads overlap across a loop that the compiler does not unroll.
fn score_sixteen(first_group: u32, at: u32, words_0: vec4u, words_1: vec4u) -> Scores {
  var scores = Scores(
    look_up(0u, words_0.x),
    look_up(0u, words_0.y),
    look_up(0u, words_0.z),
    look_up(0u, words_0.w),
  );
  if (1u < SUBVECTORS) { scores = add_lookups(scores, 1u, words_1); }
  if (2u < SUBVECTORS) {
    scores = add_lookups(scores, 2u, codes_of(first_group, 2u, at));
    if (3u < SUBVECTORS) { scores = add_lookups(scores, 3u, codes_of(first_group, 3u, at)); }
    if (4u < SUBVECTORS) { scores = add_lookups(scores, 4u, codes_of(first_group, 4u, at)); }
    if (5u < SUBVECTORS) { scores = add_lookups(scores, 5u, codes_of(first_group, 5u, at)); }
    if (6u < SUBVECTORS) { scores = add_lookups(scores, 6u, codes_of(first_group, 6u, at)); }
    if (7u < SUBVECTORS) { scores = add_lookups(scores, 7u, codes_of(first_group, 7u, at)); }
    if (8u < SUBVECTORS) {
      for (var m = 8u; m < SUBVECTORS; m++) {
        scores = add_lookups(scores, m, codes_of(first_group, m, at));
      }
    }
  }
  return scores;
}

fn group_at(tile: Tile, at: u32, row: Row) -> Group {
  var words_1 = vec4u();
  if (1u < SUBVECTORS) { words_1 = codes_of(tile.first_group, 1u, at); }
  let scores = score_sixteen(tile.first_group, at, codes_of(tile.first_group, 0u, at), words_1);
  return ranked(at, scores, candidates_in(at, row));
}

fn count_group(cut: Cut, shift: u32, group: Group) {
  count_four(cut, shift, group.a);
  count_four(cut, shift, group.b);
  count_four(cut, shift, group.c);
  count_four(cut, shift, group.d);
}

fn bits(four: vec4<bool>) -> u32 {
  return dot(vec4u(four), vec4u(1u, 2u, 4u, 8u));
}

// A bit for each of a group's tokens whose rank is \`least\` or more.
fn reaching(least: u32, group: Group) -> u32 {
  let floor = vec4u(least);
  return bits(group.a >= floor) | (bits(group.b >= floor) << 4u) | (bits(group.c >= floor) << 8u) |
    (bits(group.d >= floor) << 12u);
}

fn one_of(group: Group, k: u32) -> u32 {
  let low = select(group.a, group.b, (k & 4u) != 0u);
  let high = select(group.c, group.d, (k & 4u) != 0u);
  let four = select(low, high, (k & 8u) != 0u);
  let two = select(four.xy, four.zw, (k & 2u) != 0u);
  return select(two.x, two.y, (k & 1u) != 0u);
}

// The lowest \`count\` bits of a mask.
fn lowest_bits(mask: u32, count: u32) -> u32 {
  if (count >= countOneBits(mask)) { return mask; }
  var rest = mask;
  for (var k = 0u; k < count && rest != 0u; k++) { rest &= rest - 1u; }
  return mask & ~rest;
}

// Writes the tokens of a group that a mask takes.
fn write_taken(mask: u32, group: Group, out: u32) {
  var slot = out;
  for (var taken = mask; taken != 0u; taken &= taken - 1u) {
    let k = firstTrailingBit(taken);
    candidate_ranks[slot] = one_of(group, k);
    candidate_ix[slot] = group.at * 16u + k;
    slot += 1u;
  }
}

// The sum of all invocations' counts, of which \`upto\` is the last's. Begins and ends with a barrier.
fn total(lane: u32, upto: u32) -> u32 {
  if (lane == WG - 1u) { wg_total = upto; }
  return workgroupUniformLoad(&wg_total);
}

// Chunks of a tile: known to the compiler where there is one.
fn n_own_chunks() -> u32 {
  return select(1u, n_chunks(), IS_LONG);
}

// The cut that takes the n_heavy best of the groups' best ranks or of the held groups' ranks, from a range in which the
// n_heavy-th highest should lie. If all that reaches the cut's low end are \`most\` at most, the cut takes them all.
fn narrow(lane: u32, row: Row, range: Cut, of_groups: bool, held: Group, most: u32) -> Cut {
  var cut = Cut(max(range.low, 1u), max(range.high, 1u), row.n_heavy);
  var is_below = false;  // nothing lies below the range
  for (var round = 0u; round < MOST_PASSES; round++) {
    let shift = bin_shift(cut);
    if (of_groups) {
      for (var j = 0u; j < n_own_chunks(); j++) { count_rank(cut, shift, wg_bests[j * WG + lane]); }
    } else {
      count_group(cut, shift, held);
    }
    let found = choose_bin(lane, cut.need, shift);
    if (found.w == 0u && is_below) { return Cut(1u, 0xffffffffu, row.n_heavy - cut.need + found.y); }  // fewer: all
    is_below = found.w == 0u;
    cut = narrowed(cut, shift, found);
    let n_reaching = row.n_heavy - found.y + found.w;
    if (found.w > 0u && n_reaching <= most) { return Cut(cut.low, 0xffffffffu, n_reaching); }
    if (found.z == 1u) { return cut; }
  }
  return cut;
}

// Whether a cut takes all that reach its low end. Begins and ends with a barrier.
fn takes_all(lane: u32, cut: Cut) -> bool {
  return total(lane, cut.high) == 0xffffffffu;
}

// The groups that matter, at most WG of them: those whose best ranks a cut takes. One for each of the first
// invocations, in order. In uniform control flow only.
fn group_that_matters(lane: u32, tile: Tile, row: Row, cut: Cut) -> Group {
  let is_tied = !takes_all(lane, cut);
  var n_tied = 0u;
  for (var j = 0u; j < n_own_chunks(); j++) {
    let best = wg_bests[j * WG + lane];
    var matters = best >= cut.low;
    if (is_tied) {
      // Too many groups tie: the first of them.
      let ties = u32(matters && best <= cut.high);
      let upto = n_tied + scan_sum(lane, ties);
      matters = matters && (ties == 0u || upto <= cut.need);
      n_tied = total(lane, upto);
    }
    if (matters) { atomicOr(&wg_hits[(j * WG + lane) / 32u], 1u << (lane % 32u)); }
  }
  workgroupBarrier();
  var hits = 0u;
  if (lane < HIT_WORDS) {
    hits = atomicLoad(&wg_hits[lane]);
    atomicStore(&wg_hits[lane], 0u);
  }
  let upto = scan_sum(lane, countOneBits(hits));
  let n_groups = total(lane, upto);
  var slot = upto - countOneBits(hits);
  for (; hits != 0u; hits &= hits - 1u) {
    wg_bests[slot] = lane * 32u + firstTrailingBit(hits);
    slot += 1u;
  }
  workgroupBarrier();
  if (lane >= n_groups) { return Group(); }
  return group_at(tile, tile.first + wg_bests[lane], row);
}

// Writes what a cut takes of the groups that the invocations hold. In uniform control flow only.
fn write_cut(lane: u32, cut: Cut, held: Group, out: u32) {
  let within = reaching(cut.low, held);
  var above = 0u;
  if (cut.high != 0xffffffffu) { above = reaching(cut.high + 1u, held); }
  let mine = vec2u(countOneBits(above), countOneBits(within & ~above));
  let upto = scan_inclusive(lane, mine);
  let before = upto - mine;
  let left = cut.need - min(cut.need, before.y);
  write_taken(above | lowest_bits(within & ~above, left), held, out + before.x + min(before.y, cut.need));
  let n_kept = total(lane, upto.x + min(upto.y, cut.need));
  if (n_kept + lane < kept()) { candidate_ranks[out + n_kept + lane] = NO_CANDIDATE; }
  if (n_kept + WG < kept()) {
    for (var slot = n_kept + WG + lane; slot < kept(); slot += WG) { candidate_ranks[out + slot] = NO_CANDIDATE; }
  }
}

// Offers the best ranks of groups; or of two or four groups each, where a list takes so few tokens that as many
// remain: the lower end of the range then lies closer to the n_heavy-th rank, and hardly a token is counted in vain.
fn offer_bests(lane: u32, n_heavy: u32, best: u32) {
  var highest = best;
  if (!IS_LONG && n_heavy <= WG / 2u) {
    wg_bests[lane] = best;
    workgroupBarrier();
    let n = select(WG / 2u, WG / 4u, n_heavy <= WG / 4u);
    let at = lane % n;
    let two = max(wg_bests[at], wg_bests[at + n]);
    highest = max(two, max(wg_bests[at + 2u * n % WG], wg_bests[at + 3u * n % WG]));  // of two groups: the same again
  }
  offer(lane, highest, select(~highest, 0u, highest == NO_CANDIDATE));
}

// In uniform control flow only.
fn keep_tile(lane: u32, list_ix: u32, first_group: u32, tile_ix: u32, first_words_0: vec4u, first_words_1: vec4u) {
  let row = row_of_list(list_ix);
  let tile = Tile(list_ix, first_group, tile_ix * n_own_chunks() * WG);

  // Every group's best.
  var words_0 = first_words_0;
  var words_1 = first_words_1;
  var held = Group();
  var best = NO_CANDIDATE;
  for (var j = 0u; j < n_own_chunks(); j++) {
    let at = tile.first + j * WG + lane;
    let now_0 = words_0;
    let now_1 = words_1;
    if (j + 1u < n_own_chunks()) {
      words_0 = codes_of(first_group, 0u, at + WG);
      if (1u < SUBVECTORS) { words_1 = codes_of(first_group, 1u, at + WG); }
    }
    var group_best = NO_CANDIDATE;
    let valid = candidates_in(at, row);
    if (valid != 0u) {
      let scores = score_sixteen(first_group, at, now_0, now_1);
      if (IS_LONG) {
        group_best = best_rank(at, scores, valid);
      } else {
        held = ranked(at, scores, valid);
        group_best = best_of(held);
      }
    }
    if (IS_LONG) { wg_bests[j * WG + lane] = group_best; }
    best = max(best, group_best);
  }
  offer_bests(lane, row.n_heavy, best);
  var range = offered_range(row.n_heavy);

  if (IS_LONG) {
    let of_groups = narrow(lane, row, range, true, held, WG);
    held = group_that_matters(lane, tile, row, of_groups);
    range.low = max(range.low, of_groups.low);  // n_heavy groups hold a token that reaches it
  }
  let cut = narrow(lane, row, range, false, held, kept());
  write_cut(lane, cut, held, list_ix * tiles_stride() + tile_ix * kept());
}

fn score_list(lane: u32, list_ix: u32, first_group: u32, tile: u32, words_0: vec4u, words_1: vec4u) {
  if (row_of_list(list_ix).n_heavy > 0u) {
    fill_table(lane, list_ix, first_group);
    keep_tile(lane, list_ix, first_group, tile, words_0, words_1);
  }
}

@compute @workgroup_size(WG)
fn score_tiles(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let lists_of_kv = HEADS / KV_HEADS * params.n_rows;
  let n_parts = (lists_of_kv + LISTS - 1u) / LISTS;
  if (ix < BATCH * KV_HEADS * n_parts * n_tiles()) {
    let tile = ix % n_tiles();
    let kv = ix / n_tiles() / n_parts;
    let first_group = kv * SUBVECTORS;
    let at = tile * n_own_chunks() * WG + lane;
    let words_0 = codes_of(first_group, 0u, at);
    var words_1 = vec4u();
    if (1u < SUBVECTORS) { words_1 = codes_of(first_group, 1u, at); }
    let first = ix / n_tiles() % n_parts * LISTS;
    if (LISTS == 1u) {
      score_list(lane, kv * lists_of_kv + first, first_group, tile, words_0, words_1);
    } else {
      for (var l = first; l < min(first + LISTS, lists_of_kv); l++) {
        if (l > first) { workgroupBarrier(); }
        score_list(lane, kv * lists_of_kv + l, first_group, tile, words_0, words_1);
      }
    }
  }
}
`,
  "score_topk/tiles.wgsl": `// How the candidates of a tile lie: candidate_ranks and candidate_ix are u32[lists, tiles, kept()], with room for as many
// tiles as there may be at the capacity. A tile is one chunk while all of them run at once or nearly so; then tiles
// become longer, not more: another workgroup would wait for a free place, and build the same table again.

override CHUNK: u32;        // tokens per chunk, a multiple of 4
override MOST_CHUNKS: u32;  // per tile
override WORKGROUPS: u32;   // as many as run at once
override SLACK: u32;        // candidates that a tile may keep beyond the most that a list takes

fn divide_up(a: u32, b: u32) -> u32 { return (a + b - 1u) / b; }

fn chunks_of(tokens: u32) -> u32 { return divide_up(tokens, CHUNK); }

// Tiles per list that are long enough: one wave of workgroups, or as many waves as MOST_CHUNKS asks for.
fn long_tiles(chunks: u32) -> u32 {
  let wave = max(WORKGROUPS / (BATCH * HEADS), 1u);
  return divide_up(chunks, MOST_CHUNKS * wave) * wave;
}

fn n_chunks() -> u32 {
  let chunks = chunks_of(params.n_coded);
  if (MOST_CHUNKS == 1u || chunks * BATCH * HEADS <= 2u * WORKGROUPS) { return 1u; }
  return divide_up(chunks, long_tiles(chunks));
}

fn n_tiles() -> u32 { return divide_up(chunks_of(params.n_coded), n_chunks()); }
fn kept() -> u32 { return min((params.heavy_stride + SLACK + 3u) / 4u * 4u, CHUNK); }

fn tiles_stride() -> u32 {
  let chunks = chunks_of(params.coded_stride);
  return min(chunks, max(long_tiles(chunks), 2u * WORKGROUPS / (BATCH * HEADS))) * kept();
}
`,
  "score_topk_list/as_taken.wgsl": `// Where the heavy tokens of a list by cells are those of the best scores: what was taken stays as it is. In place of it,
// \`re_ranked.wgsl\` chooses among them.

fn settle_heavy(lane: u32, list_ix: u32, row: Row) {}
`,
  "score_topk_list/cell_list.wgsl": `// cell_list: lists by cells; the step's new keys were coded before. Stages: score, top-K and list (e08), where coding
// beside the lists does not pay or a kernel may bind eight buffers only.
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// postings:  u32[B, Hkv, CELL_ROOM + coded_stride], see \`postings.wgsl\`
// indices:   u32[B, H, rows, list_stride]
// lengths:   u32[B, H, rows]
// weights:   f32[B, H, rows, weight_stride], if weights are written
// keys:      f32 or f16 [B, Hkv, key_stride, D], if a shortlist is re-ranked
//
// One workgroup owns one list; see \`make_cell_list.wgsl\` for how.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read> postings: array<vec4u>;
@group(0) @binding(5) var<storage, read_write> indices: array<u32>;
@group(0) @binding(6) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(WG)
fn cell_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    make_list(lane, list_ix);
  }
}
`,
  "score_topk_list/make_cell_list.wgsl": `// Shared part of the kernels that make a list by ranking cells instead of tokens. All tokens of a cell have one score: a list
// needs as many scores as there are cells, however many tokens there are. Needs query, centroids, codes, postings, indices,
// lengths, weights if they are written, fill_table, WG, and settle_heavy (see \`as_taken.wgsl\`).
//
// One workgroup owns one list. Its entries are the cells, each with as many tokens as it holds, and the tokens of the tail
// (candidates that came after the postings were made). One weighted histogram of the entries' ranks finds the bin of the
// n_short-th token; the few entries in it are compared with each other. Tokens of equal rank are taken from the lowest on:
// within a cell they ascend, and the tail comes after all cells. Bins of many entries are narrowed on; where two cells
// tie at the cut, all candidates are gone over one by one, the only thing here that grows with the tokens. The taken
// tokens are the heavy ones (n_short is n_heavy), or a shortlist out of which settle_heavy chooses those. They are put in
// order by counting how many are lower, all against all.
//
// Preconditions: WG a power of two from 256 on; n_heavy is MOST_HEAVY at most, and that 512; n_short is SHORT at most, and that
// 4,096; every row's candidates begin at post_begin and reach post_end; the tail is 1,000 tokens at most; no word of codes that is
// read here is written meanwhile.

override MOST_HEAVY: u32;  // the most heavy tokens of a list, 1 to 512
override SHORT: u32;       // the most tokens that are taken: MOST_HEAVY, or those of a shortlist

// As many entries as can be compared each with each at once, an invocation per pair: 15 * 15 are less than 256.
const MOST_MEMBERS = 15u;

// Marks an entry that is a token of the tail, not a cell.
const IS_TOKEN = 0x80000000u;

// Heavy tokens, in fours; what is past the last is higher than any. PARTS invocations share the comparisons of one
// token where there are so many.
override HEAVY_FOURS: u32 = (MOST_HEAVY + 3u) / 4u;
override HEAVY_ROOM: u32 = 4u * HEAVY_FOURS;
override TAKEN_ROOM: u32 = max(SHORT, HEAVY_ROOM);
override PARTS: u32 = min(max(WG / HEAVY_ROOM, 1u), HEAVY_FOURS);
override FOURS_PER_PART: u32 = (HEAVY_FOURS + PARTS - 1u) / PARTS;

var<workgroup> wg_taken: atomic<u32>;                       // ranges of tokens taken, in bits 16 and up; their tokens
var<workgroup> wg_ranges: array<vec2u, SHORT>;              // (how many tokens before it, where it begins)
var<workgroup> wg_tokens: array<u32, TAKEN_ROOM>;           // taken tokens, then heavy ones, in any order
var<workgroup> wg_n_lower: array<atomic<u32>, HEAVY_ROOM>;  // how many of them are lower
var<workgroup> wg_heavy: array<u32, HEAVY_ROOM>;            // they, ascending
var<workgroup> wg_n_members: atomic<u32>;
var<workgroup> wg_members: array<vec4u, MOST_MEMBERS>;      // (rank, begin, tokens) of the entries in the last bin
var<workgroup> wg_n_better: array<atomic<u32>, MOST_MEMBERS>; // tokens of those that come before
var<workgroup> wg_n_equal: array<atomic<u32>, MOST_MEMBERS>;  // tokens of the cells that tie with a cell, its own included
var<workgroup> wg_is_done: u32;
var<workgroup> wg_n_tied: atomic<u32>;         // cells that tie at the cut
var<workgroup> wg_n_tied_tokens: atomic<u32>;  // their tokens
var<workgroup> wg_plan: vec2u;                 // (1 if tied cells can be taken apart from the tail, tied tokens still to take)

// Four cells.
struct Cells {
  ranks: vec4u,
  begins: vec4u,  // among the postings
  counts: vec4u,
}

fn posting(kv: u32, at: u32) -> u32 {
  let word = posting_row(kv) + CELL_ROOM + at;
  return postings[word / 4u][word % 4u];
}

// Where cells 4 * four and up begin, and then where the last of them ends.
fn begins_of(kv: u32, four: u32) -> vec4u {
  return postings[posting_row(kv) / 4u + min(four, CELL_ROOM / 4u - 1u)];
}

fn ends_of(kv: u32, four: u32, begins: vec4u) -> vec4u {
  let next = postings[posting_row(kv) / 4u + min(four + 1u, CELL_ROOM / 4u - 1u)].x;
  return vec4u(begins.yzw, next);
}

fn ranks_of(scores: vec4f, valid: vec4<bool>) -> vec4u {
  let ranks = vec4u(rank_of(scores.x), rank_of(scores.y), rank_of(scores.z), rank_of(scores.w));
  return select(vec4u(NO_CANDIDATE), ranks, valid);
}

fn code_entries(m: u32, cells: vec4u) -> vec4f {
  let at = vec4u(m * CENTROIDS) + ((cells >> vec4u(m * CODE_BITS)) & vec4u(CENTROIDS - 1u));
  return vec4f(f32(wg_lut[at.x]), f32(wg_lut[at.y]), f32(wg_lut[at.z]), f32(wg_lut[at.w]));
}

fn cell_scores(four: u32) -> vec4f {
  let cells = (vec4u(four * 4u) + vec4u(0u, 1u, 2u, 3u)) & vec4u(CELLS - 1u);
  var scores = code_entries(0u, cells);
  if (1u < SUBVECTORS) { scores += code_entries(1u, cells); }
  if (2u < SUBVECTORS) { scores += code_entries(2u, cells); }
  if (3u < SUBVECTORS) { scores += code_entries(3u, cells); }
  for (var m = 4u; m < SUBVECTORS; m++) { scores += code_entries(m, cells); }
  return scores;
}

fn ranked_cells(four: u32, begins: vec4u, ends: vec4u) -> Cells {
  let counts = ends - begins;
  return Cells(ranks_of(cell_scores(four), counts > vec4u(0u)), begins, counts);
}

fn cells_at(kv: u32, four: u32) -> Cells {
  if (four * 4u >= CELLS) { return Cells(); }
  let begins = begins_of(kv, four);
  return ranked_cells(four, begins, ends_of(kv, four, begins));
}

fn codes_at(first_group: u32, m: u32, word: u32) -> u32 {
  return codes[(first_group + m) * (params.coded_stride / 4u) + word];
}

// Ranks of tokens 4 * word and up, none where they are not among tokens begin .. end.
fn ranked_tokens(first_group: u32, word: u32, words_0: u32, words_1: u32, begin: u32, end: u32) -> vec4u {
  let tokens = vec4u(word * 4u) + vec4u(0u, 1u, 2u, 3u);
  var scores = look_up(0u, words_0);
  if (1u < SUBVECTORS) { scores += look_up(1u, words_1); }
  for (var m = 2u; m < SUBVECTORS; m++) { scores += look_up(m, codes_at(first_group, m, word)); }
  return ranks_of(scores, (tokens >= vec4u(begin)) & (tokens < vec4u(end)));
}

fn tokens_at(first_group: u32, word: u32, begin: u32, end: u32) -> vec4u {
  if (word * 4u >= end) { return vec4u(NO_CANDIDATE); }
  var words_1 = 0u;
  if (1u < SUBVECTORS) { words_1 = codes_at(first_group, 1u, word); }
  return ranked_tokens(first_group, word, codes_at(first_group, 0u, word), words_1, begin, end);
}

fn highest_of(ranks: vec4u) -> u32 {
  return max(max(ranks.x, ranks.y), max(ranks.z, ranks.w));
}

// Offers ranks of four cells and of four tokens. In uniform control flow only.
fn offer_four(lane: u32, cells: vec4u, tail: vec4u) {
  let not_lowest = max(
    select(~cells, vec4u(0u), cells == vec4u(NO_CANDIDATE)),
    select(~tail, vec4u(0u), tail == vec4u(NO_CANDIDATE)),
  );
  offer(lane, highest_of(max(cells, tail)), highest_of(not_lowest));
}

fn count_some(cut: Cut, shift: u32, rank: u32, tokens: u32) {
  if (rank >= cut.low && rank <= cut.high) {
    atomicAdd(&wg_bins[bin_at((rank - cut.low) >> shift)], tokens);
  }
}

fn count_cells(cut: Cut, shift: u32, cells: Cells) {
  count_some(cut, shift, cells.ranks.x, cells.counts.x);
  count_some(cut, shift, cells.ranks.y, cells.counts.y);
  count_some(cut, shift, cells.ranks.z, cells.counts.z);
  count_some(cut, shift, cells.ranks.w, cells.counts.w);
}

// Takes \`tokens\` tokens of the entry that begins at \`begin\`.
fn take(begin: u32, tokens: u32) {
  let at = atomicAdd(&wg_taken, (1u << 16u) + tokens);
  wg_ranges[at >> 16u] = vec2u(at & 0xffffu, begin);
}

// Takes an entry above the cut; notes one in it.
fn take_or_note(cut: Cut, rank: u32, begin: u32, tokens: u32) {
  if (rank > cut.high) {
    take(begin, tokens);
  } else if (rank >= cut.low) {
    let member = atomicAdd(&wg_n_members, 1u);
    if (member < MOST_MEMBERS) { wg_members[member] = vec4u(rank, begin, tokens, 0u); }
  }
}

fn take_or_note_cells(cut: Cut, cells: Cells) {
  if (highest_of(cells.ranks) >= cut.low) {
    take_or_note(cut, cells.ranks.x, cells.begins.x, cells.counts.x);
    take_or_note(cut, cells.ranks.y, cells.begins.y, cells.counts.y);
    take_or_note(cut, cells.ranks.z, cells.begins.z, cells.counts.z);
    take_or_note(cut, cells.ranks.w, cells.begins.w, cells.counts.w);
  }
}

fn take_or_note_tokens(cut: Cut, word: u32, ranks: vec4u) {
  if (highest_of(ranks) >= cut.low) {
    take_or_note(cut, ranks.x, IS_TOKEN | (word * 4u), 1u);
    take_or_note(cut, ranks.y, IS_TOKEN | (word * 4u + 1u), 1u);
    take_or_note(cut, ranks.z, IS_TOKEN | (word * 4u + 2u), 1u);
    take_or_note(cut, ranks.w, IS_TOKEN | (word * 4u + 3u), 1u);
  }
}

// Compares two members of the last bin: of equal rank, a cell comes before the tail, and the tail is in order.
fn compare(one: u32, other: u32) {
  let a = wg_members[one];
  let b = wg_members[other];
  let both_cells = ((a.y | b.y) & IS_TOKEN) == 0u;
  if (b.x > a.x || (b.x == a.x && !both_cells && (b.y & IS_TOKEN) <= (a.y & IS_TOKEN) && b.y < a.y)) {
    atomicAdd(&wg_n_better[one], b.z);
  }
  if (b.x == a.x && both_cells) { atomicAdd(&wg_n_equal[one], b.z); }
}

// Takes what a member has among the \`need\` best tokens of its bin. Of cells that tie at the cut: nothing, which is noticed.
fn take_member(member: u32, need: u32) {
  let entry = wg_members[member];
  let better = atomicLoad(&wg_n_better[member]);
  let is_cell = (entry.y & IS_TOKEN) == 0u;
  let ties = select(entry.z, atomicLoad(&wg_n_equal[member]), is_cell);
  if (better < need && (ties == entry.z || better + ties <= need)) { take(entry.y, min(entry.z, need - better)); }
}

// Takes tokens \`begin\` and up one by one: those above a cut, and of those that tie in it the \`need\` lowest. The complements
// of their positions are counted as if they were ranks. In uniform control flow only.
fn take_one_by_one(lane: u32, kv: u32, row: Row, cut: Cut, begin: u32, need: u32) {
  var places = Cut(select(~row.cand_end, 0xffffffffu, need == 0u), ~begin, need);
  var is_found = need == 0u;
  for (var round = 0u; round <= MOST_PASSES; round++) {
    let shift = bin_shift(places);
    let is_last = is_found || round == MOST_PASSES;
    for (var word = begin / 4u + lane; word * 4u < row.cand_end; word += WG) {
      let ranks = tokens_at(kv * SUBVECTORS, word, begin, row.cand_end);
      let place = ~(vec4u(word * 4u) + vec4u(0u, 1u, 2u, 3u));
      let ties = (ranks >= vec4u(cut.low)) & (ranks <= vec4u(cut.high));
      if (is_last) {
        let is_taken = (ranks > vec4u(cut.high)) | (ties & (place >= vec4u(places.low)));
        for (var s = 0u; s < 4u; s++) {
          if (is_taken[s]) { take(IS_TOKEN | (word * 4u + s), 1u); }
        }
      } else {
        count_four(places, shift, select(vec4u(NO_CANDIDATE), place, ties));
      }
    }
    if (is_last) { break; }
    let found = choose_bin(lane, places.need, shift);
    places = narrowed(places, shift, found);
    is_found = found.z == 1u;
  }
}

// Moves \`low\` on by \`step\` if the range there begins at \`i\` or before. Searches are written out, as
// loops are not unrolled on every device.
fn later_range(low: u32, step: u32, i: u32, n_ranges: u32) -> u32 {
  let at = low + step;
  let begin = wg_ranges[min(at, SHORT - 1u)].x;
  return select(low, at, at < n_ranges && begin <= i);
}

// The i-th of the taken tokens, in any order.
fn taken_token(kv: u32, i: u32, n_ranges: u32) -> u32 {
  var at = 0u;
  if (SHORT > 2048u) { at = later_range(at, 2048u, i, n_ranges); }
  if (SHORT > 1024u) { at = later_range(at, 1024u, i, n_ranges); }
  if (SHORT > 512u) { at = later_range(at, 512u, i, n_ranges); }
  if (SHORT > 256u) { at = later_range(at, 256u, i, n_ranges); }
  if (SHORT > 128u) { at = later_range(at, 128u, i, n_ranges); }
  if (SHORT > 64u) { at = later_range(at, 64u, i, n_ranges); }
  if (SHORT > 32u) { at = later_range(at, 32u, i, n_ranges); }
  if (SHORT > 16u) { at = later_range(at, 16u, i, n_ranges); }
  if (SHORT > 8u) { at = later_range(at, 8u, i, n_ranges); }
  if (SHORT > 4u) { at = later_range(at, 4u, i, n_ranges); }
  if (SHORT > 2u) { at = later_range(at, 2u, i, n_ranges); }
  if (SHORT > 1u) { at = later_range(at, 1u, i, n_ranges); }
  let range = wg_ranges[at];
  if ((range.y & IS_TOKEN) != 0u) { return range.y & ~IS_TOKEN; }
  return posting(kv, range.y + i - range.x);
}

// Gathers the i-th of the taken tokens; behind the last, what is higher than any.
fn gather(i: u32, kv: u32, n_taken: u32, n_ranges: u32) {
  if (i < TAKEN_ROOM) {
    var token = 0xffffffffu;
    if (i < n_taken) { token = taken_token(kv, i, n_ranges); }
    wg_tokens[i] = token;
  }
}

fn later_heavy(low: u32, step: u32, position: u32, n_heavy: u32) -> u32 {
  let at = low + step;
  return select(low, at, at < n_heavy && wg_heavy[min(at, HEAVY_ROOM - 1u)] <= position);
}

// Whether a token is one of the n_heavy, by its position among the coded ones.
fn is_heavy(position: u32, n_heavy: u32) -> bool {
  var at = 0u;
  if (MOST_HEAVY > 256u) { at = later_heavy(at, 256u, position, n_heavy); }
  if (MOST_HEAVY > 128u) { at = later_heavy(at, 128u, position, n_heavy); }
  if (MOST_HEAVY > 64u) { at = later_heavy(at, 64u, position, n_heavy); }
  if (MOST_HEAVY > 32u) { at = later_heavy(at, 32u, position, n_heavy); }
  if (MOST_HEAVY > 16u) { at = later_heavy(at, 16u, position, n_heavy); }
  if (MOST_HEAVY > 8u) { at = later_heavy(at, 8u, position, n_heavy); }
  if (MOST_HEAVY > 4u) { at = later_heavy(at, 4u, position, n_heavy); }
  if (MOST_HEAVY > 2u) { at = later_heavy(at, 2u, position, n_heavy); }
  if (MOST_HEAVY > 1u) { at = later_heavy(at, 1u, position, n_heavy); }
  return n_heavy > 0u && wg_heavy[at] == position;
}

fn is_listed(row: Row, token: u32) -> bool {
  if (token < row.n_sink || token >= row.window_begin) { return token < row.n_tokens; }
  return token >= params.init_offset && is_heavy(token - params.init_offset, row.n_heavy);
}

// Entry \`at\` of the new list in place of that of the old one. No other invocation reads or writes it, and a weight is
// cleared only if no entry of the new list sets it: so no barrier for storage is needed, which takes 0.6 us on an H200.
fn replace(list_ix: u32, row: Row, at: u32, n_old: u32, old: u32) {
  if (at < row.list_length) {
    var token = at;
    if (at >= row.n_sink) {
      let beyond = at - row.n_sink;
      if (beyond < row.n_heavy) {
        token = params.init_offset + wg_heavy[beyond];
      } else {
        token = row.window_begin + beyond - row.n_heavy;
      }
    }
    indices[list_ix * params.list_stride + at] = token;
    set_weight(list_ix, token, 1.0);
  }
  if (at < n_old && !is_listed(row, old)) { set_weight(list_ix, old, 0.0); }
}

// Writes the list; the first two entries of every invocation were read before.
fn write_list(lane: u32, list_ix: u32, row: Row, n_old: u32, old: vec2u) {
  let longest = max(row.list_length, n_old);
  replace(list_ix, row, lane, n_old, old.x);
  if (longest > WG) {
    replace(list_ix, row, lane + WG, n_old, old.y);
    for (var at = lane + 2u * WG; at < longest; at += WG) { replace(list_ix, row, at, n_old, old_token(list_ix, at)); }
  }
}

fn n_lower_in(token: u32, part: u32, k: u32) -> u32 {
  let four = part * FOURS_PER_PART + k;
  if (k >= FOURS_PER_PART || four >= HEAVY_FOURS) { return 0u; }
  return u32(wg_tokens[4u * four] < token) + u32(wg_tokens[4u * four + 1u] < token) +
    u32(wg_tokens[4u * four + 2u] < token) + u32(wg_tokens[4u * four + 3u] < token);
}

// Counts which tokens of a part are lower than the i-th.
fn count_lower(i: u32, part: u32) {
  let token = wg_tokens[i];
  var n_lower = n_lower_in(token, part, 0u) + n_lower_in(token, part, 1u) + n_lower_in(token, part, 2u) +
    n_lower_in(token, part, 3u);
  if (FOURS_PER_PART > 4u) {
    for (var k = 4u; k < FOURS_PER_PART; k += 4u) {
      n_lower += n_lower_in(token, part, k) + n_lower_in(token, part, k + 1u) + n_lower_in(token, part, k + 2u) +
        n_lower_in(token, part, k + 3u);
    }
  }
  atomicAdd(&wg_n_lower[i], n_lower);
}

// Puts the heavy tokens in order. In uniform control flow only; begins after a barrier and ends with one.
fn sort_heavy(lane: u32, n_heavy: u32) {
  let part = lane / HEAVY_ROOM;
  let first = lane % HEAVY_ROOM;
  if (part < PARTS && first < n_heavy) { count_lower(first, part); }
  if (HEAVY_ROOM > WG) {
    for (var i = lane + WG; i < n_heavy; i += WG) { count_lower(i, 0u); }
  }
  workgroupBarrier();
  if (lane < n_heavy) { wg_heavy[atomicLoad(&wg_n_lower[lane])] = wg_tokens[lane]; }
  if (HEAVY_ROOM > WG) {
    for (var i = lane + WG; i < n_heavy; i += WG) { wg_heavy[atomicLoad(&wg_n_lower[i])] = wg_tokens[i]; }
  }
  workgroupBarrier();
}

// What an invocation has of the entries: its first cells, and of the tail.
struct Entries {
  kv: u32,
  cells: Cells,
  word: u32,
  tail: vec4u,
}

// One histogram of the entries' ranks in a cut: the bin that holds its need-th highest token.
fn find_bin(lane: u32, entries: Entries, cut: Cut) -> vec4u {
  let shift = bin_shift(cut);
  count_cells(cut, shift, entries.cells);
  count_four(cut, shift, entries.tail);
  if (CELLS > 4u * WG) {
    for (var four = WG; four < CELLS / 4u; four += WG) { count_cells(cut, shift, cells_at(entries.kv, four + lane)); }
  }
  return choose_bin(lane, cut.need, shift);
}

fn is_tied(cut: Cut, rank: u32) -> bool {
  return rank >= cut.low && rank <= cut.high;
}

// Takes of four cells what lies above a cut, and in it as much as there is to take.
fn take_cells(cut: Cut, cells: Cells) {
  for (var s = 0u; s < 4u; s++) {
    if (cells.ranks[s] >= cut.low) {
      take(cells.begins[s], select(cells.counts[s], min(cells.counts[s], cut.need), is_tied(cut, cells.ranks[s])));
    }
  }
}

fn count_ties(cut: Cut, cells: Cells) {
  for (var s = 0u; s < 4u; s++) {
    if (is_tied(cut, cells.ranks[s])) {
      atomicAdd(&wg_n_tied, 1u);
      atomicAdd(&wg_n_tied_tokens, cells.counts[s]);
    }
  }
}

// Takes what comparing a few entries could not tell: bins of many entries, and cells that tie at the cut. In uniform
// control flow only; begins after a barrier and ends with one.
fn take_exactly(lane: u32, entries: Entries, row: Row, wide: Cut) {
  // Until a bin decides, or all its ranks are equal.
  var cut = wide;
  var found = vec4u();
  for (var round = 0u; round < MOST_PASSES && found.z == 0u; round++) {
    let shift = bin_shift(cut);
    found = find_bin(lane, entries, cut);
    cut = narrowed(cut, shift, found);
  }
  if (lane == 0u) { atomicStore(&wg_taken, 0u); }
  count_ties(cut, entries.cells);
  if (CELLS > 4u * WG) {
    for (var four = WG; four < CELLS / 4u; four += WG) { count_ties(cut, cells_at(entries.kv, four + lane)); }
  }
  workgroupBarrier();
  // A cell that ties alone comes before the tail; where several do, their tokens alternate.
  if (lane == 0u) {
    let is_apart = found.y == found.w || atomicLoad(&wg_n_tied) <= 1u;
    let of_cells = select(0u, min(atomicLoad(&wg_n_tied_tokens), cut.need), is_apart);
    wg_plan = vec2u(u32(is_apart), cut.need - of_cells);
  }
  let plan = workgroupUniformLoad(&wg_plan);
  if (plan.x == 1u) {
    take_cells(cut, entries.cells);
    if (CELLS > 4u * WG) {
      for (var four = WG; four < CELLS / 4u; four += WG) { take_cells(cut, cells_at(entries.kv, four + lane)); }
    }
  }
  take_one_by_one(lane, entries.kv, row, cut, select(row.cand_begin, params.post_end, plan.x == 1u), plan.y);
  workgroupBarrier();
}

// In uniform control flow only.
fn make_list(lane: u32, list_ix: u32) {
  let row = row_of_list(list_ix);
  let kv = kv_of_list(list_ix);
  let first_group = kv * SUBVECTORS;
  let n_old = old_length(list_ix);
  let old = vec2u(old_token(list_ix, lane), old_token(list_ix, lane + WG));

  if (row.n_heavy > 0u) {
    // What the table need not be there for.
    let word = params.post_end / 4u + lane;
    let begins = begins_of(kv, lane);
    let ends = ends_of(kv, lane, begins);
    let last_word = (row.cand_end - 1u) / 4u;  // words behind it may be written meanwhile
    let words_0 = codes_at(first_group, 0u, min(word, last_word));
    var words_1 = 0u;
    if (1u < SUBVECTORS) { words_1 = codes_at(first_group, 1u, min(word, last_word)); }
    fill_table(lane, list_ix, first_group);
    var entries = Entries(kv, Cells(), word, vec4u(NO_CANDIDATE));
    if (4u * lane < CELLS) { entries.cells = ranked_cells(lane, begins, ends); }
    if (word <= last_word) {
      entries.tail = ranked_tokens(first_group, word, words_0, words_1, params.post_end, row.cand_end);
    }

    offer_four(lane, entries.cells.ranks, entries.tail);
    if (CELLS > 4u * WG) {
      for (var four = WG; four < CELLS / 4u; four += WG) {
        offer_four(lane, cells_at(kv, four + lane).ranks, vec4u(NO_CANDIDATE));
      }
    }
    let range = offered_range(row.n_short);
    let found = find_bin(lane, entries, range);
    let cut = narrowed(range, bin_shift(range), found);

    // Above the cut all is taken; the entries in it are compared with each other, if they are few.
    if (found.w > 0u) {
      take_or_note_cells(cut, entries.cells);
      take_or_note_tokens(cut, word, entries.tail);
      if (CELLS > 4u * WG) {
        for (var four = WG; four < CELLS / 4u; four += WG) { take_or_note_cells(cut, cells_at(kv, four + lane)); }
      }
    }
    workgroupBarrier();
    let n_members = atomicLoad(&wg_n_members);
    if (n_members <= MOST_MEMBERS && lane < n_members * n_members) { compare(lane / n_members, lane % n_members); }
    workgroupBarrier();
    if (n_members <= MOST_MEMBERS && lane < n_members) { take_member(lane, cut.need); }
    workgroupBarrier();
    let taken = atomicLoad(&wg_taken);
    let is_done = (taken & 0xffffu) == row.n_short;
    if (is_done) {
      gather(lane, kv, row.n_short, taken >> 16u);
      if (TAKEN_ROOM > WG) {
        for (var i = lane + WG; i < TAKEN_ROOM; i += WG) { gather(i, kv, row.n_short, taken >> 16u); }
      }
    }
    if (lane == 0u) { wg_is_done = u32(is_done); }
    if (workgroupUniformLoad(&wg_is_done) == 0u) {
      take_exactly(lane, entries, row, cut);
      let n_ranges = atomicLoad(&wg_taken) >> 16u;
      for (var i = lane; i < TAKEN_ROOM; i += WG) { gather(i, kv, row.n_short, n_ranges); }
      workgroupBarrier();
    }
    settle_heavy(lane, list_ix, row);
    sort_heavy(lane, row.n_heavy);
  } else {
    workgroupBarrier();  // every invocation has read how long the old list was
  }
  write_list(lane, list_ix, row, n_old, old);
  if (lane == 0u) { lengths[list_ix] = row.list_length; }
}
`,
  "score_topk_list/re_ranked.wgsl": `// In place of \`as_taken.wgsl\`: what a list by cells took is a shortlist, and its heavy tokens are the n_heavy best of it
// by the exact q·k, ties to the lower token. Stage: exact re-ranking, in the dispatch that made the shortlist.
//
// The shortlist needs no order for that. One histogram, of bins of equal width between the extremes of the exact scores,
// finds the bin of the n_heavy-th; the few tokens in it are compared with each other. Where they are many (scores tie, or
// are not finite), they are found by going over the shortlist.

const INFINITE_RANK = 0xff800000u;  // that of +inf; -inf has the complement

// How exact scores fall into the bins.
struct Bins {
  lowest: f32,
  per_score: f32,  // bins per unit of score; 0 where one bin holds everything
}

// What \`rank_exactly.wgsl\` asks for.
fn short_token(first: u32, i: u32) -> u32 {
  return params.init_offset + wg_tokens[i];
}

// A token's place among the ranges, which are read no more, takes its rank; wg_tokens becomes free for what is chosen.
fn keep_rank(i: u32, rank: u32) {
  wg_ranges[i] = vec2u(rank, wg_tokens[i]);
  atomicMax(&wg_highest, rank);
  atomicMax(&wg_not_lowest, ~rank);
}

// The score of a rank that is not that of NaN; +0 for -0.
fn score_of(rank: u32) -> f32 {
  return bitcast<f32>(select(~rank, rank & 0x7fffffffu, rank >= 0x80000000u));
}

fn exact_bins(lowest: u32, highest: u32) -> Bins {
  let is_finite = lowest > ~INFINITE_RANK && highest < INFINITE_RANK;
  let low = score_of(lowest);
  let span = score_of(highest) - low;
  return Bins(low, select(0.0, f32(N_BINS) / span, is_finite && span > 1e-30 && span < 3e38));
}

fn exact_bin(bins: Bins, rank: u32) -> u32 {
  let bin = u32(max((score_of(rank) - bins.lowest) * bins.per_score, 0.0));
  return select(0u, min(bin, N_BINS - 1u), bins.per_score > 0.0);
}

fn count_exact(bins: Bins, i: u32, n: u32) {
  if (i < n) { atomicAdd(&wg_bins[bin_at(exact_bin(bins, wg_ranges[i].x))], 1u); }
}

fn choose(token: u32) {
  let at = atomicAdd(&wg_taken, 1u);
  if (at < HEAVY_ROOM) { wg_tokens[at] = token; }
}

// Chooses the i-th of the shortlist if its bin is above a bin; notes it in that one.
fn choose_or_note(bins: Bins, bin: u32, i: u32, n: u32) {
  if (i < n) {
    let mine = wg_ranges[i];
    let own = exact_bin(bins, mine.x);
    if (own > bin) {
      choose(mine.y);
    } else if (own == bin) {
      let member = atomicAdd(&wg_n_members, 1u);
      if (member < MOST_MEMBERS) { wg_members[member] = vec4u(mine, 0u, 0u); }
    }
  }
}

// Whether a token, (rank, token), comes before another.
fn is_better(one: vec2u, other: vec2u) -> bool {
  return one.x > other.x || (one.x == other.x && one.y < other.y);
}

// Chooses a member of the bin if fewer than \`need\` of the others are better.
fn choose_member(member: u32, n_members: u32, need: u32) {
  let mine = wg_members[member].xy;
  var n_better = 0u;
  for (var k = 0u; k < n_members; k++) { n_better += u32(is_better(wg_members[k].xy, mine)); }
  if (n_better < need) { choose(mine.y); }
}

// The same of the i-th of the shortlist, if it is a member.
fn choose_by_all(bins: Bins, bin: u32, i: u32, n: u32, need: u32) {
  let mine = wg_ranges[i];
  if (exact_bin(bins, mine.x) == bin) {
    var n_better = 0u;
    for (var k = 0u; k < n; k++) {
      let other = wg_ranges[k];
      n_better += u32(exact_bin(bins, other.x) == bin && is_better(other, mine));
    }
    if (n_better < need) { choose(mine.y); }
  }
}

// In uniform control flow only; begins after a barrier and ends with one.
fn settle_heavy(lane: u32, list_ix: u32, row: Row) {
  let n = min(row.n_short, SHORT);
  rank_exactly(lane, list_ix, 0u, n);

  if (lane == 0u) {
    atomicStore(&wg_taken, 0u);
    atomicStore(&wg_n_members, 0u);
  }
  // What is past the heavy tokens is higher than any.
  if (lane >= row.n_heavy && lane < HEAVY_ROOM) { wg_tokens[lane] = 0xffffffffu; }
  if (HEAVY_ROOM > WG) {
    for (var i = lane + WG; i < HEAVY_ROOM; i += WG) {
      if (i >= row.n_heavy) { wg_tokens[i] = 0xffffffffu; }
    }
  }
  let bins = exact_bins(~atomicLoad(&wg_not_lowest), atomicLoad(&wg_highest));
  count_exact(bins, lane, n);
  if (SHORT > WG) {
    for (var i = lane + WG; i < n; i += WG) { count_exact(bins, i, n); }
  }
  let found = choose_bin(lane, row.n_heavy, 1u);
  choose_or_note(bins, found.x, lane, n);
  if (SHORT > WG) {
    for (var i = lane + WG; i < n; i += WG) { choose_or_note(bins, found.x, i, n); }
  }
  workgroupBarrier();
  let n_members = atomicLoad(&wg_n_members);
  if (n_members <= MOST_MEMBERS) {
    if (lane < n_members) { choose_member(lane, n_members, found.y); }
  } else {
    for (var i = lane; i < n; i += WG) { choose_by_all(bins, found.x, i, n, found.y); }
  }
  workgroupBarrier();
}
`,
  "step/cell_step.wgsl": `// cell_step: a whole step in one dispatch: lists by cells, and beside them the codes of the step's new keys. Stages:
// quantize, score, top-K and list (e08).
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// postings:  u32[B, Hkv, CELL_ROOM + coded_stride], see \`postings.wgsl\`
// indices:   u32[B, H, rows, list_stride]
// lengths:   u32[B, H, rows]
// new_keys:  f32[B, Hkv, n_new_keys, D]
// phi:       f32[B, Hkv, M], metric "ip" only
// weights:   f32[B, H, rows, weight_stride], if weights are written
// keys:      f32 or f16 [B, Hkv, key_stride, D], if a shortlist is re-ranked
//
// The first workgroups own one list each (see \`make_cell_list.wgsl\`), the rest one word of new codes each (see
// \`code_word.wgsl\`). Precondition: no row's candidates share a word with the new keys, or none are coded here.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read> postings: array<vec4u>;
@group(0) @binding(5) var<storage, read_write> indices: array<u32>;
@group(0) @binding(6) var<storage, read_write> lengths: array<u32>;
@group(0) @binding(7) var<storage, read> new_keys: array<f32>;
@group(0) @binding(8) var<storage, read> phi: array<f32>;

@compute @workgroup_size(WG)
fn cell_step(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists()) {
    make_list(lane, ix);
  } else if (params.n_beside > 0u && ix - n_lists() < BATCH * KV_HEADS * SUBVECTORS * n_new_words()) {
    code_word(lane, ix - n_lists());
  }
}
`,
  "topk/bitonic.wgsl": `// Shared part of every kernel that sorts with one workgroup: the comparators of a bitonic network
// in its normalized form, where the smaller element always goes to the lower position. Positions
// from n on then never move, so no padding is needed: a comparator that reaches past n is skipped.
// Source: Batcher 1968; the normalized form: Knuth, The Art of Computer Programming 3, 5.3.4.
//
// for (block = 2; block < 2n; block *= 2)       one merge of sorted halves
//   flip_pair(t, block) for t in 0 .. n'/2      then, for (gap = block / 4; gap > 0; gap /= 2):
//   gap_pair(t, gap)    for t in 0 .. n'/2      where n' is n rounded up to a power of two

fn flip_pair(t: u32, block: u32) -> vec2u {
  let half = block / 2u;
  let first = t / half * block;
  let offset = t % half;
  return vec2u(first + offset, first + block - 1u - offset);
}

fn gap_pair(t: u32, gap: u32) -> vec2u {
  let low = t / gap * 2u * gap + t % gap;
  return vec2u(low, low + gap);
}

// n rounded up to a power of two; n is at least 1.
fn power_of_two(n: u32) -> u32 {
  return 1u << (32u - countLeadingZeros(n - 1u));
}
`,
  "topk/extremes.wgsl": `// Shared part of the kernels that narrow a range of ranks: its ends over the workgroup.

// Offers the highest of an invocation's ranks and the highest of their complements; 0 and 0 offer nothing.
fn offer(lane: u32, highest: u32, not_lowest: u32) {
  if (highest != NO_CANDIDATE) {
    atomicMax(&wg_highest, highest);
    atomicMax(&wg_not_lowest, not_lowest);
  }
}
`,
  "topk/mask.wgsl": `// mask: rank[l, i] = rank_of(score[l, i]) for candidates, 0 for coded tokens in sink or window.
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
`,
  "topk/narrow.wgsl": `// Shared part of the kernels that find the K-th highest of many ranks with one workgroup: a histogram of 4 * WG
// bins over the range in which it must lie, then over the bin in which it lies, and so on. The first range is
// that of the ranks themselves, so that one histogram is nearly always enough to tell K from K + 1. All invocations
// search the histogram at once. Needs WG (a power of two), scan_sum and offer.
//
// Source: as radix select in Alabi, Blanchard, Gordon, Steinbach 2012, but with bins between the extremes, as
// their bucket select.

override N_BINS: u32 = 4u * WG;

var<workgroup> wg_bins: array<atomic<u32>, N_BINS>;  // 16 bytes per invocation; all 0 between two histograms
var<workgroup> wg_highest: atomic<u32>;
var<workgroup> wg_not_lowest: atomic<u32>;
var<workgroup> wg_found: vec4u;

// No range of ranks needs more histograms than this: one of the offered range, one below it, and as many as narrow 32
// bits by log2(N_BINS) each. A bound, so that no input whatever can keep a GPU in the loop.
const MOST_PASSES = 12u;

// Ranks above \`high\` are among the best; of those from low to high the first \`need\` by position are.
struct Cut {
  low: u32,
  high: u32,
  need: u32,
}

// Ranks in a bin: 1 << bin_shift.
fn bin_shift(cut: Cut) -> u32 {
  let bits = 32u - countLeadingZeros(cut.high - cut.low);
  let most = countTrailingZeros(N_BINS);
  return max(bits, most) - most;
}

// Neighbouring bins lie WG apart, so that the four of an invocation are read without bank conflicts.
fn bin_at(bin: u32) -> u32 {
  return (bin & 3u) * WG + (bin >> 2u);
}

fn count_rank(cut: Cut, shift: u32, rank: u32) {
  if (rank >= cut.low && rank <= cut.high) {
    atomicAdd(&wg_bins[bin_at((rank - cut.low) >> shift)], 1u);
  }
}

fn count_four(cut: Cut, shift: u32, ranks: vec4u) {
  count_rank(cut, shift, ranks.x);
  count_rank(cut, shift, ranks.y);
  count_rank(cut, shift, ranks.z);
  count_rank(cut, shift, ranks.w);
}

// The range of the ranks that were offered, but at most four octaves below the highest: far below it, where
// the K-th rarely is, floats are so dense in ranks that a bin would hold everything. Begins with a barrier.
fn offered_range(need: u32) -> Cut {
  workgroupBarrier();
  let high = atomicLoad(&wg_highest);
  let low = max(~atomicLoad(&wg_not_lowest), high - min(high, 0x02000000u));
  return Cut(min(low, high), high, need);
}

// (bin, how many of it are needed, 1 if those are all that it holds or all its ranks are equal, how many it holds) of
// the bin that holds the need-th highest rank; (0, how many were counted, 0, 0) where those are fewer. Begins with a barrier and clears the histogram.
fn choose_bin(lane: u32, need: u32, shift: u32) -> vec4u {
  workgroupBarrier();
  if (lane == 0u) {
    atomicStore(&wg_highest, 0u);
    atomicStore(&wg_not_lowest, 0u);
  }
  let own = WG - 1u - lane;
  let d = atomicLoad(&wg_bins[own + 3u * WG]);
  let c = atomicLoad(&wg_bins[own + 2u * WG]);
  let b = atomicLoad(&wg_bins[own + WG]);
  let a = atomicLoad(&wg_bins[own]);
  atomicStore(&wg_bins[own + 3u * WG], 0u);
  atomicStore(&wg_bins[own + 2u * WG], 0u);
  atomicStore(&wg_bins[own + WG], 0u);
  atomicStore(&wg_bins[own], 0u);
  let mine = a + b + c + d;
  let upto = scan_sum(lane, mine);
  if (upto >= need && upto - mine < need) {
    var bin = own * 4u + 3u;
    var here = d;
    var left = need - (upto - mine);
    if (left > here) {
      left -= here;
      here = c;
      bin -= 1u;
      if (left > here) {
        left -= here;
        here = b;
        bin -= 1u;
        if (left > here) {
          left -= here;
          here = a;
          bin -= 1u;
        }
      }
    }
    wg_found = vec4u(bin, left, u32(left == here || shift == 0u), here);
  }
  if (lane == WG - 1u && upto < need) { wg_found = vec4u(0u, upto, 0u, 0u); }
  return workgroupUniformLoad(&wg_found);
}

// The part of a cut that the found bin is; below the cut if there was none.
fn narrowed(cut: Cut, shift: u32, found: vec4u) -> Cut {
  if (found.w == 0u) { return Cut(1u, cut.low - 1u, cut.need - found.y); }
  let low = cut.low + (found.x << shift);
  // A range rarely ends where a bin does, and what lies above it was counted already.
  return Cut(low, low + min((1u << shift) - 1u, cut.high - low), found.y);
}

// Whether all ranks that were offered are equal; at least a barrier after they were.
fn all_equal() -> bool {
  return atomicLoad(&wg_highest) == ~atomicLoad(&wg_not_lowest);
}
`,
  "topk/pick_best.wgsl": `// Shared part of the kernels that pick a list's best entries with one workgroup, best first; equal ranks
// by position, lower first. Needs topk_ix, topk_ranks, WG, and of the kernel:
//   n_entries(), entry_stride(): entries of a list and where the next list's begin
//   rank_at(at), token_at(at, i): the rank of an entry and what is stored for it; both ascend with i
//
// 1. Radix select, 8 bits at a time from the top, finds the lowest rank that is taken and how many of that
// rank. 2. An ordered compaction keeps them by position. 3. A bitonic sort in place, through storage, puts
// the best first. Precondition: at least n_heavy ranks are above 0.
// Source: radix select as in Alabi, Blanchard, Gordon, Steinbach 2012.

const N_DIGITS = 256u;

var<workgroup> wg_histogram: array<atomic<u32>, N_DIGITS>;  // 1 KiB
var<workgroup> wg_chosen: vec2u;                            // prefix so far, ranks still to take

// Narrows the range of the n_heavy-th highest rank by one digit.
fn narrow(lane: u32, first: u32, shift: u32, prefix: u32, need: u32) -> vec2u {
  for (var digit = lane; digit < N_DIGITS; digit += WG) {
    atomicStore(&wg_histogram[digit], 0u);
  }
  workgroupBarrier();
  for (var i = lane; i < n_entries(); i += WG) {
    let rank = rank_at(first + i);
    // The digits above this one must be those chosen so far; the topmost has none above it.
    if (shift == 24u || rank >> (shift + 8u) == prefix >> (shift + 8u)) {
      atomicAdd(&wg_histogram[(rank >> shift) & 0xffu], 1u);
    }
  }
  workgroupBarrier();
  if (lane == 0u) {
    var digit = N_DIGITS - 1u;
    var left = need;
    while (digit > 0u && atomicLoad(&wg_histogram[digit]) < left) {
      left -= atomicLoad(&wg_histogram[digit]);
      digit -= 1u;
    }
    wg_chosen = vec2u(prefix | (digit << shift), left);
  }
  return workgroupUniformLoad(&wg_chosen);
}

fn put_better_first(at: u32, pair: vec2u, n: u32) {
  if (pair.y < n) {
    let a = at + pair.x;
    let b = at + pair.y;
    let rank_a = topk_ranks[a];
    let rank_b = topk_ranks[b];
    let ix_a = topk_ix[a];
    let ix_b = topk_ix[b];
    if (rank_b > rank_a || (rank_b == rank_a && ix_b < ix_a)) {
      topk_ranks[a] = rank_b;
      topk_ranks[b] = rank_a;
      topk_ix[a] = ix_b;
      topk_ix[b] = ix_a;
    }
  }
}

fn pick_best(lane: u32, list_ix: u32, n_heavy: u32) {
  let first = list_ix * entry_stride();
  let out = list_ix * params.heavy_stride;

  var threshold = 0u;
  var need = n_heavy;
  for (var shift = 24i; shift >= 0i; shift -= 8i) {
    let chosen = narrow(lane, first, u32(shift), threshold, need);
    threshold = chosen.x;
    need = chosen.y;
  }

  // (ranks above the threshold, ranks equal to it) in the tiles before this one.
  var before = vec2u(0u);
  for (var tile = 0u; tile < n_entries(); tile += WG) {
    let i = tile + lane;
    var rank = NO_CANDIDATE;
    if (i < n_entries()) { rank = rank_at(first + i); }
    let flags = vec2u(u32(rank > threshold), u32(rank == threshold));
    let upto = before + scan_inclusive(lane, flags);
    if (flags.x == 1u || (flags.y == 1u && upto.y <= need)) {
      let slot = out + upto.x + min(upto.y, need) - 1u;
      topk_ix[slot] = token_at(first + i, i);
      topk_ranks[slot] = rank;
    }
    if (lane == WG - 1u) { wg_chosen = upto; }
    before = workgroupUniformLoad(&wg_chosen);
  }

  storageBarrier();
  let n_pairs = power_of_two(n_heavy) / 2u;
  for (var block = 2u; block <= 2u * n_pairs; block *= 2u) {
    for (var t = lane; t < n_pairs; t += WG) {
      put_better_first(out, flip_pair(t, block), n_heavy);
    }
    storageBarrier();
    for (var gap = block / 4u; gap > 0u; gap /= 2u) {
      for (var t = lane; t < n_pairs; t += WG) {
        put_better_first(out, gap_pair(t, gap), n_heavy);
      }
      storageBarrier();
    }
  }
}
`,
  "topk/rank.wgsl": `// Shared part of every kernel that compares scores: a rank is a u32 that orders as scores do.
//
// 0 is "no candidate", 1 is NaN, then -inf < ... < -0 = +0 < ... < +inf. The bits are tested, not
// the floats: compilers fold \`x != x\` away, and the usual sortable key would put NaN highest and
// -0 below +0.

const NO_CANDIDATE = 0u;

fn rank_of(score: f32) -> u32 {
  let bits = bitcast<u32>(score);
  let magnitude = bits & 0x7fffffffu;
  let number = select(bits | 0x80000000u, ~bits, bits > 0x7fffffffu);
  let number_or_zero = select(number, 0x80000000u, magnitude == 0u);
  return select(number_or_zero, 1u, magnitude > 0x7f800000u);
}
`,
  "topk/scan.wgsl": `// Shared part of the kernels that count with one workgroup: prefix sums with one barrier per doubling, in
// two buffers by turns (Hillis, Steele 1986). Needs WG. A barrier must separate two calls.

override SCAN_WORDS: u32 = 2u * WG;  // named: two unnamed lengths in one module crash Naga 29

var<workgroup> wg_scan: array<u32, SCAN_WORDS>;  // 8 bytes per invocation

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  var sum = value;
  var at = 0u;
  wg_scan[lane] = sum;
  workgroupBarrier();
  for (var step = 1u; step < WG; step *= 2u) {
    if (lane >= step) { sum += wg_scan[at + lane - step]; }
    at = WG - at;
    wg_scan[at + lane] = sum;
    workgroupBarrier();
  }
  return sum;
}
`,
  "topk/scan_pair.wgsl": `// Shared part of the kernels that count two things at once. Needs scan_sum. Totals stay below 65,536.

fn scan_inclusive(lane: u32, value: vec2u) -> vec2u {
  let sum = scan_sum(lane, value.x | (value.y << 16u));
  return vec2u(sum & 0xffffu, sum >> 16u);
}
`,
  "topk/scan_subgroup.wgsl": `// Shared part of the kernels that count with one workgroup: prefix sums within subgroups, then over subgroups: two
// barriers in place of one per doubling. Needs WG; invocations lie in subgroups in order of their index (a test
// checks it). A barrier must separate two calls.
//
// Of the subgroup functions only the prefix sum is used. On an NVIDIA H200 (driver 580) shuffles that were compiled into
// these kernels ran before the subgroup was together again and gave wrong sums; and with subgroupAdd for the sums over
// subgroups, which would save a barrier, code_list by 128 or 256 and a variant of cell_list gave wrong lists, whatever
// barriers stood around it. The same sums by the prefix sum are right.

enable subgroups;

override SUBGROUP_SIZE: u32;
override N_SUBGROUPS: u32 = (WG + SUBGROUP_SIZE - 1u) / SUBGROUP_SIZE;

var<workgroup> wg_scan: array<u32, N_SUBGROUPS>;         // 4 bytes per subgroup
var<workgroup> wg_scan_before: array<u32, N_SUBGROUPS>;  // 4 bytes per subgroup

// Inclusive prefix sums over the workgroup.
fn scan_sum(lane: u32, value: u32) -> u32 {
  let subgroup = lane / SUBGROUP_SIZE;
  let within = lane % SUBGROUP_SIZE;
  let is_last = within == SUBGROUP_SIZE - 1u;
  let sum = subgroupInclusiveAdd(value);
  if (is_last) { wg_scan[subgroup] = sum; }
  workgroupBarrier();
  var others = select(0u, wg_scan[min(within, N_SUBGROUPS - 1u)], within < subgroup);
  if (N_SUBGROUPS > SUBGROUP_SIZE) {
    for (var i = within + SUBGROUP_SIZE; i < subgroup; i += SUBGROUP_SIZE) { others += wg_scan[i]; }
  }
  let before = subgroupInclusiveAdd(others);
  if (is_last) { wg_scan_before[subgroup] = before; }
  workgroupBarrier();
  return wg_scan_before[subgroup] + sum;
}
`,
  "topk/topk.wgsl": `// topk: the n_heavy highest ranks of a list, best first; equal ranks by position, lower first.
// Stage: top-K (e01). What torch.topk(sorted=True) does, with the tie rule fixed.
//
// ranks:      u32[B, H, rows, coded_stride], 0 where there is no candidate
// topk_ix:    u32[B, H, rows, heavy_stride], position among the coded tokens
// topk_ranks: u32[B, H, rows, heavy_stride]
//
// One workgroup owns one list; see \`pick_best.wgsl\` for how.

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
`,
  "topk_list/make_list.wgsl": `// Shared part of the kernels that make a list of the tiles' candidates: the n_heavy best, ties to the lower token,
// between sink and window: indices[l, :] = [sink | heavy | window], ascending; lengths[l] = how many; weights[l, :]
// = 1 at them. Needs indices, lengths, WG, and of the kernel:
//   first_four(list_ix), n_fours_of(row): where a list's candidates begin and how many they are, in fours
//   four_ranks(first, at, n_fours), four_ix(first, at, n_fours): ranks, and positions among the coded tokens
//
// One workgroup owns one list. Invocation \`lane\` reads four neighbouring candidates at a time. Candidates come in
// the order of their tokens, and so does what an ordered compaction keeps of them: nothing is sorted. The sink
// ends before the first candidate and the window begins after the last. A short sequence lists everything: its
// row has n_sink = n_tokens. Precondition: at least n_heavy ranks are above 0.

// As many candidates as can be compared each with each at once, an invocation per pair.
const MOST_MEMBERS = 22u;

var<workgroup> wg_before: vec2u;
var<workgroup> wg_same: u32;
var<workgroup> wg_n_members: atomic<u32>;
var<workgroup> wg_members: array<vec2u, MOST_MEMBERS>;        // rank and position of those in a small bin
var<workgroup> wg_n_better: array<atomic<u32>, MOST_MEMBERS>;  // how many of them come before

fn put(list_ix: u32, at: u32, token: u32) {
  indices[list_ix * params.list_stride + at] = token;
  set_weight(list_ix, token, 1.0);
}

fn offer_four(lane: u32, cut: Cut, ranks: vec4u) {
  let within = select(vec4u(NO_CANDIDATE), ranks, (ranks >= vec4u(cut.low)) & (ranks <= vec4u(cut.high)));
  let inverse = select(vec4u(0u), ~within, within != vec4u(NO_CANDIDATE));
  offer(lane, max(max(within.x, within.y), max(within.z, within.w)), max(max(inverse.x, inverse.y), max(inverse.z, inverse.w)));
}

// Offers the candidates within a cut. The first four of every invocation stay in registers.
fn offer_all(lane: u32, cut: Cut, first: u32, n_fours: u32, ranks: vec4u) {
  offer_four(lane, cut, ranks);
  if (n_fours > WG) {
    for (var turn = WG; turn < n_fours; turn += WG) {
      offer_four(lane, cut, four_ranks(first, turn + lane, n_fours));
    }
  }
}

// One histogram over a range: the bin that holds its cut.need-th highest rank, as choose_bin tells.
fn find_bin(lane: u32, cut: Cut, first: u32, n_fours: u32, ranks: vec4u) -> vec4u {
  let shift = bin_shift(cut);
  count_four(cut, shift, ranks);
  if (n_fours > WG) {
    for (var turn = WG; turn < n_fours; turn += WG) {
      count_four(cut, shift, four_ranks(first, turn + lane, n_fours));
    }
  }
  return choose_bin(lane, cut.need, shift);
}

// Puts a rank that the cut takes; \`at\` counts the ranks above the cut and in it before this one.
fn put_taken(cut: Cut, at: vec2u, list_ix: u32, row: Row, rank: u32, ix: u32) -> vec2u {
  if (rank < cut.low) { return at; }
  let is_above = rank > cut.high;
  if (is_above || at.y < cut.need) {
    put(list_ix, row.n_sink + at.x + min(at.y, cut.need), params.init_offset + ix);
  }
  return at + select(vec2u(0u, 1u), vec2u(1u, 0u), is_above);
}

// Joins the members of a small bin; returns as which.
fn join(cut: Cut, rank: u32, position: u32) -> u32 {
  if (rank < cut.low || rank > cut.high) { return MOST_MEMBERS; }
  let member = atomicAdd(&wg_n_members, 1u);
  wg_members[member] = vec2u(rank, position);
  return member;
}

// Whether a small bin's member is among the cut.need best of them, ties to the lower position.
fn is_needed(cut: Cut, rank: u32, member: u32) -> bool {
  if (member == MOST_MEMBERS) { return rank > cut.high; }
  return atomicLoad(&wg_n_better[member]) < cut.need;
}

// Puts what lies above the cut, and the cut.need best of the n_members in it, compared each with each. For one turn of
// candidates, and once per workgroup: relies on workgroup memory being 0. In uniform control flow only.
fn put_compared(lane: u32, list_ix: u32, row: Row, cut: Cut, n_members: u32, ranks: vec4u, ix: vec4u) {
  let members = vec4u(
    join(cut, ranks.x, 4u * lane),
    join(cut, ranks.y, 4u * lane + 1u),
    join(cut, ranks.z, 4u * lane + 2u),
    join(cut, ranks.w, 4u * lane + 3u),
  );
  workgroupBarrier();
  if (lane < n_members * n_members) {
    let one = lane / n_members;
    let mine = wg_members[one];
    let other = wg_members[lane % n_members];
    if (other.x > mine.x || (other.x == mine.x && other.y < mine.y)) { atomicAdd(&wg_n_better[one], 1u); }
  }
  workgroupBarrier();
  let taken = vec4<bool>(
    is_needed(cut, ranks.x, members.x),
    is_needed(cut, ranks.y, members.y),
    is_needed(cut, ranks.z, members.z),
    is_needed(cut, ranks.w, members.w),
  );
  let n_taken = dot(vec4u(taken), vec4u(1u));
  var at = row.n_sink + scan_sum(lane, n_taken) - n_taken;
  if (taken.x) { put(list_ix, at, params.init_offset + ix.x); }
  at += u32(taken.x);
  if (taken.y) { put(list_ix, at, params.init_offset + ix.y); }
  at += u32(taken.y);
  if (taken.z) { put(list_ix, at, params.init_offset + ix.z); }
  at += u32(taken.z);
  if (taken.w) { put(list_ix, at, params.init_offset + ix.w); }
}

// Puts what the cut takes of one turn's candidates; \`before\` counts the ranks above the cut and in it in the turns
// before. Puts nothing if the cut is neither exact nor holds equal ranks only. Returns the same up to this invocation.
// In uniform control flow only.
fn put_turn(
  lane: u32,
  list_ix: u32,
  row: Row,
  cut: Cut,
  is_exact: bool,
  four: vec4u,
  ix: vec4u,
  before: vec2u,
) -> vec2u {
  let is_above = four > vec4u(cut.high);
  let is_within = (four >= vec4u(cut.low)) & !is_above;
  let mine = vec2u(dot(vec4u(is_above), vec4u(1u)), dot(vec4u(is_within), vec4u(1u)));
  let upto = before + scan_inclusive(lane, mine);
  if (mine.x + mine.y > 0u && (is_exact || all_equal())) {
    var so_far = upto - mine;
    so_far = put_taken(cut, so_far, list_ix, row, four.x, ix.x);
    so_far = put_taken(cut, so_far, list_ix, row, four.y, ix.y);
    so_far = put_taken(cut, so_far, list_ix, row, four.z, ix.z);
    so_far = put_taken(cut, so_far, list_ix, row, four.w, ix.w);
  }
  return upto;
}

// Puts what the cut takes, if that is decided: if \`is_exact\`, or if the ranks in the cut, which were offered, turn out
// to tie. Returns whether it was. In uniform control flow only.
fn put_heavy(
  lane: u32,
  list_ix: u32,
  row: Row,
  cut: Cut,
  is_exact: bool,
  first: u32,
  n_fours: u32,
  ranks: vec4u,
  ix: vec4u,
) -> bool {
  var before = put_turn(lane, list_ix, row, cut, is_exact, ranks, ix, vec2u());
  if (n_fours > WG) {
    for (var turn = WG; turn < n_fours; turn += WG) {
      if (lane == WG - 1u) { wg_before = before; }
      before = workgroupUniformLoad(&wg_before);
      let more = four_ranks(first, turn + lane, n_fours);
      let more_ix = four_ix(first, turn + lane, n_fours);
      before = put_turn(lane, list_ix, row, cut, is_exact, more, more_ix, before);
    }
  }
  if (is_exact) { return true; }
  if (lane == 0u) { wg_same = u32(all_equal()); }
  return workgroupUniformLoad(&wg_same) == 1u;
}

// In uniform control flow only.
fn make_list(lane: u32, list_ix: u32) {
  let row = row_of_list(list_ix);
  let first = first_four(list_ix);
  let n_fours = n_fours_of(row);
  let ranks = four_ranks(first, lane, n_fours);
  let ix = four_ix(first, lane, n_fours);  // loaded before it is known whether they are needed: it takes as long as a histogram
  clear_weights(lane, list_ix);

  // The cut that takes the n_heavy best. What decides the flow, \`found\`, is uniform; the cut is not known to be.
  var cut = Cut(1u, 0xffffffffu, row.n_heavy);
  var found = vec4u();
  var is_small = false;  // the bin holds few enough to compare them
  if (row.n_heavy > 0u) {
    offer_all(lane, cut, first, n_fours, ranks);
    cut = offered_range(row.n_heavy);
    found = find_bin(lane, cut, first, n_fours, ranks);
    cut = narrowed(cut, bin_shift(cut), found);
    is_small = found.z == 0u && found.w > 0u && found.w <= MOST_MEMBERS && found.w * found.w <= WG && n_fours <= WG;
    if (found.z == 0u && !is_small) { offer_all(lane, cut, first, n_fours, ranks); }
  }

  storageBarrier();
  let n_window = row.n_tokens - row.window_begin;
  if (lane < row.n_sink) { put(list_ix, lane, lane); }
  if (lane < n_window) { put(list_ix, row.n_sink + row.n_heavy + lane, row.window_begin + lane); }
  if (max(row.n_sink, n_window) > WG) {
    for (var j = lane + WG; j < row.n_sink; j += WG) { put(list_ix, j, j); }
    for (var j = lane + WG; j < n_window; j += WG) {
      put(list_ix, row.n_sink + row.n_heavy + j, row.window_begin + j);
    }
  }
  if (lane == 0u) { lengths[list_ix] = row.list_length; }

  // Usually the first bin decides, or holds few, or all that share it tie; else it is narrowed.
  if (is_small) {
    put_compared(lane, list_ix, row, cut, found.w, ranks, ix);
  } else if (row.n_heavy > 0u) {
    if (!put_heavy(lane, list_ix, row, cut, found.z == 1u, first, n_fours, ranks, ix)) {
      for (var round = 0u; round < MOST_PASSES && found.z == 0u; round++) {
        found = find_bin(lane, cut, first, n_fours, ranks);
        cut = narrowed(cut, bin_shift(cut), found);
      }
      put_heavy(lane, list_ix, row, cut, true, first, n_fours, ranks, ix);
    }
  }
}
`,
  "topk_list/merge_list.wgsl": `// merge_list: lists of the tiles' best candidates. Stages: top-K and list (e05). Replaces merge, offset, concat,
// sort, zeros and scatter of e04.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// indices:         u32[B, H, rows, list_stride]
// lengths:         u32[B, H, rows]
// weights:         f32[B, H, rows, weight_stride], if weights are written
//
// One workgroup owns one list; see \`make_list.wgsl\` for how.

override WG: u32;

@group(0) @binding(1) var<storage, read> candidate_ranks: array<vec4u>;
@group(0) @binding(2) var<storage, read> candidate_ix: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;
@group(0) @binding(4) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(WG)
fn merge_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    make_list(lane, list_ix);
  }
}
`,
  "topk_list/tile_fours.wgsl": `// How a kernel that makes lists finds the candidates of tiles, four at a time; see \`tiles.wgsl\` for how they lie. Needs
// candidate_ranks and candidate_ix. kept() is a multiple of 4.

fn first_four(list_ix: u32) -> u32 {
  return list_ix * tiles_stride() / 4u;
}

fn n_fours_of(row: Row) -> u32 {
  return select(0u, n_tiles() * kept() / 4u, row.n_heavy > 0u);
}

// Four candidates; past the end they are none.
fn four_ranks(first: u32, at: u32, n_fours: u32) -> vec4u {
  if (at >= n_fours) { return vec4u(NO_CANDIDATE); }
  return candidate_ranks[first + at];
}

// Their positions among the coded tokens; whatever where they are none.
fn four_ix(first: u32, at: u32, n_fours: u32) -> vec4u {
  return candidate_ix[first + min(at, max(n_fours, 1u) - 1u)];
}
`,
  "topk_list/weights_off.wgsl": `// In place of \`weights_on.wgsl\` where no weights are written.

fn set_weight(list_ix: u32, token: u32, weight: f32) {}

fn clear_weights(lane: u32, list_ix: u32) {}

fn old_length(list_ix: u32) -> u32 { return 0u; }

fn old_token(list_ix: u32, at: u32) -> u32 { return 0u; }
`,
  "topk_list/weights_on.wgsl": `// How a kernel that makes lists keeps the dense weights: a row of them is 1 at the tokens of its list, else 0, and
// only what the list before it had is cleared. The binding is this part's.

@group(0) @binding(9) var<storage, read_write> weights: array<f32>;

fn set_weight(list_ix: u32, token: u32, weight: f32) {
  weights[list_ix * params.weight_stride + token] = weight;
}

fn clear_weight(list_ix: u32, at: u32) {
  set_weight(list_ix, indices[list_ix * params.list_stride + at], 0.0);
}

// Clears what the list has now; a barrier must follow before it is replaced.
fn clear_weights(lane: u32, list_ix: u32) {
  if (params.clears_previous == 1u) {
    let length = lengths[list_ix];
    if (lane < length) { clear_weight(list_ix, lane); }
    if (lane + WG < length) { clear_weight(list_ix, lane + WG); }
    if (length > 2u * WG) {
      for (var j = lane + 2u * WG; j < length; j += WG) { clear_weight(list_ix, j); }
    }
  }
}

// Length of the list that the weights hold now; 0 where they are all 0.
fn old_length(list_ix: u32) -> u32 {
  if (params.clears_previous == 0u) { return 0u; }
  return lengths[list_ix];
}

fn old_token(list_ix: u32, at: u32) -> u32 {
  if (at >= params.list_stride) { return 0u; }
  return indices[list_ix * params.list_stride + at];
}
`,
  "train/assign_close.wgsl": `// assign_close: the nearest centroid of each key of a tile by squared differences of columns, where \`assign_sample\` found the
// keys so close to their centroids that its own formula cancels. Stage: training, second of an iteration; usually finds no work.
//
// keys, sampled, extra, model, state, owners, counts, tile_stats: see \`assign_sample.wgsl\`; written anew for such a tile
//
// One workgroup owns one tile of a group, an invocation a slot. What was learnt: each centroid starts as a key, so most tiles
// hold a key at distance 0 then. Looking again because of single keys costs more than the training; a tile is judged as a whole.
// Needs WG = 128.

override WG: u32;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read> model: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<u32>;
@group(0) @binding(6) var<storage, read_write> owners: array<u32>;
@group(0) @binding(7) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read_write> tile_stats: array<vec4f>;

var<workgroup> wg_work: array<vec4u, TILE>;  // 2048 bytes
var<workgroup> wg_codes: array<u32, TILE>;   // 512 bytes
var<workgroup> wg_is_close: f32;

struct Nearest {
  code: u32,
  distance: f32,
}

// Ties go to the lower centroid.
fn nearest_by_differences(group: u32, slot: u32, row: u32) -> Nearest {
  let at = point_at(group, row);
  var nearest = Nearest(0u, LARGEST);
  for (var c = 0u; c < CENTROIDS; c++) {
    let centroid = model_row(group, c);
    var sum = 0.0;
    for (var j = 0u; j < CENTROID_WIDTH; j++) {
      let t = point_column(group, slot, row, at, j, origin_column(group, j)) - model[centroid + j];
      sum = fma(t, t, sum);
    }
    if (sum < nearest.distance) { nearest = Nearest(c, sum); }
  }
  return nearest;
}

@compute @workgroup_size(WG)
fn assign_close(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let n_tiles = (params.n_new + TILE - 1u) / TILE;
  if (ix >= N_GROUPS * n_tiles) { return; }
  let group = ix / n_tiles;
  let tile = ix % n_tiles;
  if (state[group * STATE_WORDS + STATE_DONE] != 0u) { return; }
  if (lane == 0u) { wg_is_close = tile_stats[ix].w; }
  if (workgroupUniformLoad(&wg_is_close) == 0.0) { return; }

  let slot = tile * TILE + lane;
  var row = NO_KEY;
  if (slot < params.n_new) { row = sampled[group / SUBVECTORS * params.n_new + slot]; }
  var nearest = Nearest(0u, 0.0);
  if (row != NO_KEY) {
    nearest = nearest_by_differences(group, slot, row);
    let before = extractBits(owners[ix * (TILE / 4u) + lane / 4u], lane % 4u * 8u, 8u);
    if (nearest.code != before) {
      atomicSub(&counts[group * CENTROIDS + before], 1u);
      atomicAdd(&counts[group * CENTROIDS + nearest.code], 1u);
    }
  }
  storageBarrier();  // the old codes are read before the new ones are written
  finish_tile(lane, ix, tile, nearest.code, nearest.distance, 0.0);
}
`,
  "train/assign_sample.wgsl": `// assign_sample: the nearest centroid of each sampled key, and how far it is. Stage: training, first of an iteration.
//
// keys, sampled, extra: see \`sample_keys.wgsl\`
// model, state: see \`train.wgsl\`
// owners:     u32[groups, tiles, TILE / 4], four codes per word, the lowest byte first; 0 for a slot without a key
// counts:     u32[groups, C], zero before: keys per centroid; integers, so that the order does not matter
// tile_stats: f32[groups, tiles, 4]: the sum of squared distances, the largest one, its slot, 1 if the tile is close
//
// One workgroup owns one tile of 128 slots of a group, as in a matrix product: 64 centroids at a time, 16 columns at a time,
// each invocation 8 keys by 4 centroids in registers. Scores are x c - |c|^2 / 2, largest wins, ties to the lower centroid.
//
// |x|^2 - 2 (x c - |c|^2 / 2) cancels where keys lie close to centroids and all lie far from the origin: among blobs that lie
// far apart, say. Its rounding is about 2^-24 times 4 sqrt(width) of |x|^2. A tile whose squared distances add up to less than
// CLOSE_SHARE of its |x|^2 is close: \`assign_close\` looks at it again. The others' distortion is within a percent. A single key
// that coincides with its centroid, as after the start, makes no tile close.
// Needs WG = 256.

override WG: u32;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read> model: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<u32>;
@group(0) @binding(6) var<storage, read_write> owners: array<u32>;
@group(0) @binding(7) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read_write> tile_stats: array<vec4f>;

const BLOCK = 64u;            // centroids
const CHUNK = 16u;            // columns
const KEYS_STRIDE = 33u;      // vectors of 4 keys per column, and one so that no two columns meet in a bank
const CENTROIDS_STRIDE = 17u;
const CENTROIDS_AT = 528u;    // CHUNK * KEYS_STRIDE

// A chunk of columns; after the last one squares of columns, then scores, then distances. Floats as bits: the same memory
// also holds numbers of slots.
var<workgroup> wg_work: array<vec4u, 800>;   // 12800 bytes
var<workgroup> wg_codes: array<u32, 544>;    // 2176 bytes
var<workgroup> wg_rows: array<u32, TILE>;    // 512 bytes

// Scores of 8 keys by 4 centroids.
var<private> score_0: vec4f;
var<private> score_1: vec4f;
var<private> score_2: vec4f;
var<private> score_3: vec4f;
var<private> score_4: vec4f;
var<private> score_5: vec4f;
var<private> score_6: vec4f;
var<private> score_7: vec4f;

fn column(j: u32, at_keys: u32, at_centroids: u32) {
  let a = bitcast<vec4f>(wg_work[at_keys + j * KEYS_STRIDE]);
  let b = bitcast<vec4f>(wg_work[at_keys + j * KEYS_STRIDE + 1u]);
  let c = bitcast<vec4f>(wg_work[at_centroids + j * CENTROIDS_STRIDE]);
  score_0 = fma(vec4f(a.x), c, score_0);
  score_1 = fma(vec4f(a.y), c, score_1);
  score_2 = fma(vec4f(a.z), c, score_2);
  score_3 = fma(vec4f(a.w), c, score_3);
  score_4 = fma(vec4f(b.x), c, score_4);
  score_5 = fma(vec4f(b.y), c, score_5);
  score_6 = fma(vec4f(b.z), c, score_6);
  score_7 = fma(vec4f(b.w), c, score_7);
}

// Without a loop, as one would not be unrolled.
fn chunk(at_keys: u32, at_centroids: u32) {
  column(0u, at_keys, at_centroids);
  column(1u, at_keys, at_centroids);
  column(2u, at_keys, at_centroids);
  column(3u, at_keys, at_centroids);
  column(4u, at_keys, at_centroids);
  column(5u, at_keys, at_centroids);
  column(6u, at_keys, at_centroids);
  column(7u, at_keys, at_centroids);
  column(8u, at_keys, at_centroids);
  column(9u, at_keys, at_centroids);
  column(10u, at_keys, at_centroids);
  column(11u, at_keys, at_centroids);
  column(12u, at_keys, at_centroids);
  column(13u, at_keys, at_centroids);
  column(14u, at_keys, at_centroids);
  column(15u, at_keys, at_centroids);
}

// Column j of four neighbouring slots of the tile.
fn four_keys(group: u32, tile: u32, four: u32, j: u32, origin: f32) -> vec4f {
  let slot = tile * TILE + four * 4u;
  let a = wg_rows[four * 4u];
  let b = wg_rows[four * 4u + 1u];
  let c = wg_rows[four * 4u + 2u];
  let d = wg_rows[four * 4u + 3u];
  return vec4f(
    point_column(group, slot, a, point_at(group, a), j, origin),
    point_column(group, slot + 1u, b, point_at(group, b), j, origin),
    point_column(group, slot + 2u, c, point_at(group, c), j, origin),
    point_column(group, slot + 3u, d, point_at(group, d), j, origin),
  );
}

// Column j of four neighbouring centroids; 0 where there is none.
fn four_centroids(group: u32, first: u32, j: u32) -> vec4f {
  var result = vec4f();
  if (j < CENTROID_WIDTH) {
    let at = model_row(group, first) + j;
    if (first < CENTROIDS) { result.x = model[at]; }
    if (first + 1u < CENTROIDS) { result.y = model[at + MODEL_COLUMNS]; }
    if (first + 2u < CENTROIDS) { result.z = model[at + 2u * MODEL_COLUMNS]; }
    if (first + 3u < CENTROIDS) { result.w = model[at + 3u * MODEL_COLUMNS]; }
  }
  return result;
}

// Half of a squared norm; so large that it never wins where there is no centroid.
fn half_norm(group: u32, c: u32) -> f32 {
  if (c >= CENTROIDS) { return LARGEST; }
  return model[model_row(group, c) + CENTROID_WIDTH];
}

// The best of four scores, ties to the lower; then its number.
fn best_of_four(scores: vec4f) -> vec2f {
  var best = vec2f(scores.x, 0.0);
  if (scores.y > best.x) { best = vec2f(scores.y, 1.0); }
  if (scores.z > best.x) { best = vec2f(scores.z, 2.0); }
  if (scores.w > best.x) { best = vec2f(scores.w, 3.0); }
  return best;
}

// The best centroid of slot \`lane\` so far and its score.
var<private> best: f32;
var<private> code: u32;

// The best of the block's centroids 4 other .. 4 other + 3.
fn take(other: u32, lane: u32, block: u32) {
  let nearby = lane / 4u * CENTROIDS_STRIDE + other;
  let score = bitcast<vec4f>(wg_work[nearby])[lane % 4u];
  let number = block + other * 4u + extractBits(wg_codes[nearby], lane % 4u * 8u, 8u);
  let is_better = score > best;
  best = select(best, score, is_better);
  code = select(code, number, is_better);
}

fn square(other: u32, lane: u32) -> f32 {
  return bitcast<vec4f>(wg_work[lane / 4u * CENTROIDS_STRIDE + other])[lane % 4u];
}

@compute @workgroup_size(WG)
fn assign_sample(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let n_tiles = (params.n_new + TILE - 1u) / TILE;
  if (ix >= N_GROUPS * n_tiles) { return; }
  let group = ix / n_tiles;
  let tile = ix % n_tiles;
  if (state[group * STATE_WORDS + STATE_DONE] != 0u) { return; }

  var row = NO_KEY;
  if (lane < TILE) {
    let slot = tile * TILE + lane;
    if (slot < params.n_new) { row = sampled[group / SUBVECTORS * params.n_new + slot]; }
    wg_rows[lane] = row;
  }
  workgroupBarrier();

  // What this invocation brings: column lane % 16 of fours lane / 16 and lane / 16 + 16, and of centroids lane / 16 * 4 ...
  let load_column = lane % CHUNK;
  let load_four = lane / CHUNK;
  // What it computes.
  let keys_four = lane / 16u * 2u;
  let centroids_four = lane % 16u;

  var squares_a = vec4f();
  var squares_b = vec4f();
  best = -LARGEST;
  for (var block = 0u; block < CENTROIDS; block += BLOCK) {
    score_0 = vec4f();
    score_1 = vec4f();
    score_2 = vec4f();
    score_3 = vec4f();
    score_4 = vec4f();
    score_5 = vec4f();
    score_6 = vec4f();
    score_7 = vec4f();
    var origin = origin_column(group, load_column);
    var keys_a = four_keys(group, tile, load_four, load_column, origin);
    var keys_b = four_keys(group, tile, load_four + 16u, load_column, origin);
    var some = four_centroids(group, block + load_four * 4u, load_column);
    for (var first = 0u; first < CENTROID_WIDTH; first += CHUNK) {
      workgroupBarrier();
      wg_work[load_column * KEYS_STRIDE + load_four] = bitcast<vec4u>(keys_a);
      wg_work[load_column * KEYS_STRIDE + load_four + 16u] = bitcast<vec4u>(keys_b);
      wg_work[CENTROIDS_AT + load_column * CENTROIDS_STRIDE + load_four] = bitcast<vec4u>(some);
      if (block == 0u) {
        squares_a = fma(keys_a, keys_a, squares_a);
        squares_b = fma(keys_b, keys_b, squares_b);
      }
      workgroupBarrier();
      // The next chunk is on its way while this one is used.
      let j = first + CHUNK + load_column;
      origin = origin_column(group, j);
      keys_a = four_keys(group, tile, load_four, j, origin);
      keys_b = four_keys(group, tile, load_four + 16u, j, origin);
      some = four_centroids(group, block + load_four * 4u, j);
      chunk(keys_four, CENTROIDS_AT + centroids_four);
    }
    workgroupBarrier();

    let c = block + centroids_four * 4u;
    let half = vec4f(half_norm(group, c), half_norm(group, c + 1u), half_norm(group, c + 2u), half_norm(group, c + 3u));
    let best_0 = best_of_four(score_0 - half);
    let best_1 = best_of_four(score_1 - half);
    let best_2 = best_of_four(score_2 - half);
    let best_3 = best_of_four(score_3 - half);
    let best_4 = best_of_four(score_4 - half);
    let best_5 = best_of_four(score_5 - half);
    let best_6 = best_of_four(score_6 - half);
    let best_7 = best_of_four(score_7 - half);
    let at = keys_four * CENTROIDS_STRIDE + centroids_four;
    wg_work[at] = bitcast<vec4u>(vec4f(best_0.x, best_1.x, best_2.x, best_3.x));
    wg_work[at + CENTROIDS_STRIDE] = bitcast<vec4u>(vec4f(best_4.x, best_5.x, best_6.x, best_7.x));
    wg_codes[at] = pack4xU8(vec4u(vec4f(best_0.y, best_1.y, best_2.y, best_3.y)));
    wg_codes[at + CENTROIDS_STRIDE] = pack4xU8(vec4u(vec4f(best_4.y, best_5.y, best_6.y, best_7.y)));
    workgroupBarrier();
    if (lane < TILE) {
      take(0u, lane, block);
      take(1u, lane, block);
      take(2u, lane, block);
      take(3u, lane, block);
      take(4u, lane, block);
      take(5u, lane, block);
      take(6u, lane, block);
      take(7u, lane, block);
      take(8u, lane, block);
      take(9u, lane, block);
      take(10u, lane, block);
      take(11u, lane, block);
      take(12u, lane, block);
      take(13u, lane, block);
      take(14u, lane, block);
      take(15u, lane, block);
    }
  }

  // |x|^2: 16 invocations have its columns.
  workgroupBarrier();
  wg_work[load_four * CENTROIDS_STRIDE + load_column] = bitcast<vec4u>(squares_a);
  wg_work[(load_four + 16u) * CENTROIDS_STRIDE + load_column] = bitcast<vec4u>(squares_b);
  workgroupBarrier();
  var distance = 0.0;
  var size = 0.0;
  if (lane < TILE) {
    distance += square(0u, lane);
    distance += square(1u, lane);
    distance += square(2u, lane);
    distance += square(3u, lane);
    distance += square(4u, lane);
    distance += square(5u, lane);
    distance += square(6u, lane);
    distance += square(7u, lane);
    distance += square(8u, lane);
    distance += square(9u, lane);
    distance += square(10u, lane);
    distance += square(11u, lane);
    distance += square(12u, lane);
    distance += square(13u, lane);
    distance += square(14u, lane);
    distance += square(15u, lane);
    size = distance;
    distance = select(max(distance - 2.0 * best, 0.0), 0.0, row == NO_KEY);
    if (row != NO_KEY) { atomicAdd(&counts[group * CENTROIDS + code], 1u); }
  }
  finish_tile(lane, group * n_tiles + tile, tile, select(code, 0u, row == NO_KEY), distance, size);
}
`,
  "train/fill_empty.wgsl": `// fill_empty: a centroid without keys takes the place of the key that is farthest from its own, each next one that of the
// next tile's farthest. Then half norms, the result, and whether the group is done. Stage: training, last of an iteration.
//
// keys, sampled, extra: see \`sample_keys.wgsl\`
// model, state, counts, tile_stats: see \`assign_sample.wgsl\`; counts become 0 again
// centroids: f32[groups, C, CENTROID_WIDTH]
//
// One workgroup owns one group. It is done once an assignment's distortion has fallen by no more than the tolerance since the
// one before, and no centroid was without keys.

override WG: u32;
override TOLERANCE: f32;  // share of the distortion

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read_write> model: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<u32>;
@group(0) @binding(6) var<storage, read_write> counts: array<u32>;
@group(0) @binding(7) var<storage, read_write> tile_stats: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> centroids: array<f32>;

var<workgroup> wg_sums: array<f32, WG>;    // 4 bytes per invocation
var<workgroup> wg_farthest: atomic<u32>;   // 4 bytes
var<workgroup> wg_tile: atomic<u32>;       // 4 bytes
var<workgroup> wg_done: u32;               // 4 bytes
var<workgroup> wg_empty: array<u32, 256>;  // 1024 bytes

@compute @workgroup_size(WG)
fn fill_empty(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = job_ix(workgroup_id, num_workgroups);
  if (group >= N_GROUPS) { return; }
  let state_at = group * STATE_WORDS;
  if (lane == 0u) { wg_done = state[state_at + STATE_DONE]; }
  if (workgroupUniformLoad(&wg_done) != 0u) { return; }

  let n_tiles = (params.n_new + 127u) / 128u;
  var sum = 0.0;
  for (var tile = lane; tile < n_tiles; tile += WG) { sum += tile_stats[group * n_tiles + tile].x; }
  wg_sums[lane] = sum;
  for (var c = lane; c < CENTROIDS; c += WG) {
    wg_empty[c] = select(0u, 1u, counts[group * CENTROIDS + c] == 0u);
    counts[group * CENTROIDS + c] = 0u;
  }
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) { wg_sums[lane] += wg_sums[lane + half]; }
    workgroupBarrier();
  }
  let distortion = workgroupUniformLoad(&wg_sums[0]);

  var filled = 0u;
  for (var c = 0u; c < CENTROIDS; c++) {
    if (workgroupUniformLoad(&wg_empty[c]) == 0u) { continue; }
    if (lane == 0u) {
      atomicStore(&wg_farthest, 0u);
      atomicStore(&wg_tile, NO_KEY);
    }
    workgroupBarrier();
    // Each tile is looked at by one invocation only, which also marks it as used.
    var own = 0u;
    var own_tile = NO_KEY;
    for (var tile = lane; tile < n_tiles; tile += WG) {
      let distance = bitcast<u32>(tile_stats[group * n_tiles + tile].y);
      if (distance > own) {
        own = distance;
        own_tile = tile;
      }
    }
    atomicMax(&wg_farthest, own);
    workgroupBarrier();
    if (own > 0u && own == atomicLoad(&wg_farthest)) { atomicMin(&wg_tile, own_tile); }
    workgroupBarrier();
    let tile = atomicLoad(&wg_tile);
    if (lane == 0u) { wg_done = tile; }
    if (workgroupUniformLoad(&wg_done) == NO_KEY) { break; } // all keys lie on centroids
    let slot = u32(tile_stats[group * n_tiles + tile].z);
    let row = sampled[group / SUBVECTORS * params.n_new + slot];
    for (var j = lane; j < CENTROID_WIDTH; j += WG) {
      model[model_row(group, c) + j] = point_column(group, slot, row, point_at(group, row), j, origin_column(group, j));
    }
    filled++;
    workgroupBarrier();
    if (lane == tile % WG) { tile_stats[group * n_tiles + tile].y = 0.0; }
  }
  storageBarrier();

  write_half_norms(lane, group);
  for (var ix = lane; ix < CENTROIDS * CENTROID_WIDTH; ix += WG) {
    let j = ix % CENTROID_WIDTH;
    centroids[group * CENTROIDS * CENTROID_WIDTH + ix] =
      model[model_row(group, ix / CENTROID_WIDTH) + j] + model[model_row(group, CENTROIDS) + j];
  }
  if (lane == 0u) {
    let before = bitcast<f32>(state[state_at + STATE_DISTORTION]);
    let made = state[state_at + STATE_ITERATIONS];
    state[state_at + STATE_DISTORTION] = bitcast<u32>(distortion);
    state[state_at + STATE_ITERATIONS] = made + 1u;
    let is_still = made > 0u && before - distortion <= TOLERANCE * before;
    state[state_at + STATE_DONE] = select(0u, 1u, is_still && filled == 0u);
  }
}
`,
  "train/half_norms.wgsl": `// Shared part of the kernels that write centroids: half of each one's squared norm, by one order of sums. Needs model and
// WG. The centroids must be visible to the whole workgroup.

fn write_half_norms(lane: u32, group: u32) {
  for (var c = lane; c < CENTROIDS; c += WG) {
    let at = model_row(group, c);
    var sum = 0.0;
    for (var j = 0u; j < CENTROID_WIDTH; j++) { sum = fma(model[at + j], model[at + j], sum); }
    model[at + CENTROID_WIDTH] = 0.5 * sum;
  }
}
`,
  "train/hash.wgsl": `// Random numbers without a state: PCG's output function as a hash (O'Neill 2014; Jarzynski, Olano 2020).

fn hash(x: u32) -> u32 {
  let s = x * 747796405u + 2891336453u;
  let word = ((s >> ((s >> 28u) + 4u)) ^ s) * 277803737u;
  return (word >> 22u) ^ word;
}

// Uniform in (0, 1): 23 bits, in the middle of their interval, which f32 holds exactly.
fn unit(bits: u32) -> f32 {
  return (f32(bits >> 9u) + 0.5) / 8388608.0;
}
`,
  "train/key_f16.wgsl": `// In place of \`key_f32.wgsl\` where keys are f16[B, Hkv, key_stride, D], two per word. Needs no optional feature.

@group(0) @binding(1) var<storage, read> keys: array<u32>;

fn key_value(at: u32) -> f32 {
  let pair = unpack2x16float(keys[at / 2u]);
  return select(pair.x, pair.y, (at & 1u) == 1u);
}
`,
  "train/key_f32.wgsl": `// How keys are read: f32[B, Hkv, key_stride, D].

@group(0) @binding(1) var<storage, read> keys: array<f32>;

fn key_value(at: u32) -> f32 {
  return keys[at];
}
`,
  "train/largest_norms.wgsl": `// largest_norms: phi[group] = max over keys of |x|^2, over finite subvectors. Stage: training, metric "ip" only.
//
// keys: f32 or f16 [B, Hkv, key_stride, D]
// phi:  f32[B, Hkv, M], zero before; written as bits, which order as the numbers do, so that the order does not matter
//
// One invocation owns one subvector of one key.

override WG: u32;

@group(0) @binding(2) var<storage, read_write> phi: array<atomic<u32>>;

@compute @workgroup_size(WG)
fn largest_norms(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < params.n_coded * N_GROUPS) {
    let m = ix % SUBVECTORS;
    let kv = ix / SUBVECTORS / params.n_coded;
    let token = kv * params.key_stride + params.init_offset + ix / SUBVECTORS % params.n_coded;
    let at = (token * SUBVECTORS + m) * SUB_WIDTH;
    var norm = 0.0;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      let x = key_value(at + j);
      norm = fma(x, x, norm);
    }
    // The bits are tested: a NaN or infinite key has no norm; a finite one whose square overflows has +inf.
    var is_finite = true;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      is_finite = is_finite && (bitcast<u32>(key_value(at + j)) & 0x7f800000u) != 0x7f800000u;
    }
    if (is_finite) { atomicMax(&phi[kv * SUBVECTORS + m], bitcast<u32>(norm)); }
  }
}
`,
  "train/move_centroids.wgsl": `// move_centroids: each centroid becomes the mean of its keys; one without keys stays. Stage: training, fourth of an iteration.
//
// work:  f32[groups, parts, C, CENTROID_WIDTH]: see \`sum_clusters.wgsl\`
// counts: u32[groups, C]
// model, state: see \`train.wgsl\`
//
// One invocation owns one column of one centroid; parts are added up in order.

override WG: u32;
override PART: u32;

@group(0) @binding(1) var<storage, read> work: array<f32>;
@group(0) @binding(2) var<storage, read> counts: array<u32>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> model: array<f32>;

@compute @workgroup_size(WG)
fn move_centroids(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let group_values = CENTROIDS * CENTROID_WIDTH;
  if (ix < N_GROUPS * group_values) {
    let group = ix / group_values;
    let value = ix % group_values;
    let c = value / CENTROID_WIDTH;
    let count = counts[group * CENTROIDS + c];
    if (count > 0u && state[group * STATE_WORDS + STATE_DONE] == 0u) {
      let n_parts = (params.n_new + PART - 1u) / PART;
      var sum = 0.0;
      for (var part = 0u; part < n_parts; part++) {
        sum += work[(group * n_parts + part) * group_values + value];
      }
      model[model_row(group, c) + value % CENTROID_WIDTH] = sum / f32(count);
    }
  }
}
`,
  "train/points.wgsl": `// Shared part of the kernels that look at sampled points: column j of a slot's subvector, with metric "ip" followed by the
// augmented column. Needs keys, extra and model.

// Where the subvector of key \`row\` of the group begins; a slot without a key is read at key 0 and not used.
fn point_at(group: u32, row: u32) -> u32 {
  let kv = group / SUBVECTORS;
  let token = kv * params.key_stride + params.init_offset + select(row, 0u, row == NO_KEY);
  return token * (SUBVECTORS * SUB_WIDTH) + group % SUBVECTORS * SUB_WIDTH;
}

// Column j relative to the origin; 0 for columns that do not exist and slots without a key. Loads stand in no branch, so that
// those of many slots are under way together.
fn point_column(group: u32, slot: u32, row: u32, at: u32, j: u32, origin: f32) -> f32 {
  var x = key_value(at + min(j, SUB_WIDTH - 1u));
  if (CENTROID_WIDTH > SUB_WIDTH) { x = select(x, extra[group * params.n_new + min(slot, params.n_new - 1u)], j == SUB_WIDTH); }
  return select(0.0, x - origin, row != NO_KEY && j < CENTROID_WIDTH);
}

fn origin_column(group: u32, j: u32) -> f32 {
  return model[model_row(group, CENTROIDS) + min(j, CENTROID_WIDTH - 1u)];
}
`,
  "train/sample_keys.wgsl": `// sample_keys: which keys the training looks at, by stratified sampling: slot s takes a random finite key of stratum s, or
// NO_KEY if it has none. Stage: training.
//
// keys:    f32 or f16 [B, Hkv, key_stride, D]
// state:   u32[groups, STATE_WORDS]
// phi:     f32[B, Hkv, M], metric "ip" only
// sampled: u32[B, Hkv, n_new]
// extra:   f32[B, Hkv, M, n_new]: the augmented column, sqrt(max(phi - |x|^2, 0)), metric "ip" only
// finite:  u32[B, Hkv], zero before: slots that have a key
//
// One invocation owns one slot. All subvectors of a kv share its sample, so a key counts as finite if all of it is.

override WG: u32;

@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> sampled: array<u32>;
@group(0) @binding(5) var<storage, read_write> extra: array<f32>;
@group(0) @binding(6) var<storage, read_write> finite: array<atomic<u32>>;

fn is_finite_key(at: u32) -> bool {
  var result = true;
  for (var j = 0u; j < SUBVECTORS * SUB_WIDTH; j++) {
    result = result && (bitcast<u32>(key_value(at + j)) & 0x7f800000u) != 0x7f800000u;
  }
  return result;
}

@compute @workgroup_size(WG)
fn sample_keys(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < BATCH * KV_HEADS * params.n_new) {
    let kv = ix / params.n_new;
    let slot = ix % params.n_new;
    let begin = begin_of(slot, params.n_coded, params.n_new);
    let size = begin_of(slot + 1u, params.n_coded, params.n_new) - begin;
    let first = hash(hash(state[kv * SUBVECTORS * STATE_WORDS + STATE_SEED]) + slot) % size;
    let width = SUBVECTORS * SUB_WIDTH;
    let kv_at = (kv * params.key_stride + params.init_offset) * width;
    var row = NO_KEY;
    for (var tried = 0u; tried < size && row == NO_KEY; tried++) {
      let candidate = begin + (first + tried) % size;
      if (is_finite_key(kv_at + candidate * width)) { row = candidate; }
    }
    sampled[ix] = row;
    if (row != NO_KEY) { atomicAdd(&finite[kv], 1u); }
    if (CENTROID_WIDTH > SUB_WIDTH && row != NO_KEY) {
      for (var m = 0u; m < SUBVECTORS; m++) {
        let at = kv_at + row * width + m * SUB_WIDTH;
        var norm = 0.0;
        for (var j = 0u; j < SUB_WIDTH; j++) {
          let x = key_value(at + j);
          norm = fma(x, x, norm);
        }
        let group = kv * SUBVECTORS + m;
        extra[group * params.n_new + slot] = sqrt(max(phi[group] - norm, 0.0));
      }
    }
  }
}
`,
  "train/start.wgsl": `// Shared part of the kernels of the start: how many points it is drawn from.

override MOST_START: u32;  // 16 per centroid, 1024 at least

fn n_start_points() -> u32 {
  return min(params.n_new, MOST_START);
}
`,
  "train/start_centroids.wgsl": `// start_centroids: the start of k-means, k-means++ (Arthur, Vassilvitskii 2007) on the start points: each next centroid is a
// point drawn with a probability that is proportional to its squared distance from those before it. Stage: training.
//
// work:  f32[groups, CENTROID_WIDTH + 1, n_start]: see \`start_points.wgsl\`; the last row becomes the squared distances
// state: u32[groups, STATE_WORDS]
// model: f32[groups, C + 1, CENTROID_WIDTH + 1], see \`train.wgsl\`: written whole
//
// One workgroup owns one group; an invocation owns every WG-th point. The draw is a race: each point has an exponentially
// distributed time -log(u) / weight, and the earliest wins, ties to the lower point; so nothing is summed up, and the result
// does not depend on WG.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> work: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> model: array<f32>;

const ORIGIN_POINTS = 64u;
const LARGEST_BITS = 0x7f7fffffu;

var<workgroup> wg_centre: array<f32, MODEL_COLUMNS>;  // 4 bytes per column, and 4
var<workgroup> wg_earliest: atomic<u32>;    // 4 bytes
var<workgroup> wg_pick: atomic<u32>;        // 4 bytes

// Four columns of a point that begins at \`at\`, columns n apart; without a loop, as one would not be unrolled.
fn add_four(sum: f32, at: u32, n: u32, j: u32) -> f32 {
  let a = work[at + j * n] - wg_centre[j];
  let b = work[at + (j + 1u) * n] - wg_centre[j + 1u];
  let c = work[at + (j + 2u) * n] - wg_centre[j + 2u];
  let d = work[at + (j + 3u) * n] - wg_centre[j + 3u];
  return sum + (fma(a, a, b * b) + fma(c, c, d * d));
}

fn squared_distance(at: u32, n: u32) -> f32 {
  var sum = 0.0;
  for (var j = 0u; j + 16u <= CENTROID_WIDTH; j += 16u) {
    sum = add_four(sum, at, n, j);
    sum = add_four(sum, at, n, j + 4u);
    sum = add_four(sum, at, n, j + 8u);
    sum = add_four(sum, at, n, j + 12u);
  }
  for (var j = CENTROID_WIDTH / 16u * 16u; j < CENTROID_WIDTH; j++) {
    let difference = work[at + j * n] - wg_centre[j];
    sum = fma(difference, difference, sum);
  }
  return sum;
}

@compute @workgroup_size(WG)
fn start_centroids(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = job_ix(workgroup_id, num_workgroups);
  if (group < N_GROUPS) {
    let n = n_start_points();
    let points = group * MODEL_COLUMNS * n;
    let nearest = points + CENTROID_WIDTH * n;
    let seed = hash(state[group * STATE_WORDS + STATE_SEED] ^ 0x9e3779b9u);

    // The origin: the mean of some points.
    let some = min(n, ORIGIN_POINTS);
    for (var j = lane; j < MODEL_COLUMNS; j += WG) {
      var sum = 0.0;
      var count = 0.0;
      for (var s = 0u; s < some; s++) {
        let t = begin_of(s, n, some);
        if (work[nearest + t] > 0.0) {
          sum += work[points + min(j, CENTROID_WIDTH - 1u) * n + t];
          count += 1.0;
        }
      }
      model[model_row(group, CENTROIDS) + j] = select(sum / max(count, 1.0), 0.0, j == CENTROID_WIDTH);
    }

    for (var c = 0u; c < CENTROIDS; c++) {
      if (lane == 0u) {
        atomicStore(&wg_earliest, 0xffffffffu);
        atomicStore(&wg_pick, 0xffffffffu);
      }
      workgroupBarrier();
      // The earliest of the own points. One that coincides with a centroid may win only if all do.
      var own = 0xffffffffu;
      var own_point = 0u;
      for (var t = lane; t < n; t += WG) {
        let distance = work[nearest + t];
        if (distance >= 0.0) {
          let wait = -log(unit(hash(seed + c * 0x85ebca6bu + t)));
          var time = LARGEST_BITS;
          if (c == 0u) { time = bitcast<u32>(wait); }
          else if (distance > 0.0) { time = min(bitcast<u32>(wait / distance), LARGEST_BITS - 1u); }
          if (time < own) {
            own = time;
            own_point = t;
          }
        }
      }
      atomicMin(&wg_earliest, own);
      workgroupBarrier();
      if (own == atomicLoad(&wg_earliest)) { atomicMin(&wg_pick, own_point); }
      workgroupBarrier();
      let pick = min(atomicLoad(&wg_pick), n - 1u);
      let at = model_row(group, c);
      for (var j = lane; j < CENTROID_WIDTH; j += WG) {
        let x = work[points + j * n + pick];
        wg_centre[j] = x;
        model[at + j] = x - model[model_row(group, CENTROIDS) + j];
      }
      workgroupBarrier();
      for (var t = lane; t < n; t += WG) {
        let before = work[nearest + t];
        if (before > 0.0) {
          work[nearest + t] = min(before, squared_distance(points + t, n));
        }
      }
    }
    storageBarrier();
    write_half_norms(lane, group);
  }
}
`,
  "train/start_points.wgsl": `// start_points: the points that the start is drawn from, every (n_new / n_start)-th of the sample, with columns as rows, so
// that the rounds of \`start_centroids\` read them side by side. Stage: training.
//
// keys, sampled, extra: see \`sample_keys.wgsl\`
// work: f32[groups, CENTROID_WIDTH + 1, n_start]: the points' columns; then LARGEST, or -1 for a slot without a key
//
// One invocation owns one column of one point.

override WG: u32;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read_write> work: array<f32>;

@compute @workgroup_size(WG)
fn start_points(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let n_start = n_start_points();
  if (ix < N_GROUPS * n_start * MODEL_COLUMNS) {
    let j = ix % MODEL_COLUMNS;
    let t = ix / MODEL_COLUMNS % n_start;
    let group = ix / MODEL_COLUMNS / n_start;
    let kv = group / SUBVECTORS;
    let slot = begin_of(t, params.n_new, n_start);
    let row = sampled[kv * params.n_new + slot];
    var value = 0.0;
    if (j == CENTROID_WIDTH) {
      value = select(LARGEST, -1.0, row == NO_KEY);
    } else if (row != NO_KEY) {
      if (j == SUB_WIDTH) {
        value = extra[group * params.n_new + slot];
      } else {
        let token = kv * params.key_stride + params.init_offset + row;
        value = key_value((token * SUBVECTORS + group % SUBVECTORS) * SUB_WIDTH + j);
      }
    }
    work[(group * MODEL_COLUMNS + j) * n_start + t] = value;
  }
}
`,
  "train/sum_clusters.wgsl": `// sum_clusters: for each centroid the sum of its keys, by parts of the sample. Stage: training, third of an iteration.
//
// keys, sampled, extra: see \`sample_keys.wgsl\`
// model, state, owners: see \`assign_sample.wgsl\`
// work: f32[groups, parts, C, CENTROID_WIDTH]: sums relative to the origin, slots upwards
//
// One workgroup owns WG columns of one part of a group, an invocation one column, of which it keeps the sums of all
// centroids in workgroup memory: nobody else touches them, so there are neither atomics nor barriers, and one order of sums.

override WG: u32;
override PART: u32;              // slots per part, a multiple of 32
override SUMS: u32 = WG * CENTROIDS;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read> model: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<u32>;
@group(0) @binding(6) var<storage, read> owners: array<u32>;
@group(0) @binding(7) var<storage, read_write> work: array<f32>;

var<workgroup> wg_sums: array<f32, SUMS>;  // 4 bytes per centroid and column, 16 KiB at most

fn value(group: u32, slot: u32, j: u32, origin: f32) -> f32 {
  let is_slot = slot < params.n_new;
  let row = select(NO_KEY, sampled[group / SUBVECTORS * params.n_new + select(0u, slot, is_slot)], is_slot);
  return point_column(group, slot, row, point_at(group, row), j, origin);
}

fn four_values(group: u32, slot: u32, j: u32, origin: f32) -> vec4f {
  return vec4f(
    value(group, slot, j, origin),
    value(group, slot + 1u, j, origin),
    value(group, slot + 2u, j, origin),
    value(group, slot + 3u, j, origin),
  );
}

fn add_four(codes: u32, values: vec4f, lane: u32) {
  wg_sums[extractBits(codes, 0u, 8u) * WG + lane] += values.x;
  wg_sums[extractBits(codes, 8u, 8u) * WG + lane] += values.y;
  wg_sums[extractBits(codes, 16u, 8u) * WG + lane] += values.z;
  wg_sums[extractBits(codes, 24u, 8u) * WG + lane] += values.w;
}

@compute @workgroup_size(WG)
fn sum_clusters(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let n_columns = (CENTROID_WIDTH + WG - 1u) / WG;
  let n_parts = (params.n_new + PART - 1u) / PART;
  if (ix >= N_GROUPS * n_parts * n_columns) { return; }
  let group = ix / n_columns / n_parts;
  let part = ix / n_columns % n_parts;
  let j = ix % n_columns * WG + lane;
  if (state[group * STATE_WORDS + STATE_DONE] != 0u) { return; }

  for (var c = 0u; c < CENTROIDS; c++) { wg_sums[c * WG + lane] = 0.0; }
  let origin = origin_column(group, j);
  let words = group * ((params.n_new + 127u) / 128u * 32u);
  let end = min((part + 1u) * PART, params.n_new);
  // So many slots at a time that their loads are under way together, and those of the next ones meanwhile.
  var a = four_values(group, part * PART + 0u, j, origin);
  var b = four_values(group, part * PART + 4u, j, origin);
  var c = four_values(group, part * PART + 8u, j, origin);
  var d = four_values(group, part * PART + 12u, j, origin);
  var e = four_values(group, part * PART + 16u, j, origin);
  var f = four_values(group, part * PART + 20u, j, origin);
  var g = four_values(group, part * PART + 24u, j, origin);
  var h = four_values(group, part * PART + 28u, j, origin);
  for (var slot = part * PART; slot < end; slot += 32u) {
    let next_a = four_values(group, slot + 32u, j, origin);
    let next_b = four_values(group, slot + 36u, j, origin);
    let next_c = four_values(group, slot + 40u, j, origin);
    let next_d = four_values(group, slot + 44u, j, origin);
    let next_e = four_values(group, slot + 48u, j, origin);
    let next_f = four_values(group, slot + 52u, j, origin);
    let next_g = four_values(group, slot + 56u, j, origin);
    let next_h = four_values(group, slot + 60u, j, origin);
    let word = words + slot / 4u;
    add_four(owners[word + 0u], a, lane);
    add_four(owners[word + 1u], b, lane);
    add_four(owners[word + 2u], c, lane);
    add_four(owners[word + 3u], d, lane);
    add_four(owners[word + 4u], e, lane);
    add_four(owners[word + 5u], f, lane);
    add_four(owners[word + 6u], g, lane);
    add_four(owners[word + 7u], h, lane);
    a = next_a;
    b = next_b;
    c = next_c;
    d = next_d;
    e = next_e;
    f = next_f;
    g = next_g;
    h = next_h;
  }
  if (j < CENTROID_WIDTH) {
    let at = (group * n_parts + part) * CENTROIDS * CENTROID_WIDTH + j;
    for (var c = 0u; c < CENTROIDS; c++) { work[at + c * CENTROID_WIDTH] = wg_sums[c * WG + lane]; }
  }
}
`,
  "train/tile_stats.wgsl": `// Shared part of the kernels that assign a tile's keys: writes their codes and the tile's statistics. Needs wg_work and
// wg_codes of at least TILE entries, WG of at least TILE, owners and tile_stats.

const TILE = 128u;                    // slots
const CLOSE_SHARE = 0.0009765625;     // 2^-10

// \`at\` is the tile among those of all groups. In uniform control flow only; begins with a barrier.
// \`size\` is |x|^2 of the lane's key.
fn finish_tile(lane: u32, at: u32, tile: u32, code: u32, distance: f32, size: f32) {
  workgroupBarrier();
  if (lane < TILE) {
    wg_codes[lane] = code;
    wg_work[lane] = vec4u(bitcast<u32>(distance), bitcast<u32>(distance), lane, bitcast<u32>(size));
  }
  workgroupBarrier();
  if (lane < TILE / 4u) {
    let codes = vec4u(wg_codes[4u * lane], wg_codes[4u * lane + 1u], wg_codes[4u * lane + 2u], wg_codes[4u * lane + 3u]);
    owners[at * (TILE / 4u) + lane] = pack4xU8(codes);
  }
  for (var half = TILE / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let a = wg_work[lane];
      let b = wg_work[lane + half];
      let sum = bitcast<f32>(a.x) + bitcast<f32>(b.x);
      // Distances are not negative, so their bits order as they do; ties go to the lower slot.
      let is_b = b.y > a.y || (b.y == a.y && b.z < a.z);
      wg_work[lane] = vec4u(bitcast<u32>(sum), select(a.y, b.y, is_b), select(a.z, b.z, is_b), bitcast<u32>(bitcast<f32>(a.w) + bitcast<f32>(b.w)));
    }
    workgroupBarrier();
  }
  if (lane == 0u) {
    let total = wg_work[0];
    let distances = bitcast<f32>(total.x);
    let is_close = distances < CLOSE_SHARE * bitcast<f32>(total.w);
    tile_stats[at] = vec4f(distances, bitcast<f32>(total.y), f32(tile * TILE + total.z), select(0.0, 1.0, is_close));
  }
}
`,
  "train/train.wgsl": `// Shared part of the kernels that train codebooks: k-means of every group at once, where a group is one (batch, KV head,
// subvector). Training looks at a sample: sample slot s of a kv is one key, or NO_KEY where there was no finite one.
// What Params mean here: n_coded keys per kv are trained on, n_new of them sampled (slots); token init_offset + i is key i.
//
// model: f32[groups, C + 1, CENTROID_WIDTH + 1]: row c is centroid c, then half of its squared norm; row C is the origin,
// then 0. Centroids are kept relative to the origin, a point amid the keys: so |x|^2 - 2 (x c - |c|^2 / 2), which takes one
// fma per column, loses no digits to a common offset of the keys.

const NO_KEY = 0xffffffffu;
const LARGEST = 3.4028234e38;

// Words of a group's state: 1 once it is done, the distortion of the last assignment, iterations that were made, seed.
const STATE_WORDS = 4u;
const STATE_DONE = 0u;
const STATE_DISTORTION = 1u;
const STATE_ITERATIONS = 2u;
const STATE_SEED = 3u;

override N_GROUPS: u32 = BATCH * KV_HEADS * SUBVECTORS;
override MODEL_COLUMNS: u32 = CENTROID_WIDTH + 1u;

fn model_row(group: u32, c: u32) -> u32 {
  return (group * (CENTROIDS + 1u) + c) * MODEL_COLUMNS;
}

// The first of the members of part \`ix\` when \`n\` members are split into \`parts\` parts whose sizes differ by at most one.
fn begin_of(ix: u32, n: u32, parts: u32) -> u32 {
  return ix * (n / parts) + min(ix, n % parts);
}
`,
  "train/widen_keys.wgsl": `// widen_keys: keys n_new from token init_offset on, as f32, to be coded as if they had come so. Stage: coding of f16 keys.
//
// keys:     f16[B, Hkv, key_stride, D]
// new_keys: f32[B, Hkv, n_new, D]
//
// One invocation owns one value.

override WG: u32;

@group(0) @binding(2) var<storage, read_write> new_keys: array<f32>;

@compute @workgroup_size(WG)
fn widen_keys(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  let row = params.n_new * SUBVECTORS * SUB_WIDTH;
  if (ix < BATCH * KV_HEADS * row) {
    let token = ix / row * params.key_stride + params.init_offset;
    new_keys[ix] = key_value(token * (SUBVECTORS * SUB_WIDTH) + ix % row);
  }
}
`,
};
