// Shared part of the kernels that code the step's new keys into packed codes: one workgroup owns one word that
// the new keys touch, and so up to four of them: WGSL has no byte stores, and two owners of one word would
// race. Bytes of older keys stay, later ones become 0. Needs codes (written) and nearest_of_key.

// Words per (kv, m) that the step's new keys touch.
fn n_new_words() -> u32 {
  if (params.n_new == 0u) { return 0u; }
  return (params.n_coded + 3u) / 4u - (params.n_coded - params.n_new) / 4u;
}

// Codes the keys of job job_ix out of BATCH * KV_HEADS * SUBVECTORS * n_new_words(). In uniform control flow only.
fn code_word(lane: u32, job: u32) {
  let first = params.n_coded - params.n_new;
  let group = job / n_new_words();
  let word_ix = first / 4u + job % n_new_words();
  let at = group * (params.coded_stride / 4u) + word_ix;

  // Lane 0's copy alone is stored; it is the only one that reads what it will write.
  var word = 0u;
  if (lane == 0u && word_ix == first / 4u) {
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
