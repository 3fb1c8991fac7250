// How cached keys are read: f32, eight neighbouring columns are two vectors.

@group(0) @binding(10) var<storage, read> keys: array<vec4f>;

fn eight_keys(at: u32) -> Eight {
  return Eight(keys[2u * at], keys[2u * at + 1u]);
}
