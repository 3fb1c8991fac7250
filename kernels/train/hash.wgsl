// Random numbers without a state: PCG's output function as a hash (O'Neill 2014; Jarzynski, Olano 2020).

fn hash(x: u32) -> u32 {
  let s = x * 747796405u + 2891336453u;
  let word = ((s >> ((s >> 28u) + 4u)) ^ s) * 277803737u;
  return (word >> 22u) ^ word;
}

// Uniform in (0, 1): 23 bits, in the middle of their interval, which f32 holds exactly.
fn unit(bits: u32) -> f32 {
  return (f32(bits >> 9u) + 0.5) / 8388608.0;
}
