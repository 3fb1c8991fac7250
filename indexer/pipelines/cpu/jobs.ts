/**
 * What threads of the CPU pipeline do: code one subvector's new keys, or make one list. Runs in the
 * caller's thread and in workers alike, on shared memory.
 *
 * @module
 */

import { ROW_FIELDS } from "../../../kernels/shape.ts";

/** i32 words of a step: {@linkcode STEP_FIELDS}, then {@linkcode ROW_FIELDS} per row. */
export const STEP_FIELDS = [
  "nCoded",
  "nNew",
  "firstNewKey",
  "nNewKeys",
  "initOffset",
  "codedStride",
  "listStride",
  "weightStride",
  "nRows",
  "clearsPrevious",
  "writesWeights",
] as const;

/** Buffers of a layer; shared where there are workers. */
export interface CpuBuffers {
  /** i32: B, H, Hkv, M, C, d, columns of a centroid. */
  readonly shape: Int32Array;
  /** i32, see {@linkcode STEP_FIELDS}. */
  readonly step: Int32Array;
  /** f32 `[B, Hkv, M, C, columns]` */
  readonly centroids: Float32Array;
  /** f32 `[B, Hkv, M]`, or empty. */
  readonly phi: Float32Array;
  /** u8 `[B, Hkv, M, codedStride]` */
  readonly codes: Uint8Array;
  /** f32 `[B, H, rows, D]` */
  readonly query: Float32Array;
  /** f32 `[B, Hkv, t, D]` */
  readonly newKeys: Float32Array;
  /** u32 `[B, H, rows, listStride]` */
  readonly indices: Uint32Array;
  /** u32 `[B, H, rows]` */
  readonly lengths: Uint32Array;
  /** f32 `[B, H, rows, weightStride]`, or empty. */
  readonly weights: Float32Array;
}

/** The typed array that each buffer is seen as, from the first byte of its memory on. */
const VIEWS = {
  shape: Int32Array,
  step: Int32Array,
  centroids: Float32Array,
  phi: Float32Array,
  codes: Uint8Array,
  query: Float32Array,
  newKeys: Float32Array,
  indices: Uint32Array,
  lengths: Uint32Array,
  weights: Float32Array,
} as const satisfies { [Name in keyof CpuBuffers]: new (memory: ArrayBuffer) => CpuBuffers[Name] };

/** Where buffers are, by name: what is posted to workers. */
export type CpuMemory = { readonly [Name in keyof CpuBuffers]?: { memory: ArrayBufferLike; length: number } };

/** Where buffers are. */
export function memoryOf(buffers: Partial<CpuBuffers>): CpuMemory {
  return Object.fromEntries(
    Object.entries(buffers).map(([name, { buffer, length }]) => [name, { memory: buffer, length }]),
  );
}

/** The buffers that are there. */
export function viewsOf(memory: CpuMemory): Partial<CpuBuffers> {
  return Object.fromEntries(
    Object.entries(memory).map(([name, { memory, length }]) => [
      name,
      new VIEWS[name as keyof CpuBuffers](memory as ArrayBuffer, 0, length),
    ]),
  );
}

/** What a job is about. */
export type JobKind = 0 | 1;
/** Job j codes the new keys of (batch, KV head, subvector) j. */
export const CODE_KEYS: JobKind = 0;
/** Job j makes list j. */
export const MAKE_LIST: JobKind = 1;

/** Tokens that are scored at a time. */
const BLOCK = 1024;

/** Scratch of one thread, grown as needed. */
export class Scratch {
  /** Lookup table of one list, f64 `[M, C]`. */
  lut: Float64Array = new Float64Array(0);
  /** Scores of the best so far, and of what may be better. */
  scores: Float64Array = new Float64Array(0);
  /** How many there are. */
  size = 0;
  /** Their positions. */
  positions: Int32Array = new Int32Array(0);
  /** Scores of a block of tokens, where there are more than two subvectors. */
  readonly sums: Float64Array = new Float64Array(BLOCK);

  /** Makes room. */
  reserve(table: number, heavy: number): void {
    if (this.lut.length < table) this.lut = new Float64Array(table);
    // Eight times what is kept: the less often it is full, the less is sorted out in vain.
    const room = Math.max(8 * heavy, 256);
    if (this.scores.length !== room) {
      this.scores = new Float64Array(room);
      this.positions = new Int32Array(room);
    }
  }
}

/** Does one job. */
export function doJob(buffers: CpuBuffers, kind: JobKind, job: number, scratch: Scratch): void {
  if (kind === CODE_KEYS) codeKeys(buffers, job);
  else makeList(buffers, job, scratch);
}

/** Nearest centroid by Σ(x − c)² in f64, lowest number on a tie. */
function codeKeys({ shape, step, centroids, phi, codes, newKeys }: CpuBuffers, group: number): void {
  const M = shape[3], C = shape[4], d = shape[5], columns = shape[6];
  const [nCoded, nNew, firstNewKey, nNewKeys, , codedStride] = step;
  const kv = Math.floor(group / M), m = group % M;
  const augmented = columns > d;
  for (let i = 0; i < nNew; i++) {
    const x = ((kv * nNewKeys + firstNewKey + i) * M + m) * d;
    let last = 0;
    if (augmented) {
      let norm = 0;
      for (let j = 0; j < d; j++) norm += newKeys[x + j] * newKeys[x + j];
      last = Math.sqrt(Math.max(phi[group] - norm, 0));
    }
    let best = 0, nearest = Infinity;
    for (let c = 0, at = group * C * columns; c < C; c++, at += columns) {
      let distance = 0;
      for (let j = 0; j < d; j++) {
        const t = newKeys[x + j] - centroids[at + j];
        distance += t * t;
      }
      if (augmented) distance += (last - centroids[at + d]) ** 2;
      if (distance < nearest) {
        best = c;
        nearest = distance;
      }
    }
    codes[group * codedStride + nCoded - nNew + i] = best;
  }
}

function makeList(buffers: CpuBuffers, list: number, scratch: Scratch): void {
  const { step, indices, lengths, weights } = buffers;
  const [, , , , initOffset, , listStride, weightStride, nRows, clearsPrevious, writesWeights] = step;
  const at = STEP_FIELDS.length + (list % nRows) * ROW_FIELDS.length;
  const nTokens = step[at], nSink = step[at + 1], nHeavy = step[at + 2], windowBegin = step[at + 3];
  const out = list * listStride, weightsAt = list * weightStride;
  if (writesWeights) {
    if (clearsPrevious) {
      for (let j = 0; j < lengths[list]; j++) weights[weightsAt + indices[out + j]] = 0;
    } else {
      weights.fill(0, weightsAt, weightsAt + weightStride);
    }
  }
  let length = 0;
  for (let token = 0; token < nSink; token++) indices[out + length++] = token;
  if (nHeavy > 0) {
    pickHeavy(buffers, list, nHeavy, step[at + 4], step[at + 5], scratch);
    const heavy = scratch.positions.subarray(0, nHeavy).sort();
    for (let j = 0; j < nHeavy; j++) indices[out + length++] = initOffset + heavy[j];
  }
  for (let token = windowBegin; token < nTokens; token++) indices[out + length++] = token;
  lengths[list] = length;
  if (writesWeights) { for (let j = 0; j < length; j++) weights[weightsAt + indices[out + j]] = 1; }
}

/** Fills the table of a list, and leaves its nHeavy best positions in the scratch, in no order. */
function pickHeavy(
  { shape, step, centroids, codes, query }: CpuBuffers,
  list: number,
  nHeavy: number,
  begin: number,
  end: number,
  scratch: Scratch,
): void {
  const [, H, Hkv, M, C, d, columns] = shape;
  const codedStride = step[5], nRows = step[8];
  const queryHead = Math.floor(list / nRows);
  const kv = Math.floor(queryHead / H) * Hkv + Math.floor((queryHead % H) / (H / Hkv));
  scratch.reserve(M * C, nHeavy);
  const { lut, scores, positions } = scratch;
  for (let m = 0; m < M; m++) {
    fillTable(lut, m * C, C, query, (list * M + m) * d, centroids, (kv * M + m) * C * columns, columns, d);
  }
  // Positions are relative to `begin` until the end.
  const count = end - begin;
  const rows = Array.from({ length: M }, (_, m) => {
    const at = (kv * M + m) * codedStride;
    return codes.subarray(at + begin, at + end);
  });
  const tables = Array.from({ length: M }, (_, m) => lut.subarray(m * C, (m + 1) * C));
  // Candidates gather until the scratch is full; then the best nHeavy of them stay, and only what beats the worst
  // of those is gathered further on: a later token of the same score does not.
  scratch.size = 0;
  let worst = -Infinity;
  const sortOut = () => {
    if (scratch.size <= nHeavy) return;
    worst = keepBest(scores, positions, scratch.size, nHeavy);
    scratch.size = nHeavy;
  };
  if (M === 2) {
    for (let i = 0; i < count; sortOut()) {
      i = gatherTwo(tables[0], tables[1], rows[0], rows[1], i, count, worst, scratch);
    }
  } else {
    // A block of tokens at a time, subvector by subvector, so that the sums stay in the first-level cache.
    for (let from = 0; from < count; from += BLOCK) {
      const n = Math.min(BLOCK, count - from);
      scratch.sums.fill(0);
      rows.forEach((row, m) => addLookups(scratch.sums, tables[m], row, from, n));
      for (let k = 0; k < n;) {
        k = gather(k, n, from, worst, scratch);
        if (k < n) sortOut();
      }
    }
    sortOut();
  }
  for (let j = 0; j < nHeavy; j++) positions[j] += begin;
}

// Small functions, one per loop: compiled as part of a large one they are two to three times slower.

function fillTable(
  lut: Float64Array,
  at: number,
  C: number,
  query: Float32Array,
  q: number,
  centroids: Float32Array,
  first: number,
  columns: number,
  d: number,
): void {
  for (let c = 0; c < C; c++) {
    const centroid = first + c * columns;
    let sum = 0;
    for (let j = 0; j < d; j++) sum += query[q + j] * centroids[centroid + j];
    lut[at + c] = sum;
  }
}

/** Gathers tokens i … that beat `worst` until the scratch is full; returns where it stopped. */
function gatherTwo(
  a: Float64Array,
  b: Float64Array,
  as: Uint8Array,
  bs: Uint8Array,
  begin: number,
  end: number,
  worst: number,
  scratch: Scratch,
): number {
  const { scores, positions } = scratch;
  let { size } = scratch, i = begin;
  for (; i < end && size < scores.length; i++) {
    const score = a[as[i]] + b[bs[i]];
    if (score > worst) {
      scores[size] = score;
      positions[size++] = i;
    }
  }
  scratch.size = size;
  return i;
}

/** The same for a block whose sums are there; token k of it is at `from` + k. */
function gather(begin: number, end: number, from: number, worst: number, scratch: Scratch): number {
  const { sums, scores, positions } = scratch;
  let { size } = scratch, k = begin;
  for (; k < end && size < scores.length; k++) {
    if (sums[k] > worst) {
      scores[size] = sums[k];
      positions[size++] = from + k;
    }
  }
  scratch.size = size;
  return k;
}

function addLookups(sums: Float64Array, table: Float64Array, row: Uint8Array, begin: number, n: number): void {
  for (let k = 0; k < n; k++) sums[k] += table[row[begin + k]];
}

/**
 * Moves the `keep` best of `size` entries to the front, in no order: higher scores first, lower positions where
 * they tie (quickselect, Hoare 1961).
 *
 * @returns the lowest score that is kept
 */
function keepBest(scores: Float64Array, positions: Int32Array, size: number, keep: number): number {
  let low = 0, high = size - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    const score = scores[middle], position = positions[middle];
    let i = low, j = high;
    while (i <= j) {
      while (scores[i] > score || (scores[i] === score && positions[i] < position)) i++;
      while (scores[j] < score || (scores[j] === score && positions[j] > position)) j--;
      if (i <= j) {
        const s = scores[i], p = positions[i];
        scores[i] = scores[j];
        positions[i++] = positions[j];
        scores[j] = s;
        positions[j--] = p;
      }
    }
    if (keep - 1 <= j) high = j;
    else if (keep - 1 >= i) low = i;
    else break;
  }
  let lowest = Infinity;
  for (let k = 0; k < keep; k++) lowest = Math.min(lowest, scores[k]);
  return lowest;
}
