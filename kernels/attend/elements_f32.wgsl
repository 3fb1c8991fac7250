// How attention reads keys and values that are f32: eight neighbouring elements are two vectors. Defines no bindings.

fn eight_keys(at: u32) -> Eight {
  return Eight(keys[2u * at], keys[2u * at + 1u]);
}

fn eight_values(at: u32) -> Eight {
  return Eight(values[2u * at], values[2u * at + 1u]);
}

@group(0) @binding(2) var<storage, read> keys: array<vec4f>;
@group(0) @binding(3) var<storage, read> values: array<vec4f>;
