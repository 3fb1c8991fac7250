// Shared part of the kernels that pool scores over the query heads of a KV head: a pooled list is one (batch, KV head, row).

fn n_pooled() -> u32 {
  return BATCH * KV_HEADS * params.n_rows;
}

// The list of the g-th head of a pooled list's group.
fn list_of_head(pooled: u32, g: u32) -> u32 {
  let kv = pooled / params.n_rows;
  return (kv * (HEADS / KV_HEADS) + g) * params.n_rows + pooled % params.n_rows;
}
