// How the candidates of a tile lie: candidate_ranks and candidate_ix are u32[lists, tiles, kept()], with room for as many
// tiles as there may be at the capacity. A tile is one chunk while all of them run at once or nearly so; then tiles
// become longer, not more: another workgroup would wait for a free place, and build the same table again.

override CHUNK: u32;        // tokens per chunk, a multiple of 4
override MOST_CHUNKS: u32;  // per tile
override WORKGROUPS: u32;   // as many as run at once
override SLACK: u32;        // candidates that a tile may keep beyond the most that a list takes

fn divide_up(a: u32, b: u32) -> u32 { return (a + b - 1u) / b; }

fn chunks_of(tokens: u32) -> u32 { return divide_up(tokens, CHUNK); }

// Tiles per list that are long enough: one wave of workgroups, or as many waves as MOST_CHUNKS asks for.
fn long_tiles(chunks: u32) -> u32 {
  let wave = max(WORKGROUPS / (BATCH * HEADS), 1u);
  return divide_up(chunks, MOST_CHUNKS * wave) * wave;
}

fn n_chunks() -> u32 {
  let chunks = chunks_of(params.n_coded);
  if (MOST_CHUNKS == 1u || chunks * BATCH * HEADS <= 2u * WORKGROUPS) { return 1u; }
  return divide_up(chunks, long_tiles(chunks));
}

fn n_tiles() -> u32 { return divide_up(chunks_of(params.n_coded), n_chunks()); }
fn kept() -> u32 { return min((params.heavy_stride + SLACK + 3u) / 4u * 4u, CHUNK); }

fn tiles_stride() -> u32 {
  let chunks = chunks_of(params.coded_stride);
  return min(chunks, max(long_tiles(chunks), 2u * WORKGROUPS / (BATCH * HEADS))) * kept();
}
