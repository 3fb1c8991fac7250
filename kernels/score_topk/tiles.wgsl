// How the candidates of a tile lie: candidate_ranks and candidate_ix are u32[lists, tiles, kept()], tiles by
// capacity, so that rows do not move as tokens come. A tile is one chunk, or several where tokens are so many that more
// workgroups than WORKGROUPS would do nothing but build the same table again.

override CHUNK: u32;        // tokens per chunk, a multiple of 4
override MOST_CHUNKS: u32;  // per tile, a power of two
override WORKGROUPS: u32;   // enough of them to keep a device busy
override SLACK: u32;        // candidates that a tile may keep beyond the most that a list takes

// log2 of the chunks of a tile.
fn chunk_bits() -> u32 {
  let workgroups = BATCH * HEADS * ((params.coded_stride + CHUNK - 1u) / CHUNK);
  return min(32u - countLeadingZeros((workgroups - 1u) / WORKGROUPS), countTrailingZeros(MOST_CHUNKS));
}

fn n_chunks() -> u32 { return 1u << chunk_bits(); }
fn tiles_of(tokens: u32) -> u32 { return ((tokens + CHUNK - 1u) / CHUNK + n_chunks() - 1u) >> chunk_bits(); }
fn n_tiles() -> u32 { return tiles_of(params.n_coded); }
fn kept() -> u32 { return min((params.heavy_stride + SLACK + 3u) / 4u * 4u, CHUNK); }
fn tiles_stride() -> u32 { return tiles_of(params.coded_stride) * kept(); }
