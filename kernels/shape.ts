/**
 * The vocabulary of the step as plain data: the shape of a layer (fixed, compiled into the
 * kernels) and the shape of one step (changes every step, reaches the kernels as `Params`).
 *
 * @module
 */

/** Most query rows (speculative tokens) of one step; twin of `MAX_ROWS` in `layer/layer.wgsl`. */
export const MAX_ROWS = 64;

/** Fixed shape of one layer's index. */
export interface LayerShape {
  /** B: sequences in the batch. */
  readonly batch: number;
  /** H: query heads. */
  readonly heads: number;
  /** Hkv: KV heads; H / Hkv query heads share one. */
  readonly kvHeads: number;
  /** D: head width. */
  readonly headWidth: number;
  /** M: subvectors per key; divides D. */
  readonly subvectors: number;
  /** C: centroids per subvector, 2^bits. */
  readonly centroids: number;
  /** True for metric "ip": every centroid has one more column, used for assignment only. */
  readonly augmented: boolean;
}

/** What one query row asks for, resolved to plain ranges so that no kernel repeats the rules. */
export interface RowShape {
  /** Tokens that the row sees. */
  readonly nTokens: number;
  /** Tokens 0 … nSink − 1 are listed. */
  readonly nSink: number;
  /** How many heavy tokens are listed: min(K, candidates). */
  readonly nHeavy: number;
  /** Tokens windowBegin … nTokens − 1 are listed. */
  readonly windowBegin: number;
  /** First candidate, counted in coded tokens. */
  readonly candBegin: number;
  /** End of the candidates (exclusive), counted in coded tokens. */
  readonly candEnd: number;
  /** Length of the list. */
  readonly listLength: number;
  /** How many heavy tokens are on the shortlist that the listed ones are chosen from; with a shortlist only. */
  readonly nShort?: number;
}

/** A range of coded tokens, the end exclusive. */
export interface Posted {
  /** First. */
  readonly begin: number;
  /** End. */
  readonly end: number;
}

/** Shape of one step: twin of `Params` in `layer/layer.wgsl`. */
export interface StepShape {
  /** n: coded tokens after the step's new keys; coded token i is token initOffset + i. */
  readonly nCoded: number;
  /** How many keys this step codes; they become the last nNew coded tokens. */
  readonly nNew: number;
  /** Position within the new keys of the first one that is coded. */
  readonly firstNewKey: number;
  /** t: new keys per (batch, KV head) in the step's key input. */
  readonly nNewKeys: number;
  /** First token that is coded. */
  readonly initOffset: number;
  /** Rows of codes and scores start at multiples of this: capacity in coded tokens. */
  readonly codedStride: number;
  /** Rows of heavy tokens start at multiples of this. */
  readonly heavyStride: number;
  /** Rows of `indices` start at multiples of this. */
  readonly listStride: number;
  /** Rows of `weights` start at multiples of this. */
  readonly weightStride: number;
  /**
   * Whether `indices` and `lengths` hold exactly the lists that `weights` holds, so that clearing those clears
   * all. Default false: the whole of `weights` is cleared.
   */
  readonly clearsPrevious?: boolean;
  /** The coded tokens that the postings hold in this step. Default: none. */
  readonly posted?: Posted;
  /** Whether this step makes the postings anew. Default false. */
  readonly posts?: boolean;
  /** Tokens from one (batch, KV head) to the next in cached keys and values, where a kernel reads those. */
  readonly keyStride?: number;
  /** The most tokens that a list attends to, in attention; with a shortlist the distance of its rows. */
  readonly attended?: number;
  /** Rows of the shortlist's heavy tokens start at multiples of this; with a shortlist only. */
  readonly shortStride?: number;
  /** The query rows, oldest first; none for a step that only appends. */
  readonly rows: readonly RowShape[];
}

/** Bytes of a value of keys or values, as they are cached. */
export function elementBytes(elements: "f32" | "f16"): number {
  return elements === "f32" ? 4 : 2;
}

/** d: width of a subvector. */
export function subWidth(shape: LayerShape): number {
  return shape.headWidth / shape.subvectors;
}

/** Columns of a centroid: d, or d + 1 for metric "ip". */
export function centroidWidth(shape: LayerShape): number {
  return subWidth(shape) + (shape.augmented ? 1 : 0);
}

/** Lists per step: B · H · rows. */
export function nLists(shape: LayerShape, step: StepShape): number {
  return shape.batch * shape.heads * step.rows.length;
}

/** Whether any row picks heavy tokens, so that scores are needed at all. */
export function needsScores(step: StepShape): boolean {
  return step.rows.some((row) => row.nHeavy > 0);
}

/** From so many new keys on a step codes them apart, an invocation per subvector of a key. */
const MANY_KEYS = 64;

/** Whether assign_many codes a step's new keys: it keeps a subvector of 64 columns at most in registers. */
export function codesMany(shape: LayerShape, step: StepShape): boolean {
  return step.nNew >= MANY_KEYS && subWidth(shape) <= 64;
}

/**
 * How many new keys can be coded beside the lists: all of them, or none if they are many, if one is a candidate of its own
 * step (windows shorter than the new keys) or shares a word with one, or if there are no lists to make.
 */
export function nBeside(step: StepShape): number {
  if (step.nNew >= MANY_KEYS) return 0;
  const first = Math.floor((step.nCoded - step.nNew) / 4) * 4;
  return step.rows.length > 0 && step.rows.every((row) => row.candEnd <= first) ? step.nNew : 0;
}

/** The (batch, KV head) that the query head of list `listIx` belongs to; twin of `kv_of_list`. */
export function kvOfList(shape: LayerShape, step: StepShape, listIx: number): number {
  const queryHead = Math.floor(listIx / step.rows.length);
  const b = Math.floor(queryHead / shape.heads);
  const h = queryHead % shape.heads;
  return b * shape.kvHeads + Math.floor(h / (shape.heads / shape.kvHeads));
}

/** `Params` before its rows, in the order of the WGSL struct; a test compares the two. */
export const PARAM_FIELDS = [
  "nCoded",
  "nNew",
  "firstNewKey",
  "nNewKeys",
  "initOffset",
  "codedStride",
  "heavyStride",
  "listStride",
  "weightStride",
  "nRows",
  "nBeside",
  "clearsPrevious",
  "postBegin",
  "postEnd",
  "keyStride",
  "attended",
] as const;

/** `Row`, in the order of the WGSL struct; a test compares the two. */
export const ROW_FIELDS = [
  "nTokens",
  "nSink",
  "nHeavy",
  "windowBegin",
  "candBegin",
  "candEnd",
  "listLength",
  "nShort",
] as const;

/** A row's field as kernels read it: what is taken by score is n_heavy where there is no shortlist. */
export function rowField(row: RowShape, field: (typeof ROW_FIELDS)[number]): number {
  return row[field] ?? row.nHeavy;
}

/** u32 words before the rows: the fields, padded to a multiple of 16 bytes as WGSL's uniform layout wants. */
const HEAD_WORDS = Math.ceil(PARAM_FIELDS.length / 4) * 4;
/** u32 words per row, padded likewise. */
const ROW_WORDS = Math.ceil(ROW_FIELDS.length / 4) * 4;

/** Size of `Params` in bytes. */
export const PARAMS_BYTES = (HEAD_WORDS + MAX_ROWS * ROW_WORDS) * 4;

/**
 * Writes a step into `out` as the kernels read it.
 *
 * @param out u32[PARAMS_BYTES / 4], reused from step to step
 * @returns how many words are in use
 */
export function packParams(step: StepShape, out: Uint32Array): number {
  const derived = {
    nRows: step.rows.length,
    nBeside: nBeside(step),
    clearsPrevious: Number(step.clearsPrevious ?? false),
    postBegin: step.posted?.begin ?? 0,
    postEnd: step.posted?.end ?? 0,
    keyStride: step.keyStride ?? 0,
    attended: step.attended ?? 0,
  };
  const fields = { ...step, ...derived };
  PARAM_FIELDS.forEach((field, ix) => out[ix] = fields[field]);
  step.rows.forEach((row, r) => {
    ROW_FIELDS.forEach((field, ix) => out[HEAD_WORDS + r * ROW_WORDS + ix] = rowField(row, field));
  });
  return HEAD_WORDS + step.rows.length * ROW_WORDS;
}
