// Shared part of the kernels that read cached keys and values: eight neighbouring columns at a time, sixteen bytes of f16.

struct Eight {
  a: vec4f,
  b: vec4f,
}

fn unpacked(words: vec4u) -> Eight {
  return Eight(
    vec4f(unpack2x16float(words.x), unpack2x16float(words.y)),
    vec4f(unpack2x16float(words.z), unpack2x16float(words.w)),
  );
}

fn product(x: Eight, y: Eight) -> f32 {
  let z = fma(x.b, y.b, x.a * y.a);
  return (z.x + z.y) + (z.z + z.w);
}
