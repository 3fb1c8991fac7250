// Shared part of the kernels that make a list of the tiles' candidates: the n_heavy best, ties to the lower token,
// between sink and window: indices[l, :] = [sink | heavy | window], ascending; lengths[l] = how many; weights[l, :]
// = 1 at them. Needs indices, lengths, WG, and of the kernel:
//   first_four(list_ix), n_fours_of(row): where a list's candidates begin and how many they are, in fours
//   four_ranks(first, at, n_fours), four_ix(first, at, n_fours): ranks, and positions among the coded tokens
//
// One workgroup owns one list. Invocation `lane` reads four neighbouring candidates at a time. Candidates come in
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

// Puts a rank that the cut takes; `at` counts the ranks above the cut and in it before this one.
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

// Puts what the cut takes of one turn's candidates; `before` counts the ranks above the cut and in it in the turns
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

// Puts what the cut takes, if that is decided: if `is_exact`, or if the ranks in the cut, which were offered, turn out
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

  // The cut that takes the n_heavy best. What decides the flow, `found`, is uniform; the cut is not known to be.
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
