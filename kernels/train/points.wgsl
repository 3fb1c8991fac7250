// Shared part of the kernels that look at sampled points: column j of a slot's subvector, with metric "ip" followed by the
// augmented column. Needs keys, extra and model.

// Where the subvector of key `row` of the group begins; a slot without a key is read at key 0 and not used.
fn point_at(group: u32, row: u32) -> u32 {
  let kv = group / SUBVECTORS;
  let token = kv * params.key_stride + params.init_offset + select(row, 0u, row == NO_KEY);
  return token * (SUBVECTORS * SUB_WIDTH) + group % SUBVECTORS * SUB_WIDTH;
}

// Column j relative to the origin; 0 for columns that do not exist and slots without a key.
fn point_column(group: u32, slot: u32, row: u32, at: u32, j: u32, origin: f32) -> f32 {
  if (row == NO_KEY || j >= CENTROID_WIDTH) { return 0.0; }
  if (j == SUB_WIDTH) { return extra[group * params.n_new + slot] - origin; }
  return key_value(at + j) - origin;
}

fn origin_column(group: u32, j: u32) -> f32 {
  return model[model_row(group, CENTROIDS) + min(j, CENTROID_WIDTH - 1u)];
}
