// Shared part of the attention kernels: how partial results lie. A part is one or more rounds of ROUND tokens of one list;
// where a list has one part only, its result goes to the output at once. Few lists, or short ones, make short parts,
// so that there is work for the whole GPU; many make long ones, which share what a workgroup begins and ends with.
//
// partial: f32[lists, n_parts(), D + 2]: the weighted sum of values, then the maximum and the sum of the weights.

override HEAD_WIDTH: u32;   // D, a multiple of 8, at most 256
override ROUND: u32;        // tokens per round
override MOST_ROUNDS: u32;  // per part
override WORKGROUPS: u32;   // as many as rounds are to leave

fn part_tokens() -> u32 {
  let step = ROUND * max(WORKGROUPS / max(n_lists(), 1u), 1u);
  return ROUND * clamp((params.attended + step - 1u) / step, 1u, MOST_ROUNDS);
}

fn n_parts() -> u32 {
  return (params.attended + part_tokens() - 1u) / part_tokens();
}
