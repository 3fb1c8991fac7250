// code_tiles: as code_candidates of e06, for large workgroups: ranks stay in registers, 16 invocations share a
// table entry, the table lies in copies without bank conflicts, and the heads of a group share a tile's codes.
// Stages: quantize, score and top-K (e07).
//
// query:           f32[B, H, rows, D]
// centroids:       f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:           u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// new_keys:        f32[B, Hkv, n_new_keys, D]
// phi:             f32[B, Hkv, M], metric "ip" only
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where the tile has fewer candidates
// candidate_ix:    u32[B, H, rows, tiles, kept], position among the coded tokens, ascending
//
// A tile is WG * WORDS words; invocation `lane` owns words WORDS * lane .. of it, 4 * WORDS neighbouring
// tokens, and keeps their ranks in registers. One workgroup owns one tile of LISTS lists of one kv (query
// heads of a group, rows), so that memory is read once for all of them.
//
// Which tokens are kept: the n_heavy-th highest of the invocations' best ranks bounds the tile's n_heavy-th
// highest rank from below (n_heavy invocations hold one at least as high), and hardly more than n_heavy
// tokens reach it. They are all kept where they fit; else (ties, or fewer invocations with candidates than n_heavy)
// a radix select over all ranks finds exactly the n_heavy best. Either way a list's best are among them.
// The rest of the workgroups own a word of new codes each, see `code_word.wgsl`; preconditions as code_candidates.

override WG: u32;
override LISTS: u32;  // lists per workgroup

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read> new_keys: array<f32>;
@group(0) @binding(5) var<storage, read> phi: array<f32>;
@group(0) @binding(6) var<storage, read_write> candidate_ranks: array<u32>;
@group(0) @binding(7) var<storage, read_write> candidate_ix: array<u32>;

var<workgroup> wg_kept: u32;

var<private> ranks: array<vec4u, WORDS>;
var<private> best: u32;
var<private> counts_all: bool;

fn count_ranks(lane: u32, shift: u32, key: u32) {
  if (counts_all) {
    for (var w = 0u; w < WORDS; w++) {
      for (var s = 0u; s < 4u; s++) { count_rank(ranks[w][s], shift, key); }
    }
  } else {
    count_rank(best, shift, key);
  }
}

fn score_tile(lane: u32, list_ix: u32, first_word: u32) {
  let row = params.rows[list_ix % params.n_rows];
  let stride = params.coded_stride / 4u;
  let first_group = kv_of_list(list_ix) * SUBVECTORS;
  best = NO_CANDIDATE;
  for (var w = 0u; w < WORDS; w++) {
    let word_ix = first_word + w;
    var four = vec4u(NO_CANDIDATE);
    if (word_ix * 4u < row.cand_end && word_ix * 4u + 4u > row.cand_begin) {
      var score = look_up(lane, 0u, codes[first_group * stride + word_ix]);
      for (var m = 1u; m < SUBVECTORS; m++) {
        score += look_up(lane, m, codes[(first_group + m) * stride + word_ix]);
      }
      let i = vec4u(0u, 1u, 2u, 3u) + word_ix * 4u;
      let is_candidate = (i >= vec4u(row.cand_begin)) & (i < vec4u(row.cand_end));
      let all = vec4u(rank_of(score.x), rank_of(score.y), rank_of(score.z), rank_of(score.w));
      four = select(four, all, is_candidate);
      best = max(best, max(max(four.x, four.y), max(four.z, four.w)));
    }
    ranks[w] = four;
  }
}

// (ranks above the threshold, ranks equal to it) among this invocation's.
fn count_mine(kth: Kth) -> vec2u {
  var mine = vec2u();
  for (var w = 0u; w < WORDS; w++) {
    let leading = ranks[w] >> vec4u(kth.shift);
    let is_there = ranks[w] != vec4u(NO_CANDIDATE);
    mine.x += dot(vec4u(is_there & (leading > vec4u(kth.key))), vec4u(1u));
    mine.y += dot(vec4u(is_there & (leading == vec4u(kth.key))), vec4u(1u));
  }
  return mine;
}

// In uniform control flow only.
fn keep_tile(lane: u32, list_ix: u32, tile: u32) {
  let n_heavy = params.rows[list_ix % params.n_rows].n_heavy;
  let first_word = (tile * WG + lane) * WORDS;
  score_tile(lane, list_ix, first_word);

  // A bound from the invocations' best: two digits are as sharp as it need be.
  counts_all = false;
  count_ranks(lane, 21u, 0u);
  workgroupBarrier();
  var bin = choose_bin(lane, n_heavy);
  var kth = Kth(bin.x, 21u, 0xffffu);
  if (bin.z > 0u) {
    count_ranks(lane, 10u, kth.key);
    workgroupBarrier();
    bin = choose_bin(lane, bin.y);
    kth = Kth((kth.key << 11u) | bin.x, 10u, 0xffffu);
  }

  var mine = count_mine(kth);
  var upto = scan_inclusive(lane, mine);
  if (lane == WG - 1u) { wg_kept = upto.x + upto.y; }
  var n_kept = workgroupUniformLoad(&wg_kept);
  if (n_kept > kept()) {
    counts_all = true;
    kth = find_kth(lane, n_heavy);
    mine = count_mine(kth);
    upto = scan_inclusive(lane, mine);
    n_kept = n_heavy;
  }

  let out = list_ix * tiles_stride() + tile * kept();
  if (mine.x + mine.y > 0u) {
    var at = upto - mine;
    for (var w = 0u; w < WORDS; w++) {
      for (var s = 0u; s < 4u; s++) {
        let rank = ranks[w][s];
        let leading = rank >> kth.shift;
        let is_above = rank != NO_CANDIDATE && leading > kth.key;
        let is_equal = rank != NO_CANDIDATE && leading == kth.key;
        if (is_above || (is_equal && at.y < kth.need)) {
          let slot = out + at.x + min(at.y, kth.need);
          candidate_ranks[slot] = rank;
          candidate_ix[slot] = (first_word + w) * 4u + s;
        }
        at += vec2u(u32(is_above), u32(is_equal));
      }
    }
  }
  for (var slot = n_kept + lane; slot < kept(); slot += WG) {
    candidate_ranks[out + slot] = NO_CANDIDATE;
  }
}

@compute @workgroup_size(WG)
fn code_tiles(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let lists_of_kv = HEADS / KV_HEADS * params.n_rows;
  let n_parts = (lists_of_kv + LISTS - 1u) / LISTS;
  let n_tile_jobs = BATCH * KV_HEADS * n_parts * n_tiles();
  if (ix < n_tile_jobs) {
    let tile = ix % n_tiles();
    let kv = ix / n_tiles() / n_parts;
    let first = ix / n_tiles() % n_parts * LISTS;
    for (var l = first; l < min(first + LISTS, lists_of_kv); l++) {
      let list_ix = kv * lists_of_kv + l;
      if (params.rows[list_ix % params.n_rows].n_heavy > 0u) {
        fill_table(lane, list_ix, kv * SUBVECTORS);
        keep_tile(lane, list_ix, tile);
        workgroupBarrier();
      }
    }
  } else if (params.n_beside > 0u && ix - n_tile_jobs < BATCH * KV_HEADS * SUBVECTORS * n_new_words()) {
    code_word(lane, ix - n_tile_jobs);
  }
}
