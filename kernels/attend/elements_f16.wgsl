// In place of `elements_f32.wgsl` where keys and values are f16, two per word: eight neighbouring elements are one vector.
// Needs no optional feature: the words are unpacked to f32.

fn unpacked(words: vec4u) -> Eight {
  return Eight(
    vec4f(unpack2x16float(words.x), unpack2x16float(words.y)),
    vec4f(unpack2x16float(words.z), unpack2x16float(words.w)),
  );
}

fn eight_keys(at: u32) -> Eight {
  return unpacked(keys[at]);
}

fn eight_values(at: u32) -> Eight {
  return unpacked(values[at]);
}

@group(0) @binding(2) var<storage, read> keys: array<vec4u>;
@group(0) @binding(3) var<storage, read> values: array<vec4u>;
