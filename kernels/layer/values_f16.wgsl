// In place of `values_f32.wgsl` where values are f16, two per word: eight neighbouring columns are one vector. Needs no
// optional feature: the words are unpacked to f32.

@group(0) @binding(2) var<storage, read> values: array<vec4u>;

fn eight_values(at: u32) -> Eight {
  return unpacked(values[at]);
}
