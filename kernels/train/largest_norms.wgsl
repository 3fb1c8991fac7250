// largest_norms: phi[group] = max over keys of |x|^2, over finite subvectors. Stage: training, metric "ip" only.
//
// keys: f32 or f16 [B, Hkv, key_stride, D]
// phi:  f32[B, Hkv, M], zero before; written as bits, which order as the numbers do, so that the order does not matter
//
// One invocation owns one subvector of one key.

override WG: u32;

@group(0) @binding(2) var<storage, read_write> phi: array<atomic<u32>>;

@compute @workgroup_size(WG)
fn largest_norms(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < params.n_coded * N_GROUPS) {
    let m = ix % SUBVECTORS;
    let kv = ix / SUBVECTORS / params.n_coded;
    let token = kv * params.key_stride + params.init_offset + ix / SUBVECTORS % params.n_coded;
    let at = (token * SUBVECTORS + m) * SUB_WIDTH;
    var norm = 0.0;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      let x = key_value(at + j);
      norm = fma(x, x, norm);
    }
    // The bits are tested: a NaN or infinite key has no norm; a finite one whose square overflows has +inf.
    var is_finite = true;
    for (var j = 0u; j < SUB_WIDTH; j++) {
      is_finite = is_finite && (bitcast<u32>(key_value(at + j)) & 0x7f800000u) != 0x7f800000u;
    }
    if (is_finite) { atomicMax(&phi[kv * SUBVECTORS + m], bitcast<u32>(norm)); }
  }
}
