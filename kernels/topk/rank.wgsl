// Shared part of every kernel that compares scores: a rank is a u32 that orders as scores do.
//
// 0 is "no candidate", 1 is NaN, then -inf < ... < -0 = +0 < ... < +inf. The bits are tested, not
// the floats: compilers fold `x != x` away, and the usual sortable key would put NaN highest and
// -0 below +0.

const NO_CANDIDATE = 0u;

fn rank_of(score: f32) -> u32 {
  let bits = bitcast<u32>(score);
  let magnitude = bits & 0x7fffffffu;
  let number = select(bits | 0x80000000u, ~bits, bits > 0x7fffffffu);
  let number_or_zero = select(number, 0x80000000u, magnitude == 0u);
  return select(number_or_zero, 1u, magnitude > 0x7f800000u);
}
