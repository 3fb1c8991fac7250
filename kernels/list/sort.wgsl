// sort: indices[l, :] in ascending order, in place.
// Stage: list (e01).
//
// indices: u32[B, H, rows, list_stride]
//
// One workgroup owns one list and sorts it through storage, with a bitonic network.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> indices: array<u32>;

fn put_lower_first(at: u32, pair: vec2u, n: u32) {
  if (pair.y < n) {
    let a = indices[at + pair.x];
    let b = indices[at + pair.y];
    if (b < a) {
      indices[at + pair.x] = b;
      indices[at + pair.y] = a;
    }
  }
}

@compute @workgroup_size(WG)
fn sort(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let list_ix = job_ix(workgroup_id, num_workgroups);
  let length = params.rows[list_ix % params.n_rows].list_length;
  if (list_ix < n_lists() && length > 0u) {
    let at = list_ix * params.list_stride;
    let n_pairs = power_of_two(length) / 2u;
    for (var block = 2u; block <= 2u * n_pairs; block *= 2u) {
      for (var t = lane; t < n_pairs; t += WG) {
        put_lower_first(at, flip_pair(t, block), length);
      }
      storageBarrier();
      for (var gap = block / 4u; gap > 0u; gap /= 2u) {
        for (var t = lane; t < n_pairs; t += WG) {
          put_lower_first(at, gap_pair(t, gap), length);
        }
        storageBarrier();
      }
    }
  }
}
