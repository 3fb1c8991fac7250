// Shared part of the kernels that make a list by ranking cells instead of tokens. All tokens of a cell have one score: a list
// needs as many scores as there are cells, however many tokens there are. Needs query, centroids, codes, postings, indices,
// lengths, weights if they are written, fill_table, WG, and settle_heavy (see `as_taken.wgsl`).
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

// Takes `tokens` tokens of the entry that begins at `begin`.
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

// Takes what a member has among the `need` best tokens of its bin. Of cells that tie at the cut: nothing, which is noticed.
fn take_member(member: u32, need: u32) {
  let entry = wg_members[member];
  let better = atomicLoad(&wg_n_better[member]);
  let is_cell = (entry.y & IS_TOKEN) == 0u;
  let ties = select(entry.z, atomicLoad(&wg_n_equal[member]), is_cell);
  if (better < need && (ties == entry.z || better + ties <= need)) { take(entry.y, min(entry.z, need - better)); }
}

// Takes tokens `begin` and up one by one: those above a cut, and of those that tie in it the `need` lowest. The complements
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

// Moves `low` on by `step` if the range there begins at `i` or before. Searches are written out, as
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

// Entry `at` of the new list in place of that of the old one. No other invocation reads or writes it, and a weight is
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
