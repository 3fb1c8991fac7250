// score_lookup: score[l, i] = sum over m of lut[m, code[kv(l), m, i]], m ascending,
// lut[m, c] = q[l, m, :] . centroid[kv(l), m, c, :].
// Stage: score (e03). From score of e02: the table is back, but in workgroup memory, built by every
// workgroup for its own tile; codes are bytes, four tokens per load; scores are stored four at a time.
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
// scores:    f32[B, H, rows, coded_stride]
//
// One workgroup owns a tile of WG * WORDS * 4 tokens of one list; invocation `lane` owns words lane,
// lane + WG, ... of it, so that neighbours read neighbouring words. Tokens past n_coded in the last
// word get a score that nobody reads. Precondition: coded_stride is a multiple of 4.

override WG: u32;
override WORDS: u32;  // words per invocation

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scores: array<vec4f>;

@compute @workgroup_size(WG)
fn score_lookup(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let n_words = (params.n_coded + 3u) / 4u;
  let n_tiles = (n_words + WG * WORDS - 1u) / (WG * WORDS);
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < n_lists() * n_tiles) {
    let list_ix = ix / n_tiles;
    let tile = ix % n_tiles;
    let stride = params.coded_stride / 4u;
    let first_group = kv_of_list(list_ix) * SUBVECTORS;
    fill_table(lane, list_ix, first_group);
    workgroupBarrier();

    for (var k = 0u; k < WORDS; k++) {
      let w = (tile * WORDS + k) * WG + lane;
      if (w < n_words) {
        var score = look_up(0u, codes[first_group * stride + w]);
        for (var m = 1u; m < SUBVECTORS; m++) {
          score += look_up(m, codes[(first_group + m) * stride + w]);
        }

        scores[list_ix * stride + w] = score;
      }
    }
  }
}
