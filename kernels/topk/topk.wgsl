// topk: the n_heavy highest ranks of a list, best first; equal ranks by position, lower first.
// Stage: top-K (e01). What torch.topk(sorted=True) does, with the tie rule fixed.
//
// ranks:      u32[B, H, rows, coded_stride], 0 where there is no candidate
// topk_ix:    u32[B, H, rows, heavy_stride], position among the coded tokens
// topk_ranks: u32[B, H, rows, heavy_stride]
//
// One workgroup owns one list. 1. Radix select, 8 bits at a time from the top, finds the lowest
// rank that is taken and how many of that rank. 2. An ordered compaction keeps them by position.
// 3. A bitonic sort in place, through storage, puts the best first.
// Precondition: at least n_heavy ranks are above 0.
// Source: radix select as in Alabi, Blanchard, Gordon, Steinbach 2012.

override WG: u32;

@group(0) @binding(1) var<storage, read> ranks: array<u32>;
@group(0) @binding(2) var<storage, read_write> topk_ix: array<u32>;
@group(0) @binding(3) var<storage, read_write> topk_ranks: array<u32>;

const N_DIGITS = 256u;

var<workgroup> wg_histogram: array<atomic<u32>, N_DIGITS>;  // 1 KiB
var<workgroup> wg_scan: array<vec2u, WG>;                   // 8 bytes per invocation
var<workgroup> wg_chosen: vec2u;                            // prefix so far, ranks still to take

// Narrows the range of the n_heavy-th highest rank by one digit.
fn narrow(lane: u32, first: u32, shift: u32, prefix: u32, need: u32) -> vec2u {
  for (var digit = lane; digit < N_DIGITS; digit += WG) {
    atomicStore(&wg_histogram[digit], 0u);
  }
  workgroupBarrier();
  for (var i = lane; i < params.n_coded; i += WG) {
    let rank = ranks[first + i];
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

// Inclusive prefix sums over the workgroup (Hillis, Steele 1986).
fn scan_inclusive(lane: u32, value: vec2u) -> vec2u {
  wg_scan[lane] = value;
  workgroupBarrier();
  for (var step = 1u; step < WG; step *= 2u) {
    var sum = wg_scan[lane];
    if (lane >= step) { sum += wg_scan[lane - step]; }
    workgroupBarrier();
    wg_scan[lane] = sum;
    workgroupBarrier();
  }
  return wg_scan[lane];
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

@compute @workgroup_size(WG)
fn topk(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  let n_heavy = params.rows[list_ix % params.n_rows].n_heavy;
  if (list_ix < n_lists() && n_heavy > 0u) {
    let first = list_ix * params.coded_stride;
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
    for (var tile = 0u; tile < params.n_coded; tile += WG) {
      let i = tile + lane;
      var rank = NO_CANDIDATE;
      if (i < params.n_coded) { rank = ranks[first + i]; }
      let flags = vec2u(u32(rank > threshold), u32(rank == threshold));
      let upto = before + scan_inclusive(lane, flags);
      if (flags.x == 1u || (flags.y == 1u && upto.y <= need)) {
        let slot = out + upto.x + min(upto.y, need) - 1u;
        topk_ix[slot] = i;
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
}
