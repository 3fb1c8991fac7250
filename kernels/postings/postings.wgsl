// Shared part of the kernels that know tokens by their cells. A cell is a combination of codes, one per subvector: all
// tokens of a cell have the same score. The postings of a kv are its coded tokens post_begin .. post_end, by cell and
// ascending within each cell (a counting sort): an inverted file, as in Jégou, Douze, Schmid 2011.
//
// postings: u32[Hkv of all batches, CELL_ROOM + coded_stride]: where each cell begins, then the tokens as positions among
// the coded ones, cell by cell. What follows the last cell's beginning, up to CELL_ROOM, is where the last one ends.

override CELLS: u32;      // C^M
override CODE_BITS: u32;  // bits of a code

override CELL_ROOM: u32 = (CELLS + 3u) / 4u * 4u + 4u;

// While postings are made, tokens come in chunks of this many, 16 at most.
fn chunk_tokens() -> u32 {
  return max((params.post_end + 4095u) / 4096u * 256u, 4096u);
}

fn n_chunks() -> u32 {
  return (params.post_end + chunk_tokens() - 1u) / chunk_tokens();
}

// Rows of cell_counts: u32[kv, most_chunks(), CELLS].
fn most_chunks() -> u32 {
  return min((params.coded_stride + 4095u) / 4096u, 16u);
}

fn posting_row(kv: u32) -> u32 {
  return kv * (CELL_ROOM + params.coded_stride);
}
