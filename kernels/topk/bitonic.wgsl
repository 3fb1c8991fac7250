// Shared part of every kernel that sorts with one workgroup: the comparators of a bitonic network
// in its normalized form, where the smaller element always goes to the lower position. Positions
// from n on then never move, so no padding is needed: a comparator that reaches past n is skipped.
// Source: Batcher 1968; the normalized form: Knuth, The Art of Computer Programming 3, 5.3.4.
//
// for (block = 2; block < 2n; block *= 2)       one merge of sorted halves
//   flip_pair(t, block) for t in 0 .. n'/2      then, for (gap = block / 4; gap > 0; gap /= 2):
//   gap_pair(t, gap)    for t in 0 .. n'/2      where n' is n rounded up to a power of two

fn flip_pair(t: u32, block: u32) -> vec2u {
  let half = block / 2u;
  let first = t / half * block;
  let offset = t % half;
  return vec2u(first + offset, first + block - 1u - offset);
}

fn gap_pair(t: u32, gap: u32) -> vec2u {
  let low = t / gap * 2u * gap + t % gap;
  return vec2u(low, low + gap);
}

// n rounded up to a power of two; n is at least 1.
fn power_of_two(n: u32) -> u32 {
  return 1u << (32u - countLeadingZeros(n - 1u));
}
