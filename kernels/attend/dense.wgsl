// In place of `listed.wgsl`: attention over all tokens that a row sees.

fn list_length(list_ix: u32) -> u32 {
  return min(row_of_list(list_ix).n_tokens, params.key_stride);
}

fn listed_token(list_ix: u32, at: u32) -> u32 {
  return min(at, params.key_stride - 1u);
}
