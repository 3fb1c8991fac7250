// merge_list: the n_heavy best of the tiles' candidates of a list, ties to the lower token, between sink and
// window: indices[l, :] = [sink | heavy | window], ascending; lengths[l] = how many; weights[l, :] = 1 at them.
// Stages: top-K and list (e05). Replaces merge, offset, concat, sort, zeros and scatter of e04.
//
// candidate_ranks: u32[B, H, rows, tiles, kept], 0 where a tile has fewer
// candidate_ix:    u32[B, H, rows, tiles, kept], ascending where the rank is not 0
// indices:         u32[B, H, rows, list_stride]
// lengths:         u32[B, H, rows]
// weights:         f32[B, H, rows, weight_stride], if weights are written
//
// One workgroup owns one list. Candidates come in the order of their tokens, and so does what an ordered
// compaction keeps of them: nothing is sorted. The sink ends before the first candidate and the window begins
// after the last. A short sequence lists everything: its row has n_sink = n_tokens.
// Precondition: at least n_heavy ranks are above 0.

override WG: u32;

@group(0) @binding(1) var<storage, read> candidate_ranks: array<u32>;
@group(0) @binding(2) var<storage, read> candidate_ix: array<u32>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;
@group(0) @binding(4) var<storage, read_write> lengths: array<u32>;

var<workgroup> wg_before: vec2u;

var<private> first_entry: u32;

fn count_ranks(lane: u32, shift: u32, key: u32) {
  for (var i = lane; i < n_tiles() * kept(); i += WG) {
    count_rank(candidate_ranks[first_entry + i], shift, key);
  }
}

fn put(list_ix: u32, at: u32, token: u32) {
  indices[list_ix * params.list_stride + at] = token;
  set_weight(list_ix, token, 1.0);
}

@compute @workgroup_size(WG)
fn merge_list(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    let row = params.rows[list_ix % params.n_rows];
    first_entry = list_ix * tiles_stride();
    clear_weights(lane, list_ix);
    storageBarrier();

    for (var j = lane; j < row.n_sink; j += WG) { put(list_ix, j, j); }
    for (var j = lane; j < row.n_tokens - row.window_begin; j += WG) {
      put(list_ix, row.n_sink + row.n_heavy + j, row.window_begin + j);
    }
    if (lane == 0u) { lengths[list_ix] = row.list_length; }

    if (row.n_heavy > 0u) {
      let kth = find_kth(lane, row.n_heavy);
      let n_entries = n_tiles() * kept();
      // (ranks above the threshold, ranks equal to it) before the entries of this turn.
      var before = vec2u();
      for (var first = 0u; first < n_entries; first += WG) {
        let i = first + lane;
        var rank = NO_CANDIDATE;
        if (i < n_entries) { rank = candidate_ranks[first_entry + i]; }
        let leading = rank >> kth.shift;
        let is_above = rank != NO_CANDIDATE && leading > kth.key;
        let is_equal = rank != NO_CANDIDATE && leading == kth.key;
        let flags = vec2u(u32(is_above), u32(is_equal));
        let upto = before + scan_inclusive(lane, flags);
        if (is_above || (is_equal && upto.y <= kth.need)) {
          let at = upto.x + min(upto.y, kth.need) - 1u;
          put(list_ix, row.n_sink + at, params.init_offset + candidate_ix[first_entry + i]);
        }
        if (lane == WG - 1u) { wg_before = upto; }
        before = workgroupUniformLoad(&wg_before);
      }
    }
  }
}
