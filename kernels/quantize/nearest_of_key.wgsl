// Shared part of the kernels that code one subvector per workgroup: the invocations share out the
// centroids, then reduce to the nearest. The order of the reduction does not matter: (distance,
// number) is a total order. Needs new_keys, centroids, phi and WG, a power of two.

var<workgroup> wg_bits: array<u32, WG>;    // 4 bytes per invocation
var<workgroup> wg_number: array<u32, WG>;  // 4 bytes per invocation

// (x - c)^2 of columns j .. j + 3 added to four partial sums; columns past the end add nothing. Without a
// centroid, c is 0: the squared norm.
fn add_columns(sum: vec4f, key_at: u32, centroid_at: u32, has_centroid: bool, j: u32) -> vec4f {
  var result = sum;
  for (var s = 0u; s < 4u; s++) {
    if (j + s < SUB_WIDTH) {
      var c = 0.0;
      if (has_centroid) { c = centroids[centroid_at + j + s]; }
      result[s] = add_squared_difference(sum[s], new_keys[key_at + j + s], c);
    }
  }
  return result;
}

fn squared_distance(key_at: u32, centroid_at: u32, has_centroid: bool) -> f32 {
  var a = vec4f();
  var b = vec4f();
  var c = vec4f();
  var d = vec4f();
  for (var j = 0u; j < SUB_WIDTH; j += N_PARTS) {
    a = add_columns(a, key_at, centroid_at, has_centroid, j);
    b = add_columns(b, key_at, centroid_at, has_centroid, j + 4u);
    c = add_columns(c, key_at, centroid_at, has_centroid, j + 8u);
    d = add_columns(d, key_at, centroid_at, has_centroid, j + 12u);
  }
  return add_parts(a, b, c, d);
}

// The code of the subvector of `group` (kv, m) that begins at `key_at`. In uniform control flow only.
fn nearest_of_key(lane: u32, group: u32, key_at: u32) -> u32 {
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) { last = augmented_column(phi[group], squared_distance(key_at, 0u, false)); }

  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var c = lane; c < CENTROIDS; c += WG) {
    let centroid_at = (group * CENTROIDS + c) * CENTROID_WIDTH;
    var distance = squared_distance(key_at, centroid_at, true);
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
