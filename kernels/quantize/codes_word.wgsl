// How a kernel reads codes that lie one per word: codes is u32[rows, coded_stride].

fn code_at(row: u32, i: u32) -> u32 {
  return codes[row * params.coded_stride + i];
}
