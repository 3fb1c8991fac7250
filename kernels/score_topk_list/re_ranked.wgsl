// In place of `as_taken.wgsl`: what a list by cells took is a shortlist, and its heavy tokens are the n_heavy best of it
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

// What `rank_exactly.wgsl` asks for.
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

// Chooses a member of the bin if fewer than `need` of the others are better.
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
