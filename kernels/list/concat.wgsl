// concat: indices[l, :] = [sink | heavy | window], not sorted yet; lengths[l] = how many.
// Stage: list (e01). A short sequence lists everything: its row has n_sink = n_tokens.
//
// heavy:    u32[B, H, rows, heavy_stride]
// indices:  u32[B, H, rows, list_stride]
// lengths:  u32[B, H, rows]
//
// One invocation owns one position of a list; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> heavy: array<u32>;
@group(0) @binding(2) var<storage, read_write> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(WG)
fn concat(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * params.list_stride) {
    let j = ix % params.list_stride;
    let list_ix = ix / params.list_stride;
    let r = list_ix % params.n_rows;
    let n_sink = params.rows[r].n_sink;
    let n_before_window = n_sink + params.rows[r].n_heavy;
    let length = params.rows[r].list_length;
    if (j == 0u) { lengths[list_ix] = length; }
    if (j < length) {
      var token = j;
      if (j >= n_before_window) {
        token = params.rows[r].window_begin + j - n_before_window;
      } else if (j >= n_sink) {
        token = heavy[list_ix * params.heavy_stride + j - n_sink];
      }
      indices[ix] = token;
    }
  }
}
