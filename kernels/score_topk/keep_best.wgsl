// Shared part of the kernels that score a tile and keep its best tokens; ranks live in workgroup memory and
// scores are never stored. Needs query, centroids, codes, candidate_ranks, candidate_ix, WG and scan_inclusive.
//
// One workgroup owns one tile of one list; invocation `lane` scores words lane, lane + WG, ... of it. The
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

// Narrows the range of the last taken rank by one digit: invocation `lane` stands for digit 255 - lane, and
// the one whose digit brings the count to `need` chooses.
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
