// Shared part of the kernels in which 16 invocations share a centroid: partial sum `part` of the squared distance of
// a subvector of a new key and a centroid. Needs new_keys and centroids. Written out as `product_part.wgsl`.

fn distance_part(x_from: u32, c_from: u32, part: u32) -> f32 {
  let x_at = x_from + part;
  let c_at = c_from + part;
  var sum = 0.0;
  if (has_column(part, 0u)) { sum = add_squared_difference(sum, new_keys[x_at + 0u], centroids[c_at + 0u]); }
  if (has_column(part, 16u)) { sum = add_squared_difference(sum, new_keys[x_at + 16u], centroids[c_at + 16u]); }
  if (has_column(part, 32u)) { sum = add_squared_difference(sum, new_keys[x_at + 32u], centroids[c_at + 32u]); }
  if (has_column(part, 48u)) { sum = add_squared_difference(sum, new_keys[x_at + 48u], centroids[c_at + 48u]); }
  if (has_column(part, 64u)) { sum = add_squared_difference(sum, new_keys[x_at + 64u], centroids[c_at + 64u]); }
  if (has_column(part, 80u)) { sum = add_squared_difference(sum, new_keys[x_at + 80u], centroids[c_at + 80u]); }
  if (has_column(part, 96u)) { sum = add_squared_difference(sum, new_keys[x_at + 96u], centroids[c_at + 96u]); }
  if (has_column(part, 112u)) { sum = add_squared_difference(sum, new_keys[x_at + 112u], centroids[c_at + 112u]); }
  if (has_column(part, 128u)) { sum = add_squared_difference(sum, new_keys[x_at + 128u], centroids[c_at + 128u]); }
  if (has_column(part, 144u)) { sum = add_squared_difference(sum, new_keys[x_at + 144u], centroids[c_at + 144u]); }
  if (has_column(part, 160u)) { sum = add_squared_difference(sum, new_keys[x_at + 160u], centroids[c_at + 160u]); }
  if (has_column(part, 176u)) { sum = add_squared_difference(sum, new_keys[x_at + 176u], centroids[c_at + 176u]); }
  if (has_column(part, 192u)) { sum = add_squared_difference(sum, new_keys[x_at + 192u], centroids[c_at + 192u]); }
  if (has_column(part, 208u)) { sum = add_squared_difference(sum, new_keys[x_at + 208u], centroids[c_at + 208u]); }
  if (has_column(part, 224u)) { sum = add_squared_difference(sum, new_keys[x_at + 224u], centroids[c_at + 224u]); }
  if (has_column(part, 240u)) { sum = add_squared_difference(sum, new_keys[x_at + 240u], centroids[c_at + 240u]); }
  for (var j = 256u + part; j < SUB_WIDTH; j += N_PARTS) {
    sum = add_squared_difference(sum, new_keys[x_from + j], centroids[c_from + j]);
  }
  return sum;
}
