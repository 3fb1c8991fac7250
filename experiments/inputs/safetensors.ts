/**
 * Reads safetensors files. Only the header is read at opening; tensors are read in slices, so a file of any size is
 * fine.
 *
 * @module
 */

import {
  BYTES,
  type Dtype,
  headerBytes,
  LENGTH_BYTES,
  readHeader,
  SafetensorsError,
  type TensorInfo,
} from "../../indexer/safetensors.ts";

export { SafetensorsError };

/** An open safetensors file. Close it, or say `using`. */
export class Safetensors {
  /** The path that it was opened with. */
  readonly path: string;
  /** Tensors by name. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The header's `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #file: Deno.FsFile;
  /** Reads share one file position, so each waits for the one before it. */
  #last: Promise<void> = Promise.resolve();

  private constructor(
    path: string,
    file: Deno.FsFile,
    tensors: Map<string, TensorInfo>,
    metadata: Record<string, string>,
  ) {
    this.path = path;
    this.#file = file;
    this.tensors = tensors;
    this.metadata = metadata;
  }

  /**
   * Opens a file and checks its header against the file's size.
   *
   * @throws {SafetensorsError} if the file cannot be opened, is truncated or its header is wrong
   */
  static async open(path: string): Promise<Safetensors> {
    const file = await Deno.open(path).catch((error: Error) => {
      throw new SafetensorsError(
        `Cannot read ${path} as it cannot be opened, give the path of a safetensors file: ${error.message}`,
      );
    });
    try {
      const { size, isFile } = await file.stat();
      if (!isFile) throw new SafetensorsError(`Cannot read ${path} as it is not a file`);
      const { tensors, metadata } = await readHead(path, file, size);
      return new Safetensors(path, file, tensors, metadata);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /**
   * What is known of a tensor.
   *
   * @throws {SafetensorsError} if there is none of that name
   */
  info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (!info) {
      throw new SafetensorsError(
        `Cannot read tensor ${name} as ${this.path} does not hold it: it holds ${
          [...this.tensors.keys()].sort().slice(0, 12).join(", ") || "nothing"
        }${this.tensors.size > 12 ? ", …" : ""}`,
      );
    }
    return info;
  }

  /**
   * Reads elements as f32 (f64, f16, bf16 and integers are converted).
   *
   * @param begin first element in row-major order
   * @param count how many; default: to the end
   */
  async readFloat32(name: string, begin = 0, count?: number): Promise<Float32Array> {
    const { dtype, raw } = await this.#read(name, begin, count);
    switch (dtype) {
      case "F32":
        return new Float32Array(raw);
      case "F64":
        return Float32Array.from(new Float64Array(raw));
      case "F16":
        return Float32Array.from(new Uint16Array(raw), halfToNumber);
      case "BF16": {
        const words = Uint32Array.from(new Uint16Array(raw), (half) => half << 16);
        return new Float32Array(words.buffer);
      }
      default:
        return Float32Array.from(integers(dtype, raw), Number);
    }
  }

  /**
   * Reads elements of an integer tensor as 32-bit integers.
   *
   * @throws {SafetensorsError} for a floating-point tensor, or a value beyond 32 bits
   */
  async readInt32(name: string, begin = 0, count?: number): Promise<Int32Array> {
    const { dtype, raw } = await this.#read(name, begin, count);
    if (dtype.includes("F")) {
      throw new SafetensorsError(`Cannot read tensor ${name} as integers: its dtype is ${dtype}`);
    }
    return Int32Array.from(integers(dtype, raw), (value) => {
      const number = Number(value);
      if (number !== (number | 0)) {
        throw new SafetensorsError(`Cannot read tensor ${name} as 32-bit integers: it holds ${value}`);
      }
      return number;
    });
  }

  async #read(name: string, begin: number, count?: number): Promise<{ dtype: Dtype; raw: ArrayBuffer }> {
    const { dtype, elements, offset } = this.info(name);
    const wanted = count ?? elements - begin;
    if (!Number.isInteger(begin) || !Number.isInteger(wanted) || begin < 0 || wanted < 0 || begin + wanted > elements) {
      throw new RangeError(
        `Cannot read tensor ${name} as the slice must lie in its ${elements} elements: ${begin} to ${begin + wanted}`,
      );
    }
    const bytes = new Uint8Array(wanted * BYTES[dtype]);
    const reading = this.#last.then(() => readAt(this.path, this.#file, offset + begin * BYTES[dtype], bytes));
    this.#last = reading.catch(() => {});
    await reading;
    return { dtype, raw: bytes.buffer };
  }

  /** Closes the file. */
  close(): void {
    this.#file.close();
  }

  /** Same as {@linkcode Safetensors.close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

async function readAt(path: string, file: Deno.FsFile, offset: number, into: Uint8Array): Promise<void> {
  await file.seek(offset, Deno.SeekMode.Start);
  for (let at = 0; at < into.length;) {
    const got = await file.read(into.subarray(at));
    if (got === null) {
      throw new SafetensorsError(`Cannot read ${path} as it ends at byte ${offset + at}: it is truncated`);
    }
    at += got;
  }
}

async function readHead(path: string, file: Deno.FsFile, size: number) {
  const head = new Uint8Array(Math.min(size, LENGTH_BYTES));
  await readAt(path, file, 0, head);
  const text = new Uint8Array(headerBytes(path, head, size));
  await readAt(path, file, LENGTH_BYTES, text);
  return readHeader(path, text, size);
}

function integers(dtype: Dtype, raw: ArrayBuffer): Iterable<number | bigint> {
  switch (dtype) {
    case "I64":
      return new BigInt64Array(raw);
    case "U64":
      return new BigUint64Array(raw);
    case "I32":
      return new Int32Array(raw);
    case "U32":
      return new Uint32Array(raw);
    case "I16":
      return new Int16Array(raw);
    case "U16":
      return new Uint16Array(raw);
    case "I8":
      return new Int8Array(raw);
    default:
      return new Uint8Array(raw);
  }
}

/** Value of an IEEE 754 half. */
export function halfToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}
