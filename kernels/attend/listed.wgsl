// Attention over the tokens of lists, one per query head or one for the heads of a KV head. Bindings are this part's.
//
// indices: u32[B, LIST_HEADS, rows, list_stride]
// lengths: u32[B, LIST_HEADS, rows]

override LIST_HEADS: u32;  // H, or a divisor of it

// Which list query head and row `list_ix` attend to.
fn shared_list(list_ix: u32) -> u32 {
  if (LIST_HEADS == HEADS) { return list_ix; }
  return list_ix / params.n_rows / (HEADS / LIST_HEADS) * params.n_rows + list_ix % params.n_rows;
}

@group(0) @binding(5) var<storage, read> indices: array<u32>;
@group(0) @binding(6) var<storage, read> lengths: array<u32>;

fn list_length(list_ix: u32) -> u32 {
  return min(lengths[shared_list(list_ix)], params.list_stride);
}

fn listed_token(list_ix: u32, at: u32) -> u32 {
  let within = min(at, params.list_stride - 1u);
  return min(indices[shared_list(list_ix) * params.list_stride + within], params.key_stride - 1u);
}
