// Attention whose tokens carry weights: exp(score) is multiplied by them, and 0 excludes. The binding is this part's.
//
// weights: f32[B, LIST_HEADS, rows, weight_stride]

@group(0) @binding(9) var<storage, read> weights: array<f32>;

fn weight_of(list_ix: u32, token: u32) -> f32 {
  return weights[shared_list(list_ix) * params.weight_stride + min(token, params.weight_stride - 1u)];
}
