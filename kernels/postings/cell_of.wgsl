// Shared part of the kernels that make postings: the cell of a token. Needs codes.

// The cell of the i-th coded token of a kv: the code of subvector m in bits m * CODE_BITS and up.
fn cell_of(kv: u32, i: u32) -> u32 {
  var cell = 0u;
  for (var m = 0u; m < SUBVECTORS; m++) {
    let word = codes[(kv * SUBVECTORS + m) * (params.coded_stride / 4u) + i / 4u];
    cell |= extractBits(word, i % 4u * 8u, 8u) << (m * CODE_BITS);
  }
  return cell;
}
