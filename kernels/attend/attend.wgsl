// Shared part of the attention kernels: how partial results lie. A part is PART tokens of one list; where a list has one
// part only, its result goes to the output at once.
//
// partial: f32[lists, n_parts(), D + 2]: the weighted sum of values, then the maximum and the sum of the weights.

override HEAD_WIDTH: u32;  // D, a multiple of 8, at most 256
override PART: u32;        // tokens per part

fn n_parts() -> u32 {
  return (params.attended + PART - 1u) / PART;
}
