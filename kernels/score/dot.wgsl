// Shared part of the kernels in which one invocation computes a whole table entry: the product of a
// subvector of the query and a centroid, summed in the order of `columns.wgsl`. Needs query and centroids.

// Columns j .. j + 3; those past the end are 0 and add nothing.
fn query_columns(at: u32, j: u32) -> vec4f {
  var x = vec4f();
  for (var s = 0u; s < 4u; s++) {
    if (j + s < SUB_WIDTH) { x[s] = query[at + j + s]; }
  }
  return x;
}

fn centroid_columns(at: u32, j: u32) -> vec4f {
  var x = vec4f();
  for (var s = 0u; s < 4u; s++) {
    if (j + s < SUB_WIDTH) { x[s] = centroids[at + j + s]; }
  }
  return x;
}

fn product(query_at: u32, centroid_at: u32) -> f32 {
  var a = vec4f();
  var b = vec4f();
  var c = vec4f();
  var d = vec4f();
  for (var j = 0u; j < SUB_WIDTH; j += N_PARTS) {
    a = fma(query_columns(query_at, j), centroid_columns(centroid_at, j), a);
    b = fma(query_columns(query_at, j + 4u), centroid_columns(centroid_at, j + 4u), b);
    c = fma(query_columns(query_at, j + 8u), centroid_columns(centroid_at, j + 8u), c);
    d = fma(query_columns(query_at, j + 12u), centroid_columns(centroid_at, j + 12u), d);
  }
  return add_parts(a, b, c, d);
}
