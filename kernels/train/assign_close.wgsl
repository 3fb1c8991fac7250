// assign_close: the nearest centroid of each key of a tile by squared differences of columns, where `assign_sample` found the
// keys so close to their centroids that its own formula cancels. Stage: training, second of an iteration; usually finds no work.
//
// keys, sampled, extra, model, state, owners, counts, tile_stats: see `assign_sample.wgsl`; written anew for such a tile
//
// One workgroup owns one tile of a group, an invocation a slot. What was learnt: each centroid starts as a key, so most tiles
// hold a key at distance 0 then. Looking again because of single keys costs more than the training; a tile is judged as a whole.
// Needs WG = 128.

override WG: u32;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read> model: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<u32>;
@group(0) @binding(6) var<storage, read_write> owners: array<u32>;
@group(0) @binding(7) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read_write> tile_stats: array<vec4f>;

var<workgroup> wg_work: array<vec4u, TILE>;  // 2048 bytes
var<workgroup> wg_codes: array<u32, TILE>;   // 512 bytes
var<workgroup> wg_is_close: f32;

struct Nearest {
  code: u32,
  distance: f32,
}

// Ties go to the lower centroid.
fn nearest_by_differences(group: u32, slot: u32, row: u32) -> Nearest {
  let at = point_at(group, row);
  var nearest = Nearest(0u, LARGEST);
  for (var c = 0u; c < CENTROIDS; c++) {
    let centroid = model_row(group, c);
    var sum = 0.0;
    for (var j = 0u; j < CENTROID_WIDTH; j++) {
      let t = point_column(group, slot, row, at, j, origin_column(group, j)) - model[centroid + j];
      sum = fma(t, t, sum);
    }
    if (sum < nearest.distance) { nearest = Nearest(c, sum); }
  }
  return nearest;
}

@compute @workgroup_size(WG)
fn assign_close(
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
  if (lane == 0u) { wg_is_close = tile_stats[ix].w; }
  if (workgroupUniformLoad(&wg_is_close) == 0.0) { return; }

  let slot = tile * TILE + lane;
  var row = NO_KEY;
  if (slot < params.n_new) { row = sampled[group / SUBVECTORS * params.n_new + slot]; }
  var nearest = Nearest(0u, 0.0);
  if (row != NO_KEY) {
    nearest = nearest_by_differences(group, slot, row);
    let before = extractBits(owners[ix * (TILE / 4u) + lane / 4u], lane % 4u * 8u, 8u);
    if (nearest.code != before) {
      atomicSub(&counts[group * CENTROIDS + before], 1u);
      atomicAdd(&counts[group * CENTROIDS + nearest.code], 1u);
    }
  }
  storageBarrier();  // the old codes are read before the new ones are written
  finish_tile(lane, ix, tile, nearest.code, nearest.distance, 0.0);
}
