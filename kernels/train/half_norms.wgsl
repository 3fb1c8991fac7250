// Shared part of the kernels that write centroids: half of each one's squared norm, by one order of sums. Needs model and
// WG. The centroids must be visible to the whole workgroup.

fn write_half_norms(lane: u32, group: u32) {
  for (var c = lane; c < CENTROIDS; c += WG) {
    let at = model_row(group, c);
    var sum = 0.0;
    for (var j = 0u; j < CENTROID_WIDTH; j++) { sum = fma(model[at + j], model[at + j], sum); }
    model[at + CENTROID_WIDTH] = 0.5 * sum;
  }
}
