// Shared part of the kernels that code a subvector with a large workgroup: 16 invocations share a centroid.
// As nearest_of_key, with the memory of `lookup_split.wgsl`. Needs new_keys, centroids, phi and WG.

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

// The code of the subvector of `group` (kv, m) that begins at `key_at`. In uniform control flow only.
fn nearest_of_key(lane: u32, group: u32, key_at: u32) -> u32 {
  let part = lane % N_PARTS;
  if (lane == 0u) {
    atomicStore(&wg_nearest_bits, NO_DISTANCE);
    atomicStore(&wg_nearest, CENTROIDS - 1u);
  }
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) { last = augmented_column(phi[group], squared_norm(key_at)); }

  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var first = 0u; first < CENTROIDS; first += PART_ROWS) {
    let n_rows = min(PART_ROWS, CENTROIDS - first);
    for (var row = lane / N_PARTS; row < n_rows; row += WG / N_PARTS) {
      let centroid_at = (group * CENTROIDS + first + row) * CENTROID_WIDTH;
      var sum = 0.0;
      for (var j = part; j < SUB_WIDTH; j += N_PARTS) {
        sum = add_squared_difference(sum, new_keys[key_at + j], centroids[centroid_at + j]);
      }
      wg_parts[row * PART_STRIDE + part] = sum;
    }
    workgroupBarrier();
    for (var row = lane; row < n_rows; row += WG) {
      var distance = sum_of_parts(row);
      if (CENTROID_WIDTH > SUB_WIDTH) {
        let centroid_at = (group * CENTROIDS + first + row) * CENTROID_WIDTH;
        distance = add_squared_difference(distance, last, centroids[centroid_at + SUB_WIDTH]);
      }
      if (is_nearer(distance, best_bits)) {
        best = first + row;
        best_bits = bitcast<u32>(distance);
      }
    }
    workgroupBarrier();
  }
  atomicMin(&wg_nearest_bits, best_bits);
  workgroupBarrier();
  if (best_bits == atomicLoad(&wg_nearest_bits)) { atomicMin(&wg_nearest, best); }
  workgroupBarrier();
  if (lane == 0u) { wg_code = atomicLoad(&wg_nearest); }
  return workgroupUniformLoad(&wg_code);
}
