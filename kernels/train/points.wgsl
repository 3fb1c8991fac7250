// Shared part of the kernels that look at sampled points: column j of a slot's subvector, with metric "ip" followed by the
// augmented column. Needs keys, extra and model.

// Where the subvector of key `row` of the group begins; a slot without a key is read at key 0 and not used.
fn point_at(group: u32, row: u32) -> u32 {
  let kv = group / SUBVECTORS;
  let token = kv * params.key_stride + params.init_offset + select(row, 0u, row == NO_KEY);
  return token * (SUBVECTORS * SUB_WIDTH) + group % SUBVECTORS * SUB_WIDTH;
}

// Column j relative to the origin; 0 for columns that do not exist and slots without a key. Loads stand in no branch, so that
// those of many slots are under way together.
fn point_column(group: u32, slot: u32, row: u32, at: u32, j: u32, origin: f32) -> f32 {
  var x = key_value(at + min(j, SUB_WIDTH - 1u));
  if (CENTROID_WIDTH > SUB_WIDTH) { x = select(x, extra[group * params.n_new + min(slot, params.n_new - 1u)], j == SUB_WIDTH); }
  return select(0.0, x - origin, row != NO_KEY && j < CENTROID_WIDTH);
}

fn origin_column(group: u32, j: u32) -> f32 {
  return model[model_row(group, CENTROIDS) + min(j, CENTROID_WIDTH - 1u)];
}
