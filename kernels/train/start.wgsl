// Shared part of the kernels of the start: how many points it is drawn from.

override MOST_START: u32;  // 16 per centroid, 1024 at least

fn n_start_points() -> u32 {
  return min(params.n_new, MOST_START);
}
