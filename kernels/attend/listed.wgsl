// Attention over the tokens of lists. Bindings are this part's.
//
// indices: u32[B, H, rows, list_stride]
// lengths: u32[B, H, rows]

@group(0) @binding(6) var<storage, read> indices: array<u32>;
@group(0) @binding(7) var<storage, read> lengths: array<u32>;

fn list_length(list_ix: u32) -> u32 {
  return min(lengths[list_ix], params.list_stride);
}

fn listed_token(list_ix: u32, at: u32) -> u32 {
  return min(indices[list_ix * params.list_stride + at], params.key_stride - 1u);
}
