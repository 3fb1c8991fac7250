// assign: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie.
// Stage: quantize new keys (e01).
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride], one code per word
//
// One workgroup owns one (kv, m, new key); its invocations share out the centroids and then reduce
// to the nearest. The order of the reduction does not matter: (distance, number) is a total order.
// Source: product quantization, Jegou, Douze, Schmid 2011; the "ip" column: Shrivastava, Li 2014.

override WG: u32;

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

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

@compute @workgroup_size(WG)
fn assign(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * SUBVECTORS * params.n_new) {
    let i = ix % params.n_new;
    let group = ix / params.n_new;
    let kv = group / SUBVECTORS;
    let key_ix = kv * params.n_new_keys + params.first_new_key + i;
    let key_at = (key_ix * SUBVECTORS + group % SUBVECTORS) * SUB_WIDTH;
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

    if (lane == 0u) {
      codes[group * params.coded_stride + params.n_coded - params.n_new + i] = wg_number[0];
    }
  }
}
