// Shared part of the kernels that pick a list's best entries with one workgroup, best first; equal ranks
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
