// sum_clusters: for each centroid the sum of its keys, by parts of the sample. Stage: training, third of an iteration.
//
// keys, sampled, extra: see `sample_keys.wgsl`
// model, state, owners: see `assign_sample.wgsl`
// work: f32[groups, parts, C, CENTROID_WIDTH]: sums relative to the origin, slots upwards
//
// One workgroup owns WG columns of one part of a group, an invocation one column, of which it keeps the sums of all
// centroids in workgroup memory: nobody else touches them, so there are neither atomics nor barriers, and one order of sums.

override WG: u32;
override PART: u32;              // slots per part, a multiple of 32
override SUMS: u32 = WG * CENTROIDS;

@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read> model: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<u32>;
@group(0) @binding(6) var<storage, read> owners: array<u32>;
@group(0) @binding(7) var<storage, read_write> work: array<f32>;

var<workgroup> wg_sums: array<f32, SUMS>;  // 4 bytes per centroid and column, 16 KiB at most

fn value(group: u32, slot: u32, j: u32, origin: f32) -> f32 {
  let is_slot = slot < params.n_new;
  let row = select(NO_KEY, sampled[group / SUBVECTORS * params.n_new + select(0u, slot, is_slot)], is_slot);
  return point_column(group, slot, row, point_at(group, row), j, origin);
}

fn four_values(group: u32, slot: u32, j: u32, origin: f32) -> vec4f {
  return vec4f(
    value(group, slot, j, origin),
    value(group, slot + 1u, j, origin),
    value(group, slot + 2u, j, origin),
    value(group, slot + 3u, j, origin),
  );
}

fn add_four(codes: u32, values: vec4f, lane: u32) {
  wg_sums[extractBits(codes, 0u, 8u) * WG + lane] += values.x;
  wg_sums[extractBits(codes, 8u, 8u) * WG + lane] += values.y;
  wg_sums[extractBits(codes, 16u, 8u) * WG + lane] += values.z;
  wg_sums[extractBits(codes, 24u, 8u) * WG + lane] += values.w;
}

@compute @workgroup_size(WG)
fn sum_clusters(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  let n_columns = (CENTROID_WIDTH + WG - 1u) / WG;
  let n_parts = (params.n_new + PART - 1u) / PART;
  if (ix >= N_GROUPS * n_parts * n_columns) { return; }
  let group = ix / n_columns / n_parts;
  let part = ix / n_columns % n_parts;
  let j = ix % n_columns * WG + lane;
  if (state[group * STATE_WORDS + STATE_DONE] != 0u) { return; }

  for (var c = 0u; c < CENTROIDS; c++) { wg_sums[c * WG + lane] = 0.0; }
  let origin = origin_column(group, j);
  let words = group * ((params.n_new + 127u) / 128u * 32u);
  let end = min((part + 1u) * PART, params.n_new);
  // So many slots at a time that their loads are under way together, and those of the next ones meanwhile.
  var a = four_values(group, part * PART + 0u, j, origin);
  var b = four_values(group, part * PART + 4u, j, origin);
  var c = four_values(group, part * PART + 8u, j, origin);
  var d = four_values(group, part * PART + 12u, j, origin);
  var e = four_values(group, part * PART + 16u, j, origin);
  var f = four_values(group, part * PART + 20u, j, origin);
  var g = four_values(group, part * PART + 24u, j, origin);
  var h = four_values(group, part * PART + 28u, j, origin);
  for (var slot = part * PART; slot < end; slot += 32u) {
    let next_a = four_values(group, slot + 32u, j, origin);
    let next_b = four_values(group, slot + 36u, j, origin);
    let next_c = four_values(group, slot + 40u, j, origin);
    let next_d = four_values(group, slot + 44u, j, origin);
    let next_e = four_values(group, slot + 48u, j, origin);
    let next_f = four_values(group, slot + 52u, j, origin);
    let next_g = four_values(group, slot + 56u, j, origin);
    let next_h = four_values(group, slot + 60u, j, origin);
    let word = words + slot / 4u;
    add_four(owners[word + 0u], a, lane);
    add_four(owners[word + 1u], b, lane);
    add_four(owners[word + 2u], c, lane);
    add_four(owners[word + 3u], d, lane);
    add_four(owners[word + 4u], e, lane);
    add_four(owners[word + 5u], f, lane);
    add_four(owners[word + 6u], g, lane);
    add_four(owners[word + 7u], h, lane);
    a = next_a;
    b = next_b;
    c = next_c;
    d = next_d;
    e = next_e;
    f = next_f;
    g = next_g;
    h = next_h;
  }
  if (j < CENTROID_WIDTH) {
    let at = (group * n_parts + part) * CENTROIDS * CENTROID_WIDTH + j;
    for (var c = 0u; c < CENTROIDS; c++) { work[at + c * CENTROID_WIDTH] = wg_sums[c * WG + lane]; }
  }
}
