// start_centroids: the start of k-means, k-means++ (Arthur, Vassilvitskii 2007) on the start points: each next centroid is a
// point drawn with a probability that is proportional to its squared distance from those before it. Stage: training.
//
// work:  f32[groups, CENTROID_WIDTH + 1, n_start]: see `start_points.wgsl`; the last row becomes the squared distances
// state: u32[groups, STATE_WORDS]
// model: f32[groups, C + 1, CENTROID_WIDTH + 1], see `train.wgsl`: written whole
//
// One workgroup owns one group; an invocation owns every WG-th point. The draw is a race: each point has an exponentially
// distributed time -log(u) / weight, and the earliest wins, ties to the lower point; so nothing is summed up, and the result
// does not depend on WG.

override WG: u32;

@group(0) @binding(1) var<storage, read_write> work: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> model: array<f32>;

const ORIGIN_POINTS = 64u;
const LARGEST_BITS = 0x7f7fffffu;

var<workgroup> wg_centre: array<f32, MODEL_COLUMNS>;  // 4 bytes per column, and 4
var<workgroup> wg_earliest: atomic<u32>;    // 4 bytes
var<workgroup> wg_pick: atomic<u32>;        // 4 bytes

// Four columns of a point that begins at `at`, columns n apart; without a loop, as one would not be unrolled.
fn add_four(sum: f32, at: u32, n: u32, j: u32) -> f32 {
  let a = work[at + j * n] - wg_centre[j];
  let b = work[at + (j + 1u) * n] - wg_centre[j + 1u];
  let c = work[at + (j + 2u) * n] - wg_centre[j + 2u];
  let d = work[at + (j + 3u) * n] - wg_centre[j + 3u];
  return sum + (fma(a, a, b * b) + fma(c, c, d * d));
}

fn squared_distance(at: u32, n: u32) -> f32 {
  var sum = 0.0;
  for (var j = 0u; j + 16u <= CENTROID_WIDTH; j += 16u) {
    sum = add_four(sum, at, n, j);
    sum = add_four(sum, at, n, j + 4u);
    sum = add_four(sum, at, n, j + 8u);
    sum = add_four(sum, at, n, j + 12u);
  }
  for (var j = CENTROID_WIDTH / 16u * 16u; j < CENTROID_WIDTH; j++) {
    let difference = work[at + j * n] - wg_centre[j];
    sum = fma(difference, difference, sum);
  }
  return sum;
}

@compute @workgroup_size(WG)
fn start_centroids(
  @builtin(workgroup_id) workgroup_id: vec3u,
  @builtin(num_workgroups) num_workgroups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = job_ix(workgroup_id, num_workgroups);
  if (group < N_GROUPS) {
    let n = n_start_points();
    let points = group * MODEL_COLUMNS * n;
    let nearest = points + CENTROID_WIDTH * n;
    let seed = hash(state[group * STATE_WORDS + STATE_SEED] ^ 0x9e3779b9u);

    // The origin: the mean of some points.
    let some = min(n, ORIGIN_POINTS);
    for (var j = lane; j < MODEL_COLUMNS; j += WG) {
      var sum = 0.0;
      var count = 0.0;
      for (var s = 0u; s < some; s++) {
        let t = begin_of(s, n, some);
        if (work[nearest + t] > 0.0) {
          sum += work[points + min(j, CENTROID_WIDTH - 1u) * n + t];
          count += 1.0;
        }
      }
      model[model_row(group, CENTROIDS) + j] = select(sum / max(count, 1.0), 0.0, j == CENTROID_WIDTH);
    }

    for (var c = 0u; c < CENTROIDS; c++) {
      if (lane == 0u) {
        atomicStore(&wg_earliest, 0xffffffffu);
        atomicStore(&wg_pick, 0xffffffffu);
      }
      workgroupBarrier();
      // The earliest of the own points. One that coincides with a centroid may win only if all do.
      var own = 0xffffffffu;
      var own_point = 0u;
      for (var t = lane; t < n; t += WG) {
        let distance = work[nearest + t];
        if (distance >= 0.0) {
          let wait = -log(unit(hash(seed + c * 0x85ebca6bu + t)));
          var time = LARGEST_BITS;
          if (c == 0u) { time = bitcast<u32>(wait); }
          else if (distance > 0.0) { time = min(bitcast<u32>(wait / distance), LARGEST_BITS - 1u); }
          if (time < own) {
            own = time;
            own_point = t;
          }
        }
      }
      atomicMin(&wg_earliest, own);
      workgroupBarrier();
      if (own == atomicLoad(&wg_earliest)) { atomicMin(&wg_pick, own_point); }
      workgroupBarrier();
      let pick = min(atomicLoad(&wg_pick), n - 1u);
      let at = model_row(group, c);
      for (var j = lane; j < CENTROID_WIDTH; j += WG) {
        let x = work[points + j * n + pick];
        wg_centre[j] = x;
        model[at + j] = x - model[model_row(group, CENTROIDS) + j];
      }
      workgroupBarrier();
      for (var t = lane; t < n; t += WG) {
        let before = work[nearest + t];
        if (before > 0.0) {
          work[nearest + t] = min(before, squared_distance(points + t, n));
        }
      }
    }
    storageBarrier();
    write_half_norms(lane, group);
  }
}
