// How cached values are read: f32, eight neighbouring columns are two vectors.

@group(0) @binding(2) var<storage, read> values: array<vec4f>;

fn eight_values(at: u32) -> Eight {
  return Eight(values[2u * at], values[2u * at + 1u]);
}
