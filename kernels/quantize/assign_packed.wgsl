// assign_packed: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie.
// Stage: quantize new keys (e03). As assign of e01, but codes lie four per word.
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
//
// One workgroup owns one word that the new keys touch, and so up to four of them: WGSL has no byte
// stores, and two owners of one word would race. Bytes of older keys stay, later ones become 0.
// Precondition: coded_stride is a multiple of 4.

override WG: u32;

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

@compute @workgroup_size(WG)
fn assign_packed(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = params.n_coded - params.n_new;
  let first_word = first / 4u;
  let n_words = (params.n_coded + 3u) / 4u - first_word;
  let ix = job_ix(workgroup_id, num_workgroups);
  if (params.n_new > 0u && ix < BATCH * KV_HEADS * SUBVECTORS * n_words) {
    let group = ix / n_words;
    let word_ix = first_word + ix % n_words;
    let at = group * (params.coded_stride / 4u) + word_ix;

    // Lane 0's copy alone is stored; it is the only one that reads what it will write.
    var word = 0u;
    if (lane == 0u && word_ix == first_word) {
      word = extractBits(codes[at], 0u, first % 4u * 8u);
    }
    for (var slot = 0u; slot < 4u; slot++) {
      let i = word_ix * 4u + slot;
      if (i >= first && i < params.n_coded) {
        let code = nearest_of_key(lane, group, key_at(group, i - first));
        word = insertBits(word, code, slot * 8u, 8u);
      }
    }

    if (lane == 0u) { codes[at] = word; }
  }
}
