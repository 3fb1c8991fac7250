// Shared part of the kernels that assign a tile's keys: writes their codes and the tile's statistics. Needs wg_work and
// wg_codes of at least TILE entries, WG of at least TILE, owners and tile_stats.

const TILE = 128u;                    // slots
const CLOSE_SHARE = 0.0009765625;     // 2^-10

// `at` is the tile among those of all groups. In uniform control flow only; begins with a barrier.
// `size` is |x|^2 of the lane's key.
fn finish_tile(lane: u32, at: u32, tile: u32, code: u32, distance: f32, size: f32) {
  workgroupBarrier();
  if (lane < TILE) {
    wg_codes[lane] = code;
    wg_work[lane] = vec4u(bitcast<u32>(distance), bitcast<u32>(distance), lane, bitcast<u32>(size));
  }
  workgroupBarrier();
  if (lane < TILE / 4u) {
    let codes = vec4u(wg_codes[4u * lane], wg_codes[4u * lane + 1u], wg_codes[4u * lane + 2u], wg_codes[4u * lane + 3u]);
    owners[at * (TILE / 4u) + lane] = pack4xU8(codes);
  }
  for (var half = TILE / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let a = wg_work[lane];
      let b = wg_work[lane + half];
      let sum = bitcast<f32>(a.x) + bitcast<f32>(b.x);
      // Distances are not negative, so their bits order as they do; ties go to the lower slot.
      let is_b = b.y > a.y || (b.y == a.y && b.z < a.z);
      wg_work[lane] = vec4u(bitcast<u32>(sum), select(a.y, b.y, is_b), select(a.z, b.z, is_b), bitcast<u32>(bitcast<f32>(a.w) + bitcast<f32>(b.w)));
    }
    workgroupBarrier();
  }
  if (lane == 0u) {
    let total = wg_work[0];
    let distances = bitcast<f32>(total.x);
    let is_close = distances < CLOSE_SHARE * bitcast<f32>(total.w);
    tile_stats[at] = vec4f(distances, bitcast<f32>(total.y), f32(tile * TILE + total.z), select(0.0, 1.0, is_close));
  }
}
