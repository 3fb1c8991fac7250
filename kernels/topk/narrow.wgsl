// Shared part of the kernels that find the K-th highest of many ranks with one workgroup: a histogram of 4 * WG
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

// Ranks above `high` are among the best; of those from low to high the first `need` by position are.
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
