// In place of `key_f32.wgsl` where keys are f16[B, Hkv, key_stride, D], two per word. Needs no optional feature.

@group(0) @binding(1) var<storage, read> keys: array<u32>;

fn key_value(at: u32) -> f32 {
  let pair = unpack2x16float(keys[at / 2u]);
  return select(pair.x, pair.y, (at & 1u) == 1u);
}
