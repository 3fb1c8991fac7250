// Shared part of the kernels that count two things at once. Needs scan_sum. Totals stay below 65,536.

fn scan_inclusive(lane: u32, value: vec2u) -> vec2u {
  let sum = scan_sum(lane, value.x | (value.y << 16u));
  return vec2u(sum & 0xffffu, sum >> 16u);
}
