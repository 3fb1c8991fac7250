// Shared part of the kernels that find the K-th highest of many ranks with one workgroup: radix select with
// digits of 11, 11 and 10 bits from the top, stopping as soon as a digit separates. All invocations search
// the histogram at once. Needs WG (a power of two up to 2,048), scan_sum, and of the kernel:
//   count_ranks(lane, shift, key): calls count_rank for every rank
//
// Source: radix select as in Alabi, Blanchard, Gordon, Steinbach 2012.

const N_BINS = 2048u;

var<workgroup> wg_bins: array<atomic<u32>, N_BINS>;  // 8 KiB; all 0 between two digits
var<workgroup> wg_bin: vec3u;

// Ranks whose leading digits, rank >> shift, are above key are among the best; of those equal to key, `need`
// are, by position.
struct Kth {
  key: u32,
  shift: u32,
  need: u32,
}

// Counts a rank if the digits above this one are those chosen so far. 0 is no candidate.
fn count_rank(rank: u32, shift: u32, key: u32) {
  if (rank != NO_CANDIDATE) {
    if (shift == 21u) {
      atomicAdd(&wg_bins[rank >> 21u], 1u);
    } else if (shift == 10u) {
      if (rank >> 21u == key) { atomicAdd(&wg_bins[(rank >> 10u) & 0x7ffu], 1u); }
    } else if (rank >> 10u == key) {
      atomicAdd(&wg_bins[rank & 0x3ffu], 1u);
    }
  }
}

// The bin that holds the need-th highest rank, how many of it are needed and how many it holds; (0, need, 0)
// where fewer than `need` were counted. Clears the histogram.
fn choose_bin(lane: u32, need: u32) -> vec3u {
  let per_lane = N_BINS / WG;
  let top = N_BINS - 1u - lane * per_lane;
  var mine = 0u;
  for (var k = 0u; k < per_lane; k++) { mine += atomicLoad(&wg_bins[top - k]); }
  let upto = scan_sum(lane, mine);
  if (upto >= need && upto - mine < need) {
    var above = upto - mine;
    for (var k = 0u; k < per_lane; k++) {
      let here = atomicLoad(&wg_bins[top - k]);
      if (above < need && above + here >= need) { wg_bin = vec3u(top - k, need - above, here); }
      above += here;
    }
  }
  if (lane == WG - 1u && upto < need) { wg_bin = vec3u(0u, need, 0u); }
  for (var k = 0u; k < per_lane; k++) { atomicStore(&wg_bins[top - k], 0u); }
  return workgroupUniformLoad(&wg_bin);
}

// Precondition: at least `need` ranks are candidates, need > 0.
fn find_kth(lane: u32, need: u32) -> Kth {
  var shift = 21u;
  count_ranks(lane, shift, 0u);
  workgroupBarrier();
  var bin = choose_bin(lane, need);
  var key = bin.x;
  while (shift > 0u && bin.y < bin.z) {
    let bits = select(10u, 11u, shift == 21u);
    shift -= bits;
    count_ranks(lane, shift, key);
    workgroupBarrier();
    bin = choose_bin(lane, bin.y);
    key = (key << bits) | bin.x;
  }
  return Kth(key, shift, bin.y);
}
