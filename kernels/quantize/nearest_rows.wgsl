// Shared part of the kernels that code a subvector with a large workgroup: 16 invocations share a centroid. The
// same codes as `nearest_of_key.wgsl`. Needs distance_part, add_rows, phi and WG.

var<workgroup> wg_nearest_bits: atomic<u32>;
var<workgroup> wg_nearest: atomic<u32>;
var<workgroup> wg_code: u32;

fn squared_norm(key_at: u32) -> f32 {
  var parts = array<vec4f, 4>();
  for (var j = 0u; j < SUB_WIDTH; j++) {
    let x = new_keys[key_at + j];
    let p = j % N_PARTS;
    parts[p / 4u][p % 4u] = fma(x, x, parts[p / 4u][p % 4u]);
  }
  return add_parts(parts[0], parts[1], parts[2], parts[3]);
}

fn centroid_part(group: u32, key_at: u32, c: u32, part: u32) -> f32 {
  if (c >= CENTROIDS) { return 0.0; }
  return distance_part(key_at, (group * CENTROIDS + c) * CENTROID_WIDTH, part);
}

// The nearer of (bits, number) and centroid c, if there is one.
fn nearer(best: vec2u, group: u32, first: u32, row: u32, sum: f32, last: f32) -> vec2u {
  let c = first + row;
  if (row >= ROWS || c >= CENTROIDS) { return best; }
  var distance = sum;
  if (CENTROID_WIDTH > SUB_WIDTH) {
    distance = add_squared_difference(sum, last, centroids[(group * CENTROIDS + c) * CENTROID_WIDTH + SUB_WIDTH]);
  }
  let bits = bitcast<u32>(distance);
  return select(best, vec2u(bits, c), bits < best.x || (bits == best.x && c < best.y));
}

// The code of the subvector of `group` (kv, m) that begins at `key_at`. In uniform control flow only.
fn nearest_of_key(lane: u32, group: u32, key_at: u32) -> u32 {
  let part = lane % N_PARTS;
  if (lane == 0u) {
    atomicStore(&wg_nearest_bits, NO_DISTANCE);
    atomicStore(&wg_nearest, CENTROIDS);
  }
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) { last = augmented_column(phi[group], squared_norm(key_at)); }

  // A NaN distance has bits above those of no distance, so it never wins.
  var best = vec2u(NO_DISTANCE, 0u);
  for (var first = 0u; first < CENTROIDS; first += ROWS) {
    let c = first + lane / N_PARTS;
    let sum = add_rows(lane, vec4f(
      centroid_part(group, key_at, c, part),
      centroid_part(group, key_at, c + WG / N_PARTS, part),
      centroid_part(group, key_at, c + WG / N_PARTS * 2u, part),
      centroid_part(group, key_at, c + WG / N_PARTS * 3u, part),
    ));
    best = nearer(best, group, first, row_of(lane), sum, last);
    if (ROWS_NEED_BARRIER) { workgroupBarrier(); }
  }
  if (!ROWS_NEED_BARRIER) { workgroupBarrier(); }
  atomicMin(&wg_nearest_bits, best.x);
  workgroupBarrier();
  if (best.x == atomicLoad(&wg_nearest_bits)) { atomicMin(&wg_nearest, best.y); }
  workgroupBarrier();
  if (lane == 0u) { wg_code = atomicLoad(&wg_nearest); }
  return workgroupUniformLoad(&wg_code);
}
