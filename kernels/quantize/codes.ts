/**
 * Physical formats of codes. The logical form is u8 `[B, Hkv, M, n]`; a pipeline chooses how its
 * rows lie in u32 words.
 *
 * @module
 */

/** How a row of codes (one batch, KV head and subvector) lies in memory. */
export interface CodesFormat {
  /** Words for a row of `coded` codes. */
  rowWords(coded: number): number;
  /** Writes `codes` from the row's start. */
  pack(codes: Uint8Array, words: Uint32Array): void;
  /** Reads the row's first `codes.length` codes. */
  unpack(words: Uint32Array, codes: Uint8Array): void;
}

/** One code per u32 word: what a gather of the imperative original reads. */
export const wordCodes: CodesFormat = {
  rowWords: (coded) => coded,
  pack: (codes, words) => words.set(codes),
  unpack: (words, codes) => codes.set(words.subarray(0, codes.length)),
};

/** Four codes per u32 word, the lowest byte first: 1 byte per code, read four at a time. */
export const packedCodes: CodesFormat = {
  rowWords: (coded) => Math.ceil(coded / 4),
  pack(codes, words) {
    words.fill(0);
    codes.forEach((code, i) => words[i >> 2] |= code << (i & 3) * 8);
  },
  unpack(words, codes) {
    for (let i = 0; i < codes.length; i++) codes[i] = words[i >> 2] >>> (i & 3) * 8 & 0xff;
  },
};
