/**
 * The safetensors format: an 8-byte little-endian header length, a JSON header, raw little-endian tensors.
 * https://huggingface.co/docs/safetensors
 *
 * @module
 */

/** Dtypes that are known, with their bytes per element. */
export const BYTES = {
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

/** A dtype that is known. */
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
  /** "SafetensorsError" */
  override name = "SafetensorsError";

  /**
   * An error whose control characters are escaped.
   *
   * @param message may quote the file
   */
  constructor(message: string) {
    super(escaped(message));
  }
}

/**
 * A text with what could steer a terminal written as \u escapes: control characters, line ends, and marks that turn the
 * direction of writing. For strings that come from files.
 */
export function escaped(text: string): string {
  return text.replace(
    // deno-lint-ignore no-control-regex -- these are what is looked for
    /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g,
    (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Bytes before the header. */
export const LENGTH_BYTES = 8;

const MAX_HEADER_BYTES = 100 * 2 ** 20;

const broken = (name: string, why: string) => new SafetensorsError(`Cannot read ${name} as safetensors: ${why}`);

/**
 * How long the header is.
 *
 * @param name of the file, for errors
 * @param head the first 8 bytes, or as many as there are
 * @param size bytes of the file
 * @throws {SafetensorsError} if the file cannot hold it
 */
export function headerBytes(name: string, head: Uint8Array, size: number): number {
  if (size < LENGTH_BYTES) throw broken(name, `it has ${size} bytes, the header length alone takes 8`);
  const length = Number(new DataView(head.buffer, head.byteOffset, LENGTH_BYTES).getBigUint64(0, true));
  if (length > MAX_HEADER_BYTES || LENGTH_BYTES + length > size) {
    throw broken(
      name,
      `its header claims ${length} bytes, the file has ${size}: it is truncated, or no safetensors file`,
    );
  }
  return length;
}

/**
 * Checks a header against the file's size.
 *
 * @param file its name, for errors
 * @param text the header
 * @param size bytes of the file
 * @throws {SafetensorsError} if the header is wrong or the file is truncated
 */
export function readHeader(
  file: string,
  text: Uint8Array,
  size: number,
): { readonly tensors: Map<string, TensorInfo>; readonly metadata: Record<string, string> } {
  const length = text.length;
  let header: unknown;
  try {
    // A copy, as shared memory cannot be decoded.
    const json = new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(text));
    header = JSON.parse(json);
    const twice = repeatedKey(json);
    if (twice !== undefined) throw broken(file, `its header names ${twice} twice`);
  } catch (error) {
    if (error instanceof SafetensorsError) throw error;
    throw broken(file, `its header is not JSON (${(error as Error).message})`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) {
    throw broken(file, "its header is not an object");
  }

  const { __metadata__: metadata = {}, ...entries } = header as Record<string, unknown>;
  const isStrings = typeof metadata === "object" && metadata !== null && !Array.isArray(metadata) &&
    Object.values(metadata).every((value) => typeof value === "string");
  if (!isStrings) throw broken(file, "its __metadata__ is not an object of strings");
  const tensors = new Map<string, TensorInfo>();
  const spans: { name: string; begin: number; end: number }[] = [];
  for (const [name, entry] of Object.entries(entries)) {
    const { dtype, shape, data_offsets: offsets } = (entry ?? {}) as Record<string, unknown>;
    if (typeof dtype !== "string" || !Object.hasOwn(BYTES, dtype)) {
      throw broken(
        file,
        `tensor ${name} has dtype ${JSON.stringify(dtype)}, known are ${Object.keys(BYTES).join(", ")}`,
      );
    }
    if (!isCounts(shape)) throw broken(file, `tensor ${name} has shape ${JSON.stringify(shape)}`);
    if (!isCounts(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
      throw broken(file, `tensor ${name} has data_offsets ${JSON.stringify(offsets)}`);
    }
    const [begin, end] = offsets;
    const elements = shape.reduce((product, extent) => product * extent, 1);
    if (end - begin !== elements * BYTES[dtype as Dtype]) {
      throw broken(
        file,
        `tensor ${name} is ${dtype} [${shape.join(", ")}], ${
          elements * BYTES[dtype as Dtype]
        } bytes, but its data_offsets span ${end - begin}`,
      );
    }
    if (8 + length + end > size) {
      throw broken(file, `tensor ${name} ends at byte ${8 + length + end}, the file has ${size}: it is truncated`);
    }
    spans.push({ name, begin, end });
    tensors.set(name, { dtype: dtype as Dtype, shape, elements, offset: 8 + length + begin });
  }
  spans.sort((a, b) => a.begin - b.begin || a.end - b.end);
  spans.forEach(({ name, begin }, ix) => {
    if (ix > 0 && begin < spans[ix - 1].end) throw broken(file, `tensors ${spans[ix - 1].name} and ${name} overlap`);
  });
  return { tensors, metadata: metadata as Record<string, string> };
}

/** A key that an object of a JSON text has twice; JSON.parse takes the last one silently. The text must be JSON. */
export function repeatedKey(json: string): string | undefined {
  const scopes: (Set<string> | undefined)[] = [];
  for (const [token] of json.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"\s*:?|[{}[\]]/g)) {
    if (token === "{") scopes.push(new Set());
    else if (token === "[") scopes.push(undefined);
    else if (token === "}" || token === "]") scopes.pop();
    else if (token.endsWith(":")) {
      const key = JSON.parse(token.slice(0, -1)), keys = scopes.at(-1)!;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return undefined;
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((entry) => Number.isSafeInteger(entry) && entry >= 0);
}

/** A tensor to write. */
export interface TensorData {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** Row-major, little-endian. */
  readonly data: ArrayBufferView;
}

/**
 * Joins tensors, in the order given, to a file.
 *
 * @throws {RangeError} if a tensor's data does not have its shape's size
 */
export function encodeSafetensors(
  tensors: Readonly<Record<string, TensorData>>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  let end = 0;
  const header: Record<string, unknown> = { __metadata__: metadata };
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const bytes = shape.reduce((product, extent) => product * extent, BYTES[dtype]);
    if (bytes !== data.byteLength) {
      throw new RangeError(
        `Cannot write tensor ${name} as its ${dtype} [${
          shape.join(", ")
        }] has ${bytes} bytes: data has ${data.byteLength}`,
      );
    }
    header[name] = { dtype, shape, data_offsets: [end, end += bytes] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(text.length / 8) * 8; // tensors then begin at multiples of 8 in the file
  const file = new Uint8Array(LENGTH_BYTES + padded + end).fill(0x20, LENGTH_BYTES, LENGTH_BYTES + padded);
  new DataView(file.buffer).setBigUint64(0, BigInt(padded), true);
  file.set(text, LENGTH_BYTES);
  let at = LENGTH_BYTES + padded;
  for (const { data } of Object.values(tensors)) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return file;
}
