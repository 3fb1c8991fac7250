// assign: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie.
// Stage: quantize new keys (e01).
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride], one code per word
//
// One invocation owns one (kv, m, new key); a workgroup owns WG neighbouring ones.
// Source: product quantization, Jegou, Douze, Schmid 2011; the "ip" column: Shrivastava, Li 2014.

override WG: u32;

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

fn nearest_centroid(kv: u32, m: u32, key_at: u32) -> u32 {
  let group = kv * SUBVECTORS + m;
  var last_column = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) {
    var squared_norm = 0.0;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      let x = new_keys[key_at + j];
      squared_norm = fma(x, x, squared_norm);
    }
    last_column = augmented_column(phi[group], squared_norm);
  }
  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var c = 0u; c < CENTROIDS; c++) {
    let centroid_at = (group * CENTROIDS + c) * CENTROID_WIDTH;
    var distance = 0.0;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      distance = add_squared_difference(distance, new_keys[key_at + j], centroids[centroid_at + j]);
    }
    if (CENTROID_WIDTH > SUB_WIDTH) {
      distance = add_squared_difference(distance, last_column, centroids[centroid_at + SUB_WIDTH]);
    }
    if (is_nearer(distance, best_bits)) {
      best = c;
      best_bits = bitcast<u32>(distance);
    }
  }
  return best;
}

@compute @workgroup_size(WG)
fn assign(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < BATCH * KV_HEADS * SUBVECTORS * params.n_new) {
    let i = ix % params.n_new;
    let group = ix / params.n_new;
    let kv = group / SUBVECTORS;
    let m = group % SUBVECTORS;
    let key_ix = kv * params.n_new_keys + params.first_new_key + i;
    let code = nearest_centroid(kv, m, (key_ix * SUBVECTORS + m) * SUB_WIDTH);

    codes[group * params.coded_stride + params.n_coded - params.n_new + i] = code;
  }
}
