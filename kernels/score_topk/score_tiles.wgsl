// score_tiles: as candidates of e04, for large tiles: 16 invocations share a table entry, codes come 16 at a
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
// `lane` scores group `lane` of every chunk and remembers nothing but the group's best rank.
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

// A bit for each of a group's tokens whose rank is `least` or more.
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

// The lowest `count` bits of a mask.
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

// The sum of all invocations' counts, of which `upto` is the last's. Begins and ends with a barrier.
fn total(lane: u32, upto: u32) -> u32 {
  if (lane == WG - 1u) { wg_total = upto; }
  return workgroupUniformLoad(&wg_total);
}

// Chunks of a tile: known to the compiler where there is one.
fn n_own_chunks() -> u32 {
  return select(1u, n_chunks(), IS_LONG);
}

// The cut that takes the n_heavy best of the groups' best ranks or of the held groups' ranks, from a range in which the
// n_heavy-th highest should lie. If all that reaches the cut's low end are `most` at most, the cut takes them all.
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
