// How the candidates of a tile lie: candidate_ranks and candidate_ix are u32[lists, tiles, kept()], tiles by
// capacity, so that rows do not move as tokens come.

override TILE: u32;   // tokens per tile, a multiple of 4
override SLACK: u32;  // candidates that a tile may keep beyond the most that a list takes

fn n_tiles() -> u32 { return (params.n_coded + TILE - 1u) / TILE; }
fn kept() -> u32 { return min((params.heavy_stride + SLACK + 3u) / 4u * 4u, TILE); }
fn tiles_stride() -> u32 { return (params.coded_stride + TILE - 1u) / TILE * kept(); }
