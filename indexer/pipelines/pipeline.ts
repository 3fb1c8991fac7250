/**
 * The interface of an iteration: how one layer's codes are kept and how a step runs on them.
 *
 * @module
 */

import type { GpuInput } from "../../kernels/gpu/buffers.ts";
import type { DeviceFacts, Gpu } from "../../kernels/gpu/device.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import type { RowShape } from "../../kernels/shape.ts";
import type { Capacity, ResolvedConfig } from "../config.ts";
import type { Codebook } from "../reference.ts";
import type { Selection, SelectionOutput } from "../selection.ts";
import type { Tuning } from "../tuning.ts";

/** What the choice of kernels may depend on. */
export interface PlanContext {
  /** The index's config. */
  readonly config: ResolvedConfig;
  /** The device. */
  readonly device: DeviceFacts;
  /** Whether dense weights are written. */
  readonly weights: boolean;
}

/** One iteration of the optimization story. */
export interface Pipeline {
  /** "e00", "e01" … */
  readonly id: string;
  /** One or two words. */
  readonly title: string;
  /** What changed from the predecessor, in one line. */
  readonly change: string;
  /**
   * Whether entries of the lookup table may be rounded to f16, saturated at ±65,504: lists are right within a wider
   * bound, and are not the bytes of the others.
   */
  readonly halfTables?: boolean;
  /** Where its stages run. */
  readonly runsOn: "cpu" | "gpu";
  /** Kernels of a step with new keys and weights where nothing stands against them, in order. None on the CPU. */
  readonly kernels: readonly Kernel[];
  /** The kernels for a config on a device, in order; some find no work in most steps. Pure. None on the CPU. */
  kernelsFor(context: PlanContext): readonly Kernel[];
  /**
   * The same with other sizes; those that are not given are the default's. Not there where nothing is tuned. Using it, or
   * planning with it, throws a RangeError for sizes that no kernel or not this device can have.
   */
  tuned?(tuning: Partial<Tuning>): Pipeline;
  /** The sizes that it has if none are given. There where `tuned` is. Pure. */
  defaultTuning?(context: PlanContext): Tuning;
  /** Which sizes a config's kernels on a device depend on. There where `tuned` is. Pure. */
  tunes?(context: PlanContext): readonly (keyof Tuning)[];
  /** The sizes that it was given. */
  readonly tuning?: Partial<Tuning>;
  /**
   * Prepares a layer: compiles what it needs.
   *
   * @param gpu given if and only if `runsOn` is "gpu"
   */
  create(context: LayerContext): Promise<Layer>;
}

/** What a layer is made from. */
export interface LayerContext {
  /** The index's config. */
  readonly config: ResolvedConfig;
  /** Whether dense weights are written. */
  readonly weights: boolean;
  /** The device; undefined for pipelines on the CPU. */
  readonly gpu: Gpu | undefined;
}

/** One step as the index asks for it. Already validated. */
export interface LayerStep {
  /** Coded tokens after the step. */
  readonly nCoded: number;
  /** Keys to code: the last nNew coded tokens. */
  readonly nNew: number;
  /** Position among the new keys of the first one to code. */
  readonly firstNewKey: number;
  /** New keys per (batch, KV head) in `newKeys`. */
  readonly nNewKeys: number;
  /** First coded token. */
  readonly initOffset: number;
  /** Query rows; none to append only. */
  readonly rows: readonly RowShape[];
  /** f32 `[B, H, rows, D]`; there if and only if there are rows. */
  readonly query?: Float32Array | GpuInput;
  /** f32 `[B, Hkv, t, D]`; there if nNew > 0. */
  readonly newKeys?: Float32Array | GpuInput;
  /** `[B, Hkv, keyStride, D]`, the cached keys; there if the config re-ranks and there are rows. */
  readonly keys?: Float32Array | GpuInput;
  /** Tokens from one (batch, KV head) to the next in `keys`. */
  readonly keyStride?: number;
  /** Where the result goes; default: the layer's own buffers. */
  readonly out?: SelectionOutput;
}

/** A compute pass, or a way to get one per operation (which the layer then ends), to time each. */
export type PassTarget = GPUComputePassEncoder | ((operation: string) => GPUComputePassEncoder);

/** State and execution of one layer in one pipeline. */
export interface Layer {
  /** Operations of a step that selects, in order. */
  readonly operations: readonly string[];
  /** Most bytes of new keys that one step may bring. */
  readonly maxKeyBytes: number;
  /** Grows buffers to this capacity and keeps the first `nCoded` codes; nothing changes if it throws. */
  reserve(capacity: Capacity, nCoded: number): Promise<void>;
  /** Takes centroids (copied). */
  setCodebook(codebook: Codebook): void;
  /** Takes codes of the first n coded tokens, u8 `[B, Hkv, M, n]` (copied). */
  importCodes(codes: Uint8Array, n: number): void;
  /** The codes of the first n coded tokens, u8 `[B, Hkv, M, n]`. */
  exportCodes(n: number): Promise<Uint8Array>;
  /** Refuses a step whose buffers cannot serve it, before anything is changed. */
  check(step: LayerStep): void;
  /**
   * All recorded steps were submitted, says the caller: their `Params` may be overwritten.
   * Implied by every other call, as those submit work of their own.
   */
  settle(): void;
  /** Runs a step: uploads, one submit, no wait. Returns a selection if and only if there are rows. */
  run(step: LayerStep): Promise<Selection | undefined>;
  /** Encodes a step without submitting it; inputs are GPU buffers. */
  record(target: PassTarget, step: LayerStep): Selection | undefined;
  /** Dispatches that a step takes. */
  dispatches(step: LayerStep): number;
  /** Bytes that they read and write, each access counted once. */
  bytesMoved(step: LayerStep): number;
  /** Frees what the layer owns. */
  destroy(): void;
}

/**
 * The array that a pipeline on the CPU was given.
 *
 * @throws {TypeError} if it was given a GPU buffer
 */
export function hostArray(id: string, what: string, input: LayerStep["query"]): Float32Array {
  if (input instanceof Float32Array) return input;
  throw new TypeError(
    `Cannot read the ${what} as pipeline ${id} runs on the CPU: pass a Float32Array, not a GPU buffer`,
  );
}
