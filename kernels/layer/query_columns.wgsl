// Shared part of the kernels that multiply a query with cached keys: sixteen invocations share a key and have eight
// neighbouring columns each, and eight more 128 columns on. Needs query and HEAD_WIDTH.

fn query_eight(at: u32) -> Eight {
  return Eight(
    vec4f(query[at], query[at + 1u], query[at + 2u], query[at + 3u]),
    vec4f(query[at + 4u], query[at + 5u], query[at + 6u], query[at + 7u]),
  );
}

// Eight neighbouring columns of the query; 0 past the last.
fn query_columns(list_ix: u32, first: u32) -> Eight {
  let at = list_ix * HEAD_WIDTH + min(first, HEAD_WIDTH - 8u);
  let eight = query_eight(at);
  let is_there = first < HEAD_WIDTH;
  return Eight(select(vec4f(), eight.a, is_there), select(vec4f(), eight.b, is_there));
}

// Where eight columns of a token lie; past the last, those before.
fn eight_at(kv: u32, token: u32, part: u32) -> u32 {
  return (kv * params.key_stride + token) * (HEAD_WIDTH / 8u) + min(part, HEAD_WIDTH / 8u - 1u);
}
