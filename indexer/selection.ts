/**
 * What a step returns: lists of tokens, as GPU buffers and, on demand, on the host.
 *
 * @module
 */

import type { GpuInput, ResolvedInput } from "../kernels/gpu/buffers.ts";
import type { LayerShape } from "../kernels/shape.ts";

/** A selection on the host. */
export interface SelectionData {
  /** u32 `[B, Hout, rows, listStride]`: tokens, ascending. Entries past a list's length mean nothing. */
  readonly indices: Uint32Array;
  /** u32 `[B, Hout, rows]`: tokens per list. */
  readonly lengths: Uint32Array;
  /** f32 `[B, Hout, rows, weightStride]`: 1 exactly at listed tokens, else 0; if weights were asked for. */
  readonly weights?: Float32Array;
  /** Entries from one list to the next in `indices`. */
  readonly listStride: number;
  /** Entries from one list to the next in `weights`. */
  readonly weightStride: number;
}

/** Buffers of the caller's that receive a selection. They stay the caller's. */
export interface SelectionOutput {
  /** Room for u32 `[B, Hout, rows, listStride]`. */
  readonly indices: GpuInput;
  /** Room for u32 `[B, Hout, rows]`. */
  readonly lengths: GpuInput;
  /** Room for f32 `[B, Hout, rows, weightStride]`; needed if the index writes weights. */
  readonly weights?: GpuInput;
  /**
   * Entries from one list to the next in `indices`; at least the longest list. A list has S + K + W tokens at
   * most, but while there are too few keys to train (N ≤ K + initOffset + rows + C) it has all N.
   */
  readonly listStride: number;
  /** Entries from one list to the next in `weights`; at least the number of tokens. */
  readonly weightStride?: number;
}

/** The GPU buffers of a selection. */
export interface SelectionBuffers {
  /** u32 `[B, Hout, rows, listStride]` */
  readonly indices: ResolvedInput;
  /** u32 `[B, Hout, rows]` */
  readonly lengths: ResolvedInput;
  /** f32 `[B, Hout, rows, weightStride]` */
  readonly weights?: ResolvedInput;
}

/**
 * The result of a step. It stays valid until the index's next call, unless it went to buffers of
 * the caller's.
 */
export class Selection {
  /** B. */
  readonly batch: number;
  /** Hout: lists per batch and row; H, or Hkv where the heads of a KV head share one. */
  readonly heads: number;
  /** Query rows. */
  readonly rows: number;
  /** Entries from one list to the next in `indices`. */
  readonly listStride: number;
  /** Entries from one list to the next in `weights`. */
  readonly weightStride: number;
  /** N: tokens of the index at this step; undefined within a pipeline. */
  readonly tokens: number | undefined;
  /** Where the result lies on the GPU; undefined for a pipeline that runs on the CPU. */
  readonly buffers: SelectionBuffers | undefined;
  readonly #read: () => Promise<SelectionData>;
  readonly #assertCurrent: () => void;

  /** Not for callers: pipelines make selections. */
  constructor(
    shape: LayerShape,
    rows: number,
    strides: { readonly listStride: number; readonly weightStride: number; readonly tokens?: number },
    buffers: SelectionBuffers | undefined,
    read: () => Promise<SelectionData>,
    assertCurrent: () => void = () => {},
  ) {
    this.batch = shape.batch;
    this.heads = shape.heads;
    this.rows = rows;
    this.listStride = strides.listStride;
    this.weightStride = strides.weightStride;
    this.tokens = strides.tokens;
    this.buffers = buffers;
    this.#read = read;
    this.#assertCurrent = assertCurrent;
  }

  /**
   * Refuses a selection whose buffers hold another one by now.
   *
   * @throws {RangeError} if a later call of the index has replaced it
   */
  assertCurrent(): void {
    this.#assertCurrent();
  }

  /**
   * Copies the selection to the host; waits for the GPU.
   *
   * @throws {RangeError} if a later call of the index has replaced it
   */
  read(): Promise<SelectionData> {
    return this.#read();
  }
}

/**
 * One list out of a selection on the host.
 *
 * @param list (b · Hout + h) · rows + r
 * @returns tokens, ascending; a view, not a copy
 * @throws {RangeError} if there is no such list
 */
export function listOf(data: SelectionData, list: number): Uint32Array {
  if (!(Number.isInteger(list) && list >= 0 && list < data.lengths.length)) {
    throw new RangeError(`Cannot take a list as its number must be 0 to ${data.lengths.length - 1}: it is ${list}`);
  }
  return data.indices.subarray(list * data.listStride, list * data.listStride + data.lengths[list]);
}
