/**
 * Reading buffers back. In Deno an awaited `mapAsync` resolves at least 10 ms late, but the call
 * itself already blocks until the data is there, so the range can be read at once. Before a
 * buffer's first completed mapping that short cut crashes the process, so each staging buffer is
 * mapped once the slow way first, and a probe decides once per device whether the short cut holds;
 * where it does not (browsers, other runtimes), every mapping is awaited.
 *
 * @module
 */

import type { GpuRange, OwnedBuffer } from "./buffers.ts";
import { GpuError } from "./errors.ts";
import { isDeno } from "./host.ts";

const PROBE_VALUE = 0x5eed_1234;

/** What the readback needs of a `Gpu`. */
export interface ReadbackDevice {
  /** See `Gpu`. */
  readonly device: GPUDevice;
  /** See `Gpu`. */
  assertAlive(): void;
  /** See `Gpu`. */
  allocate(label: string, bytes: number, usage?: number): Promise<OwnedBuffer>;
  /** See `Gpu`. */
  upload(label: string, data: Uint32Array): Promise<OwnedBuffer>;
  /** See `Gpu`. */
  submit(what: string, encode: (encoder: GPUCommandEncoder) => void): Promise<void>;
}

/** Staging buffers of one device. Not public: use {@linkcode Gpu.read}. */
export class Readback {
  readonly #gpu: ReadbackDevice;
  readonly #free: OwnedBuffer[] = [];
  #synchronous: Promise<boolean> | undefined;
  #destroyed = false;

  constructor(gpu: ReadbackDevice) {
    this.#gpu = gpu;
  }

  /** Whether the fence and the mapping block in the call itself; measured once. */
  isSynchronous(): Promise<boolean> {
    if (!this.#synchronous) {
      const probing = this.#probe();
      this.#synchronous = probing;
      probing.catch(() => this.#synchronous = undefined);
    }
    return this.#synchronous;
  }

  async #probe(): Promise<boolean> {
    if (!isDeno()) return false;
    const gpu = this.#gpu;
    const source = await gpu.upload("readback probe", new Uint32Array([PROBE_VALUE]));
    const staging = await this.#warmStaging(4);
    try {
      await gpu.submit(
        "probe the readback",
        (encoder) => encoder.copyBufferToBuffer(source.buffer, 0, staging.buffer, 0, 4),
      );
      gpu.device.queue.onSubmittedWorkDone().catch(() => {});
      const mapped = staging.buffer.mapAsync(GPUMapMode.READ);
      mapped.catch(() => {});
      try {
        const value = new Uint32Array(staging.buffer.getMappedRange())[0];
        staging.buffer.unmap();
        this.#free.push(staging);
        return value === PROBE_VALUE;
      } catch {
        staging.destroy();
        return false;
      }
    } finally {
      source.destroy();
    }
  }

  /** A staging buffer whose first mapping is over. */
  async #warmStaging(bytes: number): Promise<OwnedBuffer> {
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 256)));
    const limit = this.#gpu.device.limits.maxBufferSize;
    const staging = await this.#gpu.allocate(
      "staging",
      Math.max(bytes, Math.min(size, limit)),
      GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    );
    await staging.buffer.mapAsync(GPUMapMode.READ, 0, 4);
    staging.buffer.unmap();
    return staging;
  }

  async #take(bytes: number): Promise<OwnedBuffer> {
    let best = -1;
    this.#free.forEach((staging, ix) => {
      if (staging.bytes >= bytes && (best < 0 || staging.bytes < this.#free[best].bytes)) best = ix;
    });
    return best >= 0 ? this.#free.splice(best, 1)[0] : await this.#warmStaging(bytes);
  }

  /** See {@linkcode Gpu.read}. */
  async read(ranges: readonly GpuRange[], beforeCopy: () => void = () => {}): Promise<ArrayBuffer[]> {
    const gpu = this.#gpu;
    gpu.assertAlive();
    const total = ranges.reduce((sum, range) => sum + range.bytes, 0);
    if (total === 0) return ranges.map(() => new ArrayBuffer(0));
    let staging: OwnedBuffer | undefined;
    try {
      const fast = await this.isSynchronous();
      staging = await this.#take(total);
      const parts = await this.#copy(ranges, total, staging, fast, beforeCopy);
      if (this.#destroyed) staging.destroy();
      else this.#free.push(staging);
      return parts;
    } catch (error) {
      staging?.destroy();
      if (error instanceof GpuError || error instanceof RangeError) throw error;
      // A lost device announces itself a moment after its calls begin to fail.
      await new Promise((resolve) => setTimeout(resolve, 0));
      gpu.assertAlive();
      throw new GpuError(`Cannot read back as the mapping failed: ${(error as Error).message}`);
    }
  }

  async #copy(
    ranges: readonly GpuRange[],
    total: number,
    { buffer: staging }: OwnedBuffer,
    fast: boolean,
    beforeCopy: () => void,
  ): Promise<ArrayBuffer[]> {
    await this.#gpu.submit("read buffers back", (encoder) => {
      beforeCopy();
      let at = 0;
      for (const { buffer, offset = 0, bytes } of ranges) {
        if (bytes > 0) encoder.copyBufferToBuffer(buffer, offset, staging, at, bytes);
        at += bytes;
      }
    });
    const mapped = staging.mapAsync(GPUMapMode.READ, 0, total);
    if (fast) mapped.catch(() => {});
    else await mapped;
    const bytes = staging.getMappedRange(0, total);
    let at = 0;
    const parts = ranges.map((range) => bytes.slice(at, at += range.bytes));
    staging.unmap();
    return parts;
  }

  /** Frees the staging buffers. */
  destroy(): void {
    this.#destroyed = true;
    for (const staging of this.#free.splice(0)) staging.destroy();
  }
}
