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
