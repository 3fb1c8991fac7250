/**
 * GPU time from timestamp queries: one pair per compute pass. A whole step in one pass gives the
 * step's GPU time; a pass per dispatch gives each dispatch's share.
 *
 * @module
 */

import type { Gpu } from "./device.ts";
import type { OwnedBuffer } from "./buffers.ts";

/** Measures up to `capacity` passes between two calls of {@linkcode PassTimer.read}. The caller frees it. */
export class PassTimer {
  readonly #gpu: Gpu;
  readonly #queries: GPUQuerySet;
  readonly #resolved: OwnedBuffer;
  readonly #labels: string[] = [];
  readonly #capacity: number;

  private constructor(gpu: Gpu, queries: GPUQuerySet, resolved: OwnedBuffer, capacity: number) {
    this.#gpu = gpu;
    this.#queries = queries;
    this.#resolved = resolved;
    this.#capacity = capacity;
  }

  /** Passes that one timer can hold: WebGPU allows 4,096 queries in a set. */
  static readonly MAX_PASSES: number = 2048;

  /**
   * A timer, or undefined where the device has no "timestamp-query".
   *
   * @throws {RangeError} for more than {@linkcode PassTimer.MAX_PASSES} passes
   */
  static async create(gpu: Gpu, capacity: number): Promise<PassTimer | undefined> {
    if (!gpu.features.has("timestamp-query")) return undefined;
    if (!(capacity <= PassTimer.MAX_PASSES)) {
      throw new RangeError(
        `Cannot time as at most ${PassTimer.MAX_PASSES} passes fit one query set: ${capacity} passes`,
      );
    }
    const resolved = await gpu.allocate(
      "timestamps",
      capacity * 16,
      GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    );
    const queries = await gpu.checked(
      "create timestamps",
      () => gpu.device.createQuerySet({ label: "timestamps", type: "timestamp", count: capacity * 2 }),
    );
    return new PassTimer(gpu, queries, resolved, capacity);
  }

  /**
   * Begins a timed compute pass. The caller ends it.
   *
   * @throws {RangeError} if `capacity` passes were begun already
   */
  beginPass(encoder: GPUCommandEncoder, label: string): GPUComputePassEncoder {
    const ix = this.#labels.length;
    if (ix >= this.#capacity) {
      throw new RangeError(`Cannot time pass ${label} as at most ${this.#capacity} are timed at once: read() first`);
    }
    const pass = encoder.beginComputePass({
      label,
      timestampWrites: {
        querySet: this.#queries,
        beginningOfPassWriteIndex: 2 * ix,
        endOfPassWriteIndex: 2 * ix + 1,
      },
    });
    this.#labels.push(label);
    return pass;
  }

  /** GPU time of every pass since the last call, in µs and in order; waits for the GPU. */
  async read(): Promise<{ label: string; us: number }[]> {
    return (await this.readSpans()).map(({ label, beginUs, endUs }) => ({ label, us: endUs - beginUs }));
  }

  /** Begin and end of every pass since the last call, in µs since the first began; waits for the GPU. */
  async readSpans(): Promise<{ label: string; beginUs: number; endUs: number }[]> {
    const labels = this.#labels.splice(0);
    if (labels.length === 0) return [];
    await this.#gpu.submit("resolve timestamps", (encoder) => {
      encoder.resolveQuerySet(this.#queries, 0, labels.length * 2, this.#resolved.buffer, 0);
    });
    const [bytes] = await this.#gpu.read([{ buffer: this.#resolved.buffer, bytes: labels.length * 16 }]);
    const ns = new BigUint64Array(bytes);
    const us = (ix: number) => Number(ns[ix] - ns[0]) / 1e3;
    return labels.map((label, ix) => ({ label, beginUs: us(2 * ix), endUs: us(2 * ix + 1) }));
  }

  /** Frees the queries. */
  destroy(): void {
    this.#queries.destroy();
    this.#resolved.destroy();
  }

  /** Same as {@linkcode PassTimer.destroy}, for `using`. */
  [Symbol.dispose](): void {
    this.destroy();
  }
}
