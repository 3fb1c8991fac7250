// How keys are read: f32[B, Hkv, key_stride, D].

@group(0) @binding(1) var<storage, read> keys: array<f32>;

fn key_value(at: u32) -> f32 {
  return keys[at];
}
