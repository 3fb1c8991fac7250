// attend_merge: the parts of each list's attention become one. Follows attend_parts where lists have several parts.
//
// partial: f32[lists, n_parts(), D + 2], see `attend.wgsl`
// output:  f32[B, H, rows, D]
//
// One workgroup owns one list, an invocation a column. Parts count relative to the largest score of all.

override WG: u32;  // a power of two

@group(0) @binding(1) var<storage, read> partial: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const NONE = -3.4028234e38;  // below every score

@compute @workgroup_size(WG)
fn attend_merge(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  if (list_ix < n_lists()) {
    let row = HEAD_WIDTH + 2u;
    let first = list_ix * n_parts() * row;
    var own = NONE;
    for (var p = lane; p < n_parts(); p += WG) { own = max(own, partial[first + p * row + HEAD_WIDTH]); }
    let largest = greatest(lane, own);
    var share = 0.0;
    for (var p = lane; p < n_parts(); p += WG) {
      let at = first + p * row + HEAD_WIDTH;
      share = fma(exp(partial[at] - largest), partial[at + 1u], share);
    }
    let sum = total(lane, share);
    for (var column = lane; column < HEAD_WIDTH; column += WG) {
      var all = 0.0;
      for (var p = 0u; p < n_parts(); p++) {
        let at = first + p * row;
        all = fma(exp(partial[at + HEAD_WIDTH] - largest), partial[at + column], all);
      }
      output[list_ix * HEAD_WIDTH + column] = select(all / sum, 0.0, sum == 0.0);
    }
  }
}
