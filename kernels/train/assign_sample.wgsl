// assign_sample: the nearest centroid of each sampled key, and how far it is. Stage: training, first of an iteration.
//
// keys, sampled, extra: see `sample_keys.wgsl`
// model, state: see `train.wgsl`
// owners:     u32[groups, tiles, TILE / 4], four codes per word, the lowest byte first; 0 for a slot without a key
// counts:     u32[groups, C], zero before: keys per centroid; integers, so that the order does not matter
// tile_stats: f32[groups, tiles, 4]: the sum of squared distances, the largest one, its slot, 1 if the tile is close
//
// One workgroup owns one tile of 128 slots of a group, as in a matrix product: 64 centroids at a time, 16 columns at a time,
// each invocation 8 keys by 4 centroids in registers. Scores are x c - |c|^2 / 2, largest wins, ties to the lower centroid.
//
// |x|^2 - 2 (x c - |c|^2 / 2) cancels where keys lie close to centroids and all lie far from the origin: among blobs that lie
// far apart, say. Its rounding is about 2^-24 times 4 sqrt(width) of |x|^2. A tile whose squared distances add up to less than
// CLOSE_SHARE of its |x|^2 is close: `assign_close` looks at it again. The others' distortion is within a percent. A single key
// that coincides with its centroid, as after the start, makes no tile close.
// Needs WG = 256.

override WG: u32;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read> model: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<u32>;
@group(0) @binding(6) var<storage, read_write> owners: array<u32>;
@group(0) @binding(7) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read_write> tile_stats: array<vec4f>;

const BLOCK = 64u;            // centroids
const CHUNK = 16u;            // columns
const KEYS_STRIDE = 33u;      // vectors of 4 keys per column, and one so that no two columns meet in a bank
const CENTROIDS_STRIDE = 17u;
const CENTROIDS_AT = 528u;    // CHUNK * KEYS_STRIDE

// A chunk of columns; after the last one squares of columns, then scores, then distances. Floats as bits: the same memory
// also holds numbers of slots.
var<workgroup> wg_work: array<vec4u, 800>;   // 12800 bytes
var<workgroup> wg_codes: array<u32, 544>;    // 2176 bytes
var<workgroup> wg_rows: array<u32, TILE>;    // 512 bytes

// Scores of 8 keys by 4 centroids.
var<private> score_0: vec4f;
var<private> score_1: vec4f;
var<private> score_2: vec4f;
var<private> score_3: vec4f;
var<private> score_4: vec4f;
var<private> score_5: vec4f;
var<private> score_6: vec4f;
var<private> score_7: vec4f;

fn column(j: u32, at_keys: u32, at_centroids: u32) {
  let a = bitcast<vec4f>(wg_work[at_keys + j * KEYS_STRIDE]);
  let b = bitcast<vec4f>(wg_work[at_keys + j * KEYS_STRIDE + 1u]);
  let c = bitcast<vec4f>(wg_work[at_centroids + j * CENTROIDS_STRIDE]);
  score_0 = fma(vec4f(a.x), c, score_0);
  score_1 = fma(vec4f(a.y), c, score_1);
  score_2 = fma(vec4f(a.z), c, score_2);
  score_3 = fma(vec4f(a.w), c, score_3);
  score_4 = fma(vec4f(b.x), c, score_4);
  score_5 = fma(vec4f(b.y), c, score_5);
  score_6 = fma(vec4f(b.z), c, score_6);
  score_7 = fma(vec4f(b.w), c, score_7);
}

// Without a loop, as one would not be unrolled.
fn chunk(at_keys: u32, at_centroids: u32) {
  column(0u, at_keys, at_centroids);
  column(1u, at_keys, at_centroids);
  column(2u, at_keys, at_centroids);
  column(3u, at_keys, at_centroids);
  column(4u, at_keys, at_centroids);
  column(5u, at_keys, at_centroids);
  column(6u, at_keys, at_centroids);
  column(7u, at_keys, at_centroids);
  column(8u, at_keys, at_centroids);
  column(9u, at_keys, at_centroids);
  column(10u, at_keys, at_centroids);
  column(11u, at_keys, at_centroids);
  column(12u, at_keys, at_centroids);
  column(13u, at_keys, at_centroids);
  column(14u, at_keys, at_centroids);
  column(15u, at_keys, at_centroids);
}

// Column j of four neighbouring slots of the tile.
fn four_keys(group: u32, tile: u32, four: u32, j: u32, origin: f32) -> vec4f {
  let slot = tile * TILE + four * 4u;
  let a = wg_rows[four * 4u];
  let b = wg_rows[four * 4u + 1u];
  let c = wg_rows[four * 4u + 2u];
  let d = wg_rows[four * 4u + 3u];
  return vec4f(
    point_column(group, slot, a, point_at(group, a), j, origin),
    point_column(group, slot + 1u, b, point_at(group, b), j, origin),
    point_column(group, slot + 2u, c, point_at(group, c), j, origin),
    point_column(group, slot + 3u, d, point_at(group, d), j, origin),
  );
}

// Column j of four neighbouring centroids; 0 where there is none.
fn four_centroids(group: u32, first: u32, j: u32) -> vec4f {
  var result = vec4f();
  if (j < CENTROID_WIDTH) {
    let at = model_row(group, first) + j;
    if (first < CENTROIDS) { result.x = model[at]; }
    if (first + 1u < CENTROIDS) { result.y = model[at + MODEL_COLUMNS]; }
    if (first + 2u < CENTROIDS) { result.z = model[at + 2u * MODEL_COLUMNS]; }
    if (first + 3u < CENTROIDS) { result.w = model[at + 3u * MODEL_COLUMNS]; }
  }
  return result;
}

// Half of a squared norm; so large that it never wins where there is no centroid.
fn half_norm(group: u32, c: u32) -> f32 {
  if (c >= CENTROIDS) { return LARGEST; }
  return model[model_row(group, c) + CENTROID_WIDTH];
}

// The best of four scores, ties to the lower; then its number.
fn best_of_four(scores: vec4f) -> vec2f {
  var best = vec2f(scores.x, 0.0);
  if (scores.y > best.x) { best = vec2f(scores.y, 1.0); }
  if (scores.z > best.x) { best = vec2f(scores.z, 2.0); }
  if (scores.w > best.x) { best = vec2f(scores.w, 3.0); }
  return best;
}

// The best centroid of slot `lane` so far and its score.
var<private> best: f32;
var<private> code: u32;

// The best of the block's centroids 4 other .. 4 other + 3.
fn take(other: u32, lane: u32, block: u32) {
  let nearby = lane / 4u * CENTROIDS_STRIDE + other;
  let score = bitcast<vec4f>(wg_work[nearby])[lane % 4u];
  let number = block + other * 4u + extractBits(wg_codes[nearby], lane % 4u * 8u, 8u);
  let is_better = score > best;
  best = select(best, score, is_better);
  code = select(code, number, is_better);
}

fn square(other: u32, lane: u32) -> f32 {
  return bitcast<vec4f>(wg_work[lane / 4u * CENTROIDS_STRIDE + other])[lane % 4u];
}

@compute @workgroup_size(WG)
fn assign_sample(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let n_tiles = (params.n_new + TILE - 1u) / TILE;
  if (ix >= N_GROUPS * n_tiles) { return; }
  let group = ix / n_tiles;
  let tile = ix % n_tiles;
  if (state[group * STATE_WORDS + STATE_DONE] != 0u) { return; }

  var row = NO_KEY;
  if (lane < TILE) {
    let slot = tile * TILE + lane;
    if (slot < params.n_new) { row = sampled[group / SUBVECTORS * params.n_new + slot]; }
    wg_rows[lane] = row;
  }
  workgroupBarrier();

  // What this invocation brings: column lane % 16 of fours lane / 16 and lane / 16 + 16, and of centroids lane / 16 * 4 ...
  let load_column = lane % CHUNK;
  let load_four = lane / CHUNK;
  // What it computes.
  let keys_four = lane / 16u * 2u;
  let centroids_four = lane % 16u;

  var squares_a = vec4f();
  var squares_b = vec4f();
  best = -LARGEST;
  for (var block = 0u; block < CENTROIDS; block += BLOCK) {
    score_0 = vec4f();
    score_1 = vec4f();
    score_2 = vec4f();
    score_3 = vec4f();
    score_4 = vec4f();
    score_5 = vec4f();
    score_6 = vec4f();
    score_7 = vec4f();
    var origin = origin_column(group, load_column);
    var keys_a = four_keys(group, tile, load_four, load_column, origin);
    var keys_b = four_keys(group, tile, load_four + 16u, load_column, origin);
    var some = four_centroids(group, block + load_four * 4u, load_column);
    for (var first = 0u; first < CENTROID_WIDTH; first += CHUNK) {
      workgroupBarrier();
      wg_work[load_column * KEYS_STRIDE + load_four] = bitcast<vec4u>(keys_a);
      wg_work[load_column * KEYS_STRIDE + load_four + 16u] = bitcast<vec4u>(keys_b);
      wg_work[CENTROIDS_AT + load_column * CENTROIDS_STRIDE + load_four] = bitcast<vec4u>(some);
      if (block == 0u) {
        squares_a = fma(keys_a, keys_a, squares_a);
        squares_b = fma(keys_b, keys_b, squares_b);
      }
      workgroupBarrier();
      // The next chunk is on its way while this one is used.
      let j = first + CHUNK + load_column;
      origin = origin_column(group, j);
      keys_a = four_keys(group, tile, load_four, j, origin);
      keys_b = four_keys(group, tile, load_four + 16u, j, origin);
      some = four_centroids(group, block + load_four * 4u, j);
      chunk(keys_four, CENTROIDS_AT + centroids_four);
    }
    workgroupBarrier();

    let c = block + centroids_four * 4u;
    let half = vec4f(half_norm(group, c), half_norm(group, c + 1u), half_norm(group, c + 2u), half_norm(group, c + 3u));
    let best_0 = best_of_four(score_0 - half);
    let best_1 = best_of_four(score_1 - half);
    let best_2 = best_of_four(score_2 - half);
    let best_3 = best_of_four(score_3 - half);
    let best_4 = best_of_four(score_4 - half);
    let best_5 = best_of_four(score_5 - half);
    let best_6 = best_of_four(score_6 - half);
    let best_7 = best_of_four(score_7 - half);
    let at = keys_four * CENTROIDS_STRIDE + centroids_four;
    wg_work[at] = bitcast<vec4u>(vec4f(best_0.x, best_1.x, best_2.x, best_3.x));
    wg_work[at + CENTROIDS_STRIDE] = bitcast<vec4u>(vec4f(best_4.x, best_5.x, best_6.x, best_7.x));
    wg_codes[at] = pack4xU8(vec4u(vec4f(best_0.y, best_1.y, best_2.y, best_3.y)));
    wg_codes[at + CENTROIDS_STRIDE] = pack4xU8(vec4u(vec4f(best_4.y, best_5.y, best_6.y, best_7.y)));
    workgroupBarrier();
    if (lane < TILE) {
      take(0u, lane, block);
      take(1u, lane, block);
      take(2u, lane, block);
      take(3u, lane, block);
      take(4u, lane, block);
      take(5u, lane, block);
      take(6u, lane, block);
      take(7u, lane, block);
      take(8u, lane, block);
      take(9u, lane, block);
      take(10u, lane, block);
      take(11u, lane, block);
      take(12u, lane, block);
      take(13u, lane, block);
      take(14u, lane, block);
      take(15u, lane, block);
    }
  }

  // |x|^2: 16 invocations have its columns.
  workgroupBarrier();
  wg_work[load_four * CENTROIDS_STRIDE + load_column] = bitcast<vec4u>(squares_a);
  wg_work[(load_four + 16u) * CENTROIDS_STRIDE + load_column] = bitcast<vec4u>(squares_b);
  workgroupBarrier();
  var distance = 0.0;
  var size = 0.0;
  if (lane < TILE) {
    distance += square(0u, lane);
    distance += square(1u, lane);
    distance += square(2u, lane);
    distance += square(3u, lane);
    distance += square(4u, lane);
    distance += square(5u, lane);
    distance += square(6u, lane);
    distance += square(7u, lane);
    distance += square(8u, lane);
    distance += square(9u, lane);
    distance += square(10u, lane);
    distance += square(11u, lane);
    distance += square(12u, lane);
    distance += square(13u, lane);
    distance += square(14u, lane);
    distance += square(15u, lane);
    size = distance;
    distance = select(max(distance - 2.0 * best, 0.0), 0.0, row == NO_KEY);
    if (row != NO_KEY) { atomicAdd(&counts[group * CENTROIDS + code], 1u); }
  }
  finish_tile(lane, group * n_tiles + tile, tile, select(code, 0u, row == NO_KEY), distance, size);
}
