// assign_many: code[kv, m, i] = argmin over c of sum_j (x[j] - centroid[kv, m, c, j])^2, lowest c on a tie, as
// assign_packed, for many new keys at once: prompts, and what a codebook was trained on. Stage: quantize new keys.
//
// new_keys:  f32[B, Hkv, n_new_keys, D]
// centroids: f32[B, Hkv, M, C, CENTROID_WIDTH]
// phi:       f32[B, Hkv, M], metric "ip" only
// codes:     u32[B, Hkv, M, coded_stride / 4], four codes per word, the lowest byte first
//
// An invocation owns a key's subvector and keeps it in registers; centroids go through workgroup memory, CHUNK at a time,
// and all invocations read the same one at once. A workgroup owns WG / 4 words of codes. Columns are summed in the order of
// `columns.wgsl`: what is past the last adds 0, which changes no sum.
// Preconditions: SUB_WIDTH is 64 at most; coded_stride is a multiple of 4.

override WG: u32;     // a multiple of 4
override CHUNK: u32;  // centroids in workgroup memory at a time

@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read> phi: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

override BLOCKS: u32 = (SUB_WIDTH + N_PARTS - 1u) / N_PARTS;  // of sixteen columns
override CHUNK_FOURS: u32 = CHUNK * BLOCKS * 4u;

var<workgroup> wg_centroids: array<vec4f, CHUNK_FOURS>;  // 64 bytes per block and centroid
var<workgroup> wg_last: array<f32, CHUNK>;               // the column of metric "ip"
var<workgroup> wg_codes: array<u32, WG>;                 // 4 bytes per invocation

// A block of sixteen columns, or the partial sums.
struct Sixteen {
  a: vec4f,
  b: vec4f,
  c: vec4f,
  d: vec4f,
}

fn key_column(at: u32, j: u32) -> f32 {
  return select(0.0, new_keys[at + min(j, SUB_WIDTH - 1u)], j < SUB_WIDTH);
}

fn key_four(at: u32, j: u32) -> vec4f {
  return vec4f(key_column(at, j), key_column(at, j + 1u), key_column(at, j + 2u), key_column(at, j + 3u));
}

fn key_block(at: u32, j: u32) -> Sixteen {
  return Sixteen(key_four(at, j), key_four(at, j + 4u), key_four(at, j + 8u), key_four(at, j + 12u));
}

fn centroid_column(at: u32, j: u32) -> f32 {
  return select(0.0, centroids[at + min(j, SUB_WIDTH - 1u)], j < SUB_WIDTH);
}

// Four squared differences added, column by column as `add_squared_difference`.
fn add_four(sum: vec4f, x: vec4f, c: vec4f) -> vec4f {
  let t = x - c;
  return fma(t, t, sum);
}

fn add_block(sum: Sixteen, x: Sixteen, at: u32) -> Sixteen {
  return Sixteen(
    add_four(sum.a, x.a, wg_centroids[at]),
    add_four(sum.b, x.b, wg_centroids[at + 1u]),
    add_four(sum.c, x.c, wg_centroids[at + 2u]),
    add_four(sum.d, x.d, wg_centroids[at + 3u]),
  );
}

fn add_squares(sum: Sixteen, x: Sixteen) -> Sixteen {
  return Sixteen(
    fma(x.a, x.a, sum.a),
    fma(x.b, x.b, sum.b),
    fma(x.c, x.c, sum.c),
    fma(x.d, x.d, sum.d),
  );
}

// Stages centroids first .. first + CHUNK of a group. Ends with a barrier.
fn stage(lane: u32, group: u32, first: u32) {
  for (var i = lane; i < CHUNK_FOURS; i += WG) {
    let c = first + i / (4u * BLOCKS);
    let j = i % (4u * BLOCKS) * 4u;
    let at = (group * CENTROIDS + min(c, CENTROIDS - 1u)) * CENTROID_WIDTH;
    wg_centroids[i] = vec4f(
      centroid_column(at, j),
      centroid_column(at, j + 1u),
      centroid_column(at, j + 2u),
      centroid_column(at, j + 3u),
    );
  }
  if (CENTROID_WIDTH > SUB_WIDTH) {
    for (var i = lane; i < CHUNK; i += WG) {
      wg_last[i] = centroids[(group * CENTROIDS + min(first + i, CENTROIDS - 1u)) * CENTROID_WIDTH + SUB_WIDTH];
    }
  }
  workgroupBarrier();
}

// The code of the subvector that begins at `at`. In uniform control flow only.
fn nearest_in_registers(lane: u32, group: u32, at: u32) -> u32 {
  let x_0 = key_block(at, 0u);
  var x_1 = Sixteen();
  var x_2 = Sixteen();
  var x_3 = Sixteen();
  if (BLOCKS > 1u) { x_1 = key_block(at, 16u); }
  if (BLOCKS > 2u) { x_2 = key_block(at, 32u); }
  if (BLOCKS > 3u) { x_3 = key_block(at, 48u); }
  var last = 0.0;
  if (CENTROID_WIDTH > SUB_WIDTH) {
    var squares = add_squares(Sixteen(), x_0);
    if (BLOCKS > 1u) { squares = add_squares(squares, x_1); }
    if (BLOCKS > 2u) { squares = add_squares(squares, x_2); }
    if (BLOCKS > 3u) { squares = add_squares(squares, x_3); }
    last = augmented_column(phi[group], add_parts(squares.a, squares.b, squares.c, squares.d));
  }

  var best = 0u;
  var best_bits = NO_DISTANCE;
  for (var first = 0u; first < CENTROIDS; first += CHUNK) {
    if (first > 0u) { workgroupBarrier(); }
    stage(lane, group, first);
    for (var c = 0u; c < min(CHUNK, CENTROIDS - first); c++) {
      let row = c * BLOCKS * 4u;
      var sum = add_block(Sixteen(), x_0, row);
      if (BLOCKS > 1u) { sum = add_block(sum, x_1, row + 4u); }
      if (BLOCKS > 2u) { sum = add_block(sum, x_2, row + 8u); }
      if (BLOCKS > 3u) { sum = add_block(sum, x_3, row + 12u); }
      var distance = add_parts(sum.a, sum.b, sum.c, sum.d);
      if (CENTROID_WIDTH > SUB_WIDTH) { distance = add_squared_difference(distance, last, wg_last[c]); }
      if (is_nearer(distance, best_bits)) {
        best = first + c;
        best_bits = bitcast<u32>(distance);
      }
    }
  }
  return best;
}

// Words of a group that a workgroup owns: WG / 4 from the first that new keys touch on.
fn n_tiles() -> u32 {
  let words = (params.n_coded + 3u) / 4u - (params.n_coded - params.n_new) / 4u;
  return (words + WG / 4u - 1u) / (WG / 4u);
}

@compute @workgroup_size(WG)
fn assign_many(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ix = job_ix(workgroup_id, num_workgroups);
  if (ix < BATCH * KV_HEADS * SUBVECTORS * n_tiles()) {
    let group = ix / n_tiles();
    let first = params.n_coded - params.n_new;
    let begin = first / 4u * 4u + ix % n_tiles() * WG;  // a multiple of 4
    let i = begin + lane;
    let near = clamp(i, first, params.n_coded - 1u);
    wg_codes[lane] = select(0u, nearest_in_registers(lane, group, key_at(group, near - first)), i >= first && i < params.n_coded);
    workgroupBarrier();
    if (lane % 4u == 0u && i < params.n_coded) {
      let at = group * (params.coded_stride / 4u) + i / 4u;
      var word = wg_codes[lane] | (wg_codes[lane + 1u] << 8u) | (wg_codes[lane + 2u] << 16u) | (wg_codes[lane + 3u] << 24u);
      if (i < first) { word |= extractBits(codes[at], 0u, first % 4u * 8u); }  // older keys'
      codes[at] = word;
    }
  }
}
