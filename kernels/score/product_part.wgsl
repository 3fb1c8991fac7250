// Shared part of the kernels in which 16 invocations share a table entry: partial sum `part` of the product of a
// subvector of the query and a centroid. Neighbours read neighbouring columns. Needs query and centroids.
// Written out to width 256: loops that the compiler does not unroll wait for every load in turn.

fn product_part(query_from: u32, centroid_from: u32, part: u32) -> f32 {
  let query_at = query_from + part;
  let centroid_at = centroid_from + part;
  var sum = 0.0;
  if (has_column(part, 0u)) { sum = fma(query[query_at + 0u], centroids[centroid_at + 0u], sum); }
  if (has_column(part, 16u)) { sum = fma(query[query_at + 16u], centroids[centroid_at + 16u], sum); }
  if (has_column(part, 32u)) { sum = fma(query[query_at + 32u], centroids[centroid_at + 32u], sum); }
  if (has_column(part, 48u)) { sum = fma(query[query_at + 48u], centroids[centroid_at + 48u], sum); }
  if (has_column(part, 64u)) { sum = fma(query[query_at + 64u], centroids[centroid_at + 64u], sum); }
  if (has_column(part, 80u)) { sum = fma(query[query_at + 80u], centroids[centroid_at + 80u], sum); }
  if (has_column(part, 96u)) { sum = fma(query[query_at + 96u], centroids[centroid_at + 96u], sum); }
  if (has_column(part, 112u)) { sum = fma(query[query_at + 112u], centroids[centroid_at + 112u], sum); }
  if (has_column(part, 128u)) { sum = fma(query[query_at + 128u], centroids[centroid_at + 128u], sum); }
  if (has_column(part, 144u)) { sum = fma(query[query_at + 144u], centroids[centroid_at + 144u], sum); }
  if (has_column(part, 160u)) { sum = fma(query[query_at + 160u], centroids[centroid_at + 160u], sum); }
  if (has_column(part, 176u)) { sum = fma(query[query_at + 176u], centroids[centroid_at + 176u], sum); }
  if (has_column(part, 192u)) { sum = fma(query[query_at + 192u], centroids[centroid_at + 192u], sum); }
  if (has_column(part, 208u)) { sum = fma(query[query_at + 208u], centroids[centroid_at + 208u], sum); }
  if (has_column(part, 224u)) { sum = fma(query[query_at + 224u], centroids[centroid_at + 224u], sum); }
  if (has_column(part, 240u)) { sum = fma(query[query_at + 240u], centroids[centroid_at + 240u], sum); }
  for (var j = 256u + part; j < SUB_WIDTH; j += N_PARTS) {
    sum = fma(query[query_from + j], centroids[centroid_from + j], sum);
  }
  return sum;
}
