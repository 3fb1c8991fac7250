// How a kernel that makes lists finds the candidates of tiles, four at a time; see `tiles.wgsl` for how they lie. Needs
// candidate_ranks and candidate_ix. kept() is a multiple of 4.

fn first_four(list_ix: u32) -> u32 {
  return list_ix * tiles_stride() / 4u;
}

fn n_fours_of(row: Row) -> u32 {
  return select(0u, n_tiles() * kept() / 4u, row.n_heavy > 0u);
}

// Four candidates; past the end they are none.
fn four_ranks(first: u32, at: u32, n_fours: u32) -> vec4u {
  if (at >= n_fours) { return vec4u(NO_CANDIDATE); }
  return candidate_ranks[first + at];
}

// Their positions among the coded tokens; whatever where they are none.
fn four_ix(first: u32, at: u32, n_fours: u32) -> vec4u {
  return candidate_ix[first + min(at, max(n_fours, 1u) - 1u)];
}
