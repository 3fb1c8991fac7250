// gather: gathered[l, m, i] = lut[l, m, code[kv(l), m, i]].
// Stage: score (e01).
//
// lut:      f32[B, H, rows, M, C]
// codes:    u32[B, Hkv, M, coded_stride], one code per word
// gathered: f32[B, H, rows, M, coded_stride]
//
// One invocation owns one element; a workgroup owns WG neighbouring ones.

override WG: u32;

@group(0) @binding(1) var<storage, read> lut: array<f32>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> gathered: array<f32>;

@compute @workgroup_size(WG)
fn gather(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups) * WG + lane;
  if (ix < n_lists() * SUBVECTORS * params.n_coded) {
    let i = ix % params.n_coded;
    let table_row = ix / params.n_coded;
    let m = table_row % SUBVECTORS;
    let kv = kv_of_list(table_row / SUBVECTORS);

    let code = codes[(kv * SUBVECTORS + m) * params.coded_stride + i];

    gathered[table_row * params.coded_stride + i] = lut[table_row * CENTROIDS + code];
  }
}
