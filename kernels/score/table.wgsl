// table: lut[l, m, c] = q[l, m, :] . centroid[kv(l), m, c, :], the first d columns.
// Stage: score (e01).
//
// query:     f32[B, H, rows, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// lut:       f32[B, H, rows, M, C]
//
// One invocation owns one entry; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> lut: array<f32>;

@compute @workgroup_size(WG)
fn table(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * SUBVECTORS * CENTROIDS) {
    let c = ix % CENTROIDS;
    let m = ix / CENTROIDS % SUBVECTORS;
    let list_ix = ix / (CENTROIDS * SUBVECTORS);
    let query_at = (list_ix * SUBVECTORS + m) * SUB_WIDTH;
    let centroid_at = ((kv_of_list(list_ix) * SUBVECTORS + m) * CENTROIDS + c) * CENTROID_WIDTH;

    lut[ix] = product(query_at, centroid_at);
  }
}
