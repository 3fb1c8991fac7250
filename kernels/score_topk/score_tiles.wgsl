// score_tiles: as candidates of e04, for large tiles: 16 invocations share a table entry, codes come 16 at a
// time, ranks stay in registers, and the lists of a kv share a tile's codes. Stages: score and top-K (e07).
//
// query:           f32[B, H, rows, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where the tile has fewer candidates
// candidate_ix:    u32[B, H, rows, tiles, kept], position among the coded tokens, ascending
//
// A tile is WG * 16 tokens; invocation `lane` owns 16 neighbouring ones and keeps their ranks in registers. One
// workgroup owns one tile of LISTS lists of one kv (query heads of a group, rows), so that memory is read once
// for all of them.
//
// Which tokens are kept: the n_heavy-th highest of the invocations' best ranks bounds the tile's n_heavy-th
// highest rank from below (n_heavy invocations hold one at least as high), and hardly more than n_heavy
// tokens reach it. They are all kept where they fit; else (ties, or fewer invocations with candidates than
// n_heavy) narrowing over all ranks finds exactly the n_heavy best. Either way a list's best are among them.
// Preconditions: coded_stride is a multiple of 16.

override WG: u32;
override LISTS: u32;  // lists per workgroup

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<vec4u>;
@group(0) @binding(4) var<storage, read_write> candidate_ranks: array<u32>;
@group(0) @binding(5) var<storage, read_write> candidate_ix: array<u32>;

var<workgroup> wg_kept: u32;

// What one invocation holds of a tile.
struct Sixteen {
  a: vec4u,
  b: vec4u,
  c: vec4u,
  d: vec4u,
}

struct Scores {
  a: vec4f,
  b: vec4f,
  c: vec4f,
  d: vec4f,
}

fn codes_of(first_group: u32, m: u32, at: u32) -> vec4u {
  return codes[(first_group + m) * (params.coded_stride / 16u) + at];
}

fn add_lookups(scores: Scores, lane: u32, m: u32, words: vec4u) -> Scores {
  return Scores(
    scores.a + look_up(lane, m, words.x),
    scores.b + look_up(lane, m, words.y),
    scores.c + look_up(lane, m, words.z),
    scores.d + look_up(lane, m, words.w),
  );
}

fn ranks_of(score: vec4f) -> vec4u {
  return vec4u(rank_of(score.x), rank_of(score.y), rank_of(score.z), rank_of(score.w));
}

fn only_candidates(ranks: vec4u, first: u32, row: Row) -> vec4u {
  let i = vec4u(0u, 1u, 2u, 3u) + first;
  return select(vec4u(NO_CANDIDATE), ranks, (i >= vec4u(row.cand_begin)) & (i < vec4u(row.cand_end)));
}

fn highest(four: vec4u) -> u32 {
  return max(max(four.x, four.y), max(four.z, four.w));
}

// Scores in ascending order of m. The first two subvectors' codes come as arguments: loaded before the table was
// there to use them.
fn score_sixteen(lane: u32, first_group: u32, at: u32, words_0: vec4u, words_1: vec4u) -> Scores {
  var scores = Scores(
    look_up(lane, 0u, words_0.x),
    look_up(lane, 0u, words_0.y),
    look_up(lane, 0u, words_0.z),
    look_up(lane, 0u, words_0.w),
  );
  if (1u < SUBVECTORS) { scores = add_lookups(scores, lane, 1u, words_1); }
  if (2u < SUBVECTORS) {
    for (var m = 2u; m < SUBVECTORS; m++) {
      scores = add_lookups(scores, lane, m, codes_of(first_group, m, at));
    }
  }
  return scores;
}

fn count_sixteen(cut: Cut, shift: u32, ranks: Sixteen) {
  count_four(cut, shift, ranks.a);
  count_four(cut, shift, ranks.b);
  count_four(cut, shift, ranks.c);
  count_four(cut, shift, ranks.d);
}

fn count_four(cut: Cut, shift: u32, ranks: vec4u) {
  count_rank(cut, shift, ranks.x);
  count_rank(cut, shift, ranks.y);
  count_rank(cut, shift, ranks.z);
  count_rank(cut, shift, ranks.w);
}

// A bit for each of four ranks that is `least` or more.
fn bits_from(least: u32, ranks: vec4u) -> u32 {
  return dot(vec4u(ranks >= vec4u(least)), vec4u(1u, 2u, 4u, 8u));
}

// A bit for each of an invocation's ranks that is `least` or more.
fn mask_from(least: u32, ranks: Sixteen) -> u32 {
  return bits_from(least, ranks.a) | (bits_from(least, ranks.b) << 4u) | (bits_from(least, ranks.c) << 8u) |
    (bits_from(least, ranks.d) << 12u);
}

fn one_of(ranks: Sixteen, k: u32) -> u32 {
  let low = select(ranks.a, ranks.b, (k & 4u) != 0u);
  let high = select(ranks.c, ranks.d, (k & 4u) != 0u);
  let four = select(low, high, (k & 8u) != 0u);
  let two = select(four.xy, four.zw, (k & 2u) != 0u);
  return select(two.x, two.y, (k & 1u) != 0u);
}

// The lowest `count` bits of a mask.
fn lowest_bits(mask: u32, count: u32) -> u32 {
  var rest = mask;
  for (var k = 0u; k < count && rest != 0u; k++) { rest &= rest - 1u; }
  return mask & ~rest;
}

// In uniform control flow only.
fn keep_tile(lane: u32, list_ix: u32, first_group: u32, tile: u32, words_0: vec4u, words_1: vec4u) {
  let row = row_of_list(list_ix);
  let ix = (tile * WG + lane) * 16u;
  var ranks = Sixteen();
  if (ix < row.cand_end && ix + 16u > row.cand_begin) {
    let scores = score_sixteen(lane, first_group, ix / 16u, words_0, words_1);
    ranks = Sixteen(ranks_of(scores.a), ranks_of(scores.b), ranks_of(scores.c), ranks_of(scores.d));
    if (ix < row.cand_begin || ix + 16u > row.cand_end) {
      ranks = Sixteen(
        only_candidates(ranks.a, ix, row),
        only_candidates(ranks.b, ix + 4u, row),
        only_candidates(ranks.c, ix + 8u, row),
        only_candidates(ranks.d, ix + 12u, row),
      );
    }
  }

  // A bound from the invocations' best.
  let best = max(max(highest(ranks.a), highest(ranks.b)), max(highest(ranks.c), highest(ranks.d)));
  offer(lane, best, select(~best, 0u, best == NO_CANDIDATE));
  let range = offered_range(row.n_heavy);
  var shift = bin_shift(range);
  count_rank(range, shift, best);
  var found = choose_bin(lane, row.n_heavy, shift);
  let bound = select(1u, max(range.low + (found.x << shift), 1u), found.w == 1u);

  var taken = mask_from(bound, ranks);
  let upto = scan_sum(lane, countOneBits(taken));
  var slot = upto - countOneBits(taken);
  if (lane == WG - 1u) { wg_kept = upto; }
  var n_kept = workgroupUniformLoad(&wg_kept);
  if (n_kept > kept()) {
    var cut = Cut(bound, range.high, row.n_heavy);
    var is_done = false;
    for (var round = 0u; round < MOST_PASSES && !is_done; round++) {
      shift = bin_shift(cut);
      count_sixteen(cut, shift, ranks);
      found = choose_bin(lane, cut.need, shift);
      cut = narrowed(cut, shift, found);
      is_done = found.z == 1u;
    }
    let above = select(mask_from(cut.high + 1u, ranks), 0u, cut.high == 0xffffffffu);
    let within = mask_from(cut.low, ranks) & ~above;
    let mine = vec2u(countOneBits(above), countOneBits(within));
    let before = scan_inclusive(lane, mine) - mine;
    taken = above | lowest_bits(within, cut.need - min(cut.need, before.y));
    slot = before.x + min(before.y, cut.need);
    n_kept = row.n_heavy;
  }

  let out = list_ix * tiles_stride() + tile * kept();
  for (; taken != 0u; taken &= taken - 1u) {
    let k = firstTrailingBit(taken);
    candidate_ranks[out + slot] = one_of(ranks, k);
    candidate_ix[out + slot] = ix + k;
    slot += 1u;
  }
  if (n_kept + lane < kept()) { candidate_ranks[out + n_kept + lane] = NO_CANDIDATE; }
  if (n_kept + WG < kept()) {
    for (var slot = n_kept + WG + lane; slot < kept(); slot += WG) { candidate_ranks[out + slot] = NO_CANDIDATE; }
  }
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
    let at = tile * WG + lane;
    var words_0 = vec4u();
    var words_1 = vec4u();
    if (at * 16u < params.coded_stride) {
      words_0 = codes_of(first_group, 0u, at);
      if (1u < SUBVECTORS) { words_1 = codes_of(first_group, 1u, at); }
    }
    let first = ix / n_tiles() % n_parts * LISTS;
    score_list(lane, kv * lists_of_kv + first, first_group, tile, words_0, words_1);
    if (LISTS > 1u) {
      for (var l = first + 1u; l < min(first + LISTS, lists_of_kv); l++) {
        workgroupBarrier();
        score_list(lane, kv * lists_of_kv + l, first_group, tile, words_0, words_1);
      }
    }
  }
}
