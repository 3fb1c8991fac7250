// Shared part of everything that sums over the columns of a subvector. All kernels add up in one order,
// whether one invocation walks all columns or 16 share them, so all GPU pipelines agree to the byte:
// partial sum p takes columns p, p + 16, p + 32, ... upwards by fma, from 0; then the partial sums that are
// 8 apart are added, then those 4, 2 and 1 apart. The chain is d / 16 + 4 long instead of d.

const N_PARTS = 16u;

// Partial sums 0 .. 3, 4 .. 7, 8 .. 11 and 12 .. 15.
fn add_parts(a: vec4f, b: vec4f, c: vec4f, d: vec4f) -> f32 {
  let four = (a + c) + (b + d);
  let two = four.xy + four.zw;
  return two.x + two.y;
}

// Whether column first + part exists, for a multiple `first` of 16; known to the compiler for whole blocks.
fn has_column(part: u32, first: u32) -> bool {
  return first + N_PARTS <= SUB_WIDTH || first + part < SUB_WIDTH;
}
