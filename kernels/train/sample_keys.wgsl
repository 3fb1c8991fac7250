// sample_keys: which keys the training looks at, by stratified sampling: slot s takes a random finite key of stratum s, or
// NO_KEY if it has none. Stage: training.
//
// keys:    f32 or f16 [B, Hkv, key_stride, D]
// state:   u32[groups, STATE_WORDS]
// phi:     f32[B, Hkv, M], metric "ip" only
// sampled: u32[B, Hkv, n_new]
// extra:   f32[B, Hkv, M, n_new]: the augmented column, sqrt(max(phi - |x|^2, 0)), metric "ip" only
// finite:  u32[B, Hkv], zero before: slots that have a key
//
// One invocation owns one slot. All subvectors of a kv share its sample, so a key counts as finite if all of it is.

override WG: u32;

@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> sampled: array<u32>;
@group(0) @binding(5) var<storage, read_write> extra: array<f32>;
@group(0) @binding(6) var<storage, read_write> finite: array<atomic<u32>>;

fn is_finite_key(at: u32) -> bool {
  var result = true;
  for (var j = 0u; j < SUBVECTORS * SUB_WIDTH; j++) {
    result = result && (bitcast<u32>(key_value(at + j)) & 0x7f800000u) != 0x7f800000u;
  }
  return result;
}

@compute @workgroup_size(WG)
fn sample_keys(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < BATCH * KV_HEADS * params.n_new) {
    let kv = ix / params.n_new;
    let slot = ix % params.n_new;
    let begin = begin_of(slot, params.n_coded, params.n_new);
    let size = begin_of(slot + 1u, params.n_coded, params.n_new) - begin;
    let first = hash(hash(state[kv * SUBVECTORS * STATE_WORDS + STATE_SEED]) + slot) % size;
    let width = SUBVECTORS * SUB_WIDTH;
    let kv_at = (kv * params.key_stride + params.init_offset) * width;
    var row = NO_KEY;
    for (var tried = 0u; tried < size && row == NO_KEY; tried++) {
      let candidate = begin + (first + tried) % size;
      if (is_finite_key(kv_at + candidate * width)) { row = candidate; }
    }
    sampled[ix] = row;
    if (row != NO_KEY) { atomicAdd(&finite[kv], 1u); }
    if (CENTROID_WIDTH > SUB_WIDTH && row != NO_KEY) {
      for (var m = 0u; m < SUBVECTORS; m++) {
        let at = kv_at + row * width + m * SUB_WIDTH;
        var norm = 0.0;
        for (var j = 0u; j < SUB_WIDTH; j++) {
          let x = key_value(at + j);
          norm = fma(x, x, norm);
        }
        let group = kv * SUBVECTORS + m;
        extra[group * params.n_new + slot] = sqrt(max(phi[group] - norm, 0.0));
      }
    }
  }
}
