// Shared part of the kernels that code one subvector per workgroup: the invocations share out the
// centroids, then reduce to the nearest. The order of the reduction does not matter: (distance,
// number) is a total order. Needs new_keys, centroids, phi and WG, a power of two.

var<workgroup> wg_bits: array<u32, WG>;    // 4 bytes per invocation
var<workgroup> wg_number: array<u32, WG>;  // 4 bytes per invocation

fn last_column(group: u32, key_at: u32) -> f32 {
  var squared_norm = 0.0;
  for (var j = 0u; j < SUB_WIDTH; j++) {
    let x = new_keys[key_at + j];
    squared_norm = fma(x, x, squared_norm);
  }
  return augmented_column(phi[group], squared_norm);
}

// The code of the subvector of `group` (kv, m) that begins at `key_at`. In uniform control flow only.
fn nearest_of_key(lane: u32, group: u32, key_at: u32) -> u32 {
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) { last = last_column(group, key_at); }

  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var c = lane; c < CENTROIDS; c += WG) {
    let centroid_at = (group * CENTROIDS + c) * CENTROID_WIDTH;
    var distance = 0.0;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      distance = add_squared_difference(distance, new_keys[key_at + j], centroids[centroid_at + j]);
    }
    if (CENTROID_WIDTH > SUB_WIDTH) {
      distance = add_squared_difference(distance, last, centroids[centroid_at + SUB_WIDTH]);
    }
    if (is_nearer(distance, best_bits)) {
      best = c;
      best_bits = bitcast<u32>(distance);
    }
  }

  wg_bits[lane] = best_bits;
  wg_number[lane] = best;
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let other_bits = wg_bits[lane + half];
      let other = wg_number[lane + half];
      if (other_bits < wg_bits[lane] || (other_bits == wg_bits[lane] && other < wg_number[lane])) {
        wg_bits[lane] = other_bits;
        wg_number[lane] = other;
      }
    }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&wg_number[0]);
}

// Where the subvector of `group` begins in the step's i-th coded new key.
fn key_at(group: u32, i: u32) -> u32 {
  let key_ix = group / SUBVECTORS * params.n_new_keys + params.first_new_key + i;
  return (key_ix * SUBVECTORS + group % SUBVECTORS) * SUB_WIDTH;
}
