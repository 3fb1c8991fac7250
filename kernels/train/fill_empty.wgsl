// fill_empty: a centroid without keys takes the place of the key that is farthest from its own, each next one that of the
// next tile's farthest. Then half norms, the result, and whether the group is done. Stage: training, last of an iteration.
//
// keys, sampled, extra: see `sample_keys.wgsl`
// model, state, counts, tile_stats: see `assign_sample.wgsl`; counts become 0 again
// centroids: f32[groups, C, CENTROID_WIDTH]
//
// One workgroup owns one group. It is done once an assignment's distortion has fallen by no more than the tolerance since the
// one before, and no centroid was without keys.

override WG: u32;
override TOLERANCE: f32;  // share of the distortion

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read_write> model: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<u32>;
@group(0) @binding(6) var<storage, read_write> counts: array<u32>;
@group(0) @binding(7) var<storage, read_write> tile_stats: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> centroids: array<f32>;

var<workgroup> wg_sums: array<f32, WG>;    // 4 bytes per invocation
var<workgroup> wg_farthest: atomic<u32>;   // 4 bytes
var<workgroup> wg_tile: atomic<u32>;       // 4 bytes
var<workgroup> wg_done: u32;               // 4 bytes
var<workgroup> wg_empty: array<u32, 256>;  // 1024 bytes

@compute @workgroup_size(WG)
fn fill_empty(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = job_ix(workgroup_id, num_workgroups);
  if (group >= N_GROUPS) { return; }
  let state_at = group * STATE_WORDS;
  if (lane == 0u) { wg_done = state[state_at + STATE_DONE]; }
  if (workgroupUniformLoad(&wg_done) != 0u) { return; }

  let n_tiles = (params.n_new + 127u) / 128u;
  var sum = 0.0;
  for (var tile = lane; tile < n_tiles; tile += WG) { sum += tile_stats[group * n_tiles + tile].x; }
  wg_sums[lane] = sum;
  for (var c = lane; c < CENTROIDS; c += WG) {
    wg_empty[c] = select(0u, 1u, counts[group * CENTROIDS + c] == 0u);
    counts[group * CENTROIDS + c] = 0u;
  }
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) { wg_sums[lane] += wg_sums[lane + half]; }
    workgroupBarrier();
  }
  let distortion = workgroupUniformLoad(&wg_sums[0]);

  var filled = 0u;
  for (var c = 0u; c < CENTROIDS; c++) {
    if (workgroupUniformLoad(&wg_empty[c]) == 0u) { continue; }
    if (lane == 0u) {
      atomicStore(&wg_farthest, 0u);
      atomicStore(&wg_tile, NO_KEY);
    }
    workgroupBarrier();
    // Each tile is looked at by one invocation only, which also marks it as used.
    var own = 0u;
    var own_tile = NO_KEY;
    for (var tile = lane; tile < n_tiles; tile += WG) {
      let distance = bitcast<u32>(tile_stats[group * n_tiles + tile].y);
      if (distance > own) {
        own = distance;
        own_tile = tile;
      }
    }
    atomicMax(&wg_farthest, own);
    workgroupBarrier();
    if (own > 0u && own == atomicLoad(&wg_farthest)) { atomicMin(&wg_tile, own_tile); }
    workgroupBarrier();
    let tile = atomicLoad(&wg_tile);
    if (lane == 0u) { wg_done = tile; }
    if (workgroupUniformLoad(&wg_done) == NO_KEY) { break; } // all keys lie on centroids
    let slot = u32(tile_stats[group * n_tiles + tile].z);
    let row = sampled[group / SUBVECTORS * params.n_new + slot];
    for (var j = lane; j < CENTROID_WIDTH; j += WG) {
      model[model_row(group, c) + j] = point_column(group, slot, row, point_at(group, row), j, origin_column(group, j));
    }
    filled++;
    workgroupBarrier();
    if (lane == tile % WG) { tile_stats[group * n_tiles + tile].y = 0.0; }
  }
  storageBarrier();

  write_half_norms(lane, group);
  for (var ix = lane; ix < CENTROIDS * CENTROID_WIDTH; ix += WG) {
    let j = ix % CENTROID_WIDTH;
    centroids[group * CENTROIDS * CENTROID_WIDTH + ix] =
      model[model_row(group, ix / CENTROID_WIDTH) + j] + model[model_row(group, CENTROIDS) + j];
  }
  if (lane == 0u) {
    let before = bitcast<f32>(state[state_at + STATE_DISTORTION]);
    let made = state[state_at + STATE_ITERATIONS];
    state[state_at + STATE_DISTORTION] = bitcast<u32>(distortion);
    state[state_at + STATE_ITERATIONS] = made + 1u;
    let is_still = made > 0u && before - distortion <= TOLERANCE * before;
    state[state_at + STATE_DONE] = select(0u, 1u, is_still && filled == 0u);
  }
}
