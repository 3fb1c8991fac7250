// How a kernel reads codes that lie four per word, the lowest byte first: codes is
// u32[rows, coded_stride / 4], and coded_stride is a multiple of 4.

fn code_at(row: u32, i: u32) -> u32 {
  let word = codes[row * (params.coded_stride / 4u) + i / 4u];
  return extractBits(word, i % 4u * 8u, 8u);
}
