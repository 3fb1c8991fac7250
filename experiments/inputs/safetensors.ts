/**
 * Reads safetensors files: an 8-byte little-endian header length, a JSON header, raw little-endian
 * tensors. Only the header is read at opening; tensors are read in slices, so a file of any size is fine.
 * Format: https://huggingface.co/docs/safetensors
 *
 * @module
 */

/** Dtypes that can be read, with their bytes per element. */
const BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** A dtype that can be read. */
export type Dtype = keyof typeof BYTES;

/** A tensor as the header describes it. */
export interface TensorInfo {
  /** Element type. */
  readonly dtype: Dtype;
  /** Shape, outermost first. */
  readonly shape: readonly number[];
  /** Elements: the product of the shape. */
  readonly elements: number;
  /** First byte in the file. */
  readonly offset: number;
}

/** A safetensors file that is broken. */
export class SafetensorsError extends Error {
  override name = "SafetensorsError";
}

const MAX_HEADER_BYTES = 100 * 2 ** 20;

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
   * @throws {SafetensorsError} if the file is truncated or its header is wrong
   * @throws {Deno.errors.NotFound}
   */
  static async open(path: string): Promise<Safetensors> {
    const file = await Deno.open(path);
    try {
      const { size, isFile } = await file.stat();
      if (!isFile) throw new SafetensorsError(`Cannot read ${path} as it is not a file`);
      const { tensors, metadata } = await readHeader(path, file, size);
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

async function readHeader(path: string, file: Deno.FsFile, size: number) {
  const broken = (why: string) => new SafetensorsError(`Cannot read ${path} as safetensors: ${why}`);
  if (size < 8) throw broken(`it has ${size} bytes, the header length alone takes 8`);
  const head = new Uint8Array(8);
  await readAt(path, file, 0, head);
  const length = Number(new DataView(head.buffer).getBigUint64(0, true));
  if (length > MAX_HEADER_BYTES || 8 + length > size) {
    throw broken(`its header claims ${length} bytes, the file has ${size}`);
  }
  const text = new Uint8Array(length);
  await readAt(path, file, 8, text);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  } catch (error) {
    throw broken(`its header is not JSON (${(error as Error).message})`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) {
    throw broken("its header is not an object");
  }

  const { __metadata__: metadata = {}, ...entries } = header as Record<string, unknown>;
  if (typeof metadata !== "object" || metadata === null) throw broken("its __metadata__ is not an object");
  const tensors = new Map<string, TensorInfo>();
  const spans: { name: string; begin: number; end: number }[] = [];
  for (const [name, entry] of Object.entries(entries)) {
    const { dtype, shape, data_offsets: offsets } = (entry ?? {}) as Record<string, unknown>;
    if (typeof dtype !== "string" || !(dtype in BYTES)) {
      throw broken(`tensor ${name} has dtype ${JSON.stringify(dtype)}, known are ${Object.keys(BYTES).join(", ")}`);
    }
    if (!isCounts(shape)) throw broken(`tensor ${name} has shape ${JSON.stringify(shape)}`);
    if (!isCounts(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
      throw broken(`tensor ${name} has data_offsets ${JSON.stringify(offsets)}`);
    }
    const [begin, end] = offsets;
    const elements = shape.reduce((product, extent) => product * extent, 1);
    if (end - begin !== elements * BYTES[dtype as Dtype]) {
      throw broken(
        `tensor ${name} is ${dtype} [${shape.join(", ")}], ${
          elements * BYTES[dtype as Dtype]
        } bytes, but its data_offsets span ${end - begin}`,
      );
    }
    if (8 + length + end > size) {
      throw broken(`tensor ${name} ends at byte ${8 + length + end}, the file has ${size}: it is truncated`);
    }
    spans.push({ name, begin, end });
    tensors.set(name, { dtype: dtype as Dtype, shape, elements, offset: 8 + length + begin });
  }
  spans.sort((a, b) => a.begin - b.begin || a.end - b.end);
  spans.forEach(({ name, begin }, ix) => {
    if (ix > 0 && begin < spans[ix - 1].end) throw broken(`tensors ${spans[ix - 1].name} and ${name} overlap`);
  });
  return { tensors, metadata: metadata as Record<string, string> };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((entry) => Number.isSafeInteger(entry) && entry >= 0);
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
