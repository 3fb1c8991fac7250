// In place of `keys_f32.wgsl` where keys are f16, two per word: eight neighbouring columns are one vector. Needs no
// optional feature: the words are unpacked to f32.

@group(0) @binding(10) var<storage, read> keys: array<vec4u>;

fn eight_keys(at: u32) -> Eight {
  return unpacked(keys[at]);
}
