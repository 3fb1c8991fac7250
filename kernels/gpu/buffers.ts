/**
 * Buffers with explicit ownership: whoever holds an `OwnedBuffer` frees it, by `destroy()` or `using`.
 *
 * @module
 */

/** A GPU buffer that its holder must free. */
export class OwnedBuffer {
  /** The WebGPU buffer. */
  readonly buffer: GPUBuffer;
  /** Size in bytes. */
  readonly bytes: number;

  /** Takes ownership of `buffer`. */
  constructor(buffer: GPUBuffer) {
    this.buffer = buffer;
    this.bytes = buffer.size;
  }

  /** Frees the buffer; safe right after a submit that uses it, and more than once. */
  destroy(): void {
    this.buffer.destroy();
  }

  /** Same as {@linkcode OwnedBuffer.destroy}, for `using`. */
  [Symbol.dispose](): void {
    this.destroy();
  }
}

/** A buffer of the caller's: whole, or a range of it as in a bind group. */
export type GpuInput = GPUBuffer | GPUBufferBinding;

/** A range of a buffer with offset and size filled in. */
export interface ResolvedInput {
  /** The buffer. */
  readonly buffer: GPUBuffer;
  /** Byte offset. */
  readonly offset: number;
  /** Bytes from `offset` on. */
  readonly size: number;
}

/** A range of a buffer; offset and bytes are multiples of 4. */
export interface GpuRange {
  /** The buffer; needs COPY_SRC. */
  readonly buffer: GPUBuffer;
  /** Byte offset, default 0. */
  readonly offset?: number;
  /** Bytes. */
  readonly bytes: number;
}

/** True for a GPU buffer or a range of one, as opposed to a typed array. */
export function isGpuInput(input: unknown): input is GpuInput {
  if (typeof input !== "object" || input === null || ArrayBuffer.isView(input)) return false;
  const buffer = (input as { buffer?: unknown }).buffer ?? input;
  return typeof (buffer as { mapState?: unknown }).mapState === "string";
}

/**
 * Fills in a range and checks it before anything is submitted.
 *
 * @param what names the input in errors: "query"
 * @param bytes how many the kernel will touch
 * @param limits the device's limits (offset alignment, binding size)
 * @param copied whether it is also copied from, and so needs COPY_SRC
 * @throws {RangeError} if the range is too short, misaligned or larger than one binding
 * @throws {TypeError} if the buffer cannot be bound as storage
 */
export function resolveInput(
  what: string,
  input: GpuInput,
  bytes: number,
  limits: GPUSupportedLimits,
  copied = false,
): ResolvedInput {
  const range = "buffer" in input ? input : { buffer: input };
  const buffer = range.buffer as GPUBuffer;
  const offset = range.offset ?? 0;
  const size = range.size ?? buffer.size - offset;
  if ((buffer.usage & GPUBufferUsage.STORAGE) === 0) {
    throw new TypeError(
      `Cannot use the ${what} buffer as it must have GPUBufferUsage.STORAGE: its usage is ${buffer.usage}`,
    );
  }
  if (copied && (buffer.usage & GPUBufferUsage.COPY_SRC) === 0) {
    throw new TypeError(
      `Cannot copy the ${what} buffer as it must have GPUBufferUsage.COPY_SRC: its usage is ${buffer.usage}`,
    );
  }
  if (offset % limits.minStorageBufferOffsetAlignment !== 0) {
    throw new RangeError(
      `Cannot use the ${what} buffer as its offset must be a multiple of ${limits.minStorageBufferOffsetAlignment}: offset is ${offset}`,
    );
  }
  if (offset < 0 || size < bytes || offset + size > buffer.size) {
    throw new RangeError(
      `Cannot use the ${what} buffer as it must hold ${bytes} bytes: it has ${size} from offset ${offset} of ${buffer.size}`,
    );
  }
  if (bytes > limits.maxStorageBufferBindingSize) {
    throw new RangeError(
      `Cannot use the ${what} buffer as one binding holds at most ${limits.maxStorageBufferBindingSize} bytes: it needs ${bytes}`,
    );
  }
  return { buffer, offset, size: Math.min(size, limits.maxStorageBufferBindingSize) };
}
