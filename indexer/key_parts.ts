/**
 * Keys of a cache as they came: in parts, some on the host, some on the GPU. Joins them where one array or buffer is needed.
 *
 * @module
 */

import { type OwnedBuffer, type ResolvedInput } from "../kernels/gpu/buffers.ts";
import type { Gpu } from "../kernels/gpu/device.ts";
import { CompiledKernel } from "../kernels/gpu/kernel.ts";
import { elementBytes, type LayerShape, packParams, PARAMS_BYTES } from "../kernels/shape.ts";
import { trainShape } from "../kernels/train/train.ts";
import { widenKeys } from "../kernels/train/widen_keys.ts";

/** How keys on the GPU are kept. */
export type KeyElements = "f32" | "f16";

/** Keys of some tokens. */
export interface KeyPart {
  /** Tokens that count. */
  readonly tokens: number;
  /** Tokens per (batch, KV head) as they lie: more, once the newest were forgotten. */
  readonly stride: number;
  /** `[B, Hkv, stride, D]`. */
  readonly keys: Float32Array | ResolvedInput;
  /** How those on the GPU are kept. */
  readonly elements: KeyElements;
}

/** All keys, f32 `[B, Hkv, N, D]`, on the host; not to be changed, as one array that is whole is not copied. */
export async function readParts(
  gpu: Gpu | undefined,
  shape: LayerShape,
  parts: readonly KeyPart[],
): Promise<Float32Array> {
  const { headWidth: D } = shape, nKv = shape.batch * shape.kvHeads;
  const [only] = parts;
  if (parts.length === 1 && only.keys instanceof Float32Array && only.stride === only.tokens) return only.keys;
  const n = parts.reduce((sum, { tokens }) => sum + tokens, 0);
  const all = new Float32Array(nKv * n * D);
  let at = 0;
  for (const { keys, tokens, stride, elements } of parts) {
    const part = keys instanceof Float32Array ? keys : await readKeys(gpu!, keys, nKv * stride * D, elements);
    for (let kv = 0; kv < nKv; kv++) {
      all.set(part.subarray(kv * stride * D, (kv * stride + tokens) * D), (kv * n + at) * D);
    }
    at += tokens;
  }
  return all;
}

async function readKeys(gpu: Gpu, { buffer, offset }: ResolvedInput, values: number, elements: KeyElements) {
  // Copies are whole words.
  const bytes = Math.ceil(values * elementBytes(elements) / 4) * 4;
  const [data] = await gpu.read([{ buffer, offset, bytes }]);
  return elements === "f32" ? new Float32Array(data) : Float32Array.from(new Float16Array(data, 0, values));
}

/** All keys, of one token at least, in one buffer on the GPU: where they lie if they are one part there, else a copy that the caller frees. */
export async function gatherParts(
  gpu: Gpu,
  shape: LayerShape,
  parts: readonly KeyPart[],
): Promise<Pick<KeyPart, "stride" | "elements"> & { keys: ResolvedInput; copy?: OwnedBuffer }> {
  const [only] = parts;
  if (parts.length === 1 && !(only.keys instanceof Float32Array)) {
    return { keys: only.keys, stride: only.stride, elements: only.elements };
  }
  const n = parts.reduce((sum, { tokens }) => sum + tokens, 0);
  const label = "keys to train on";
  const joined = ({ buffer, bytes }: OwnedBuffer) => ({ keys: { buffer, offset: 0, size: bytes }, stride: n });
  if (parts.every(({ keys }) => keys instanceof Float32Array)) {
    const copy = await gpu.upload(label, await readParts(gpu, shape, parts));
    return { ...joined(copy), elements: "f32", copy };
  }
  const rowBytes = 4 * shape.headWidth, nKv = shape.batch * shape.kvHeads;
  const copy = await gpu.allocate(label, nKv * n * rowBytes);
  try {
    await gpu.submit("gather keys", (encoder) => {
      let at = 0;
      for (const { keys, tokens, stride } of parts) {
        for (let kv = 0; kv < nKv; kv++) {
          const target = (kv * n + at) * rowBytes;
          if (keys instanceof Float32Array) {
            const rows = keys.subarray(kv * stride * shape.headWidth, (kv * stride + tokens) * shape.headWidth);
            gpu.device.queue.writeBuffer(copy.buffer, target, rows as Float32Array<ArrayBuffer>);
          } else {
            const source = keys.offset + kv * stride * rowBytes;
            encoder.copyBufferToBuffer(keys.buffer, source, copy.buffer, target, tokens * rowBytes);
          }
        }
        at += tokens;
      }
    });
  } catch (error) {
    copy.destroy();
    throw error;
  }
  return { ...joined(copy), elements: "f32", copy };
}

/** Widens f16 keys to f32, some tokens at a time. Its holder frees it. */
export class KeyWidener {
  readonly #gpu: Gpu;
  readonly #shape: LayerShape;
  readonly #kernel: CompiledKernel;
  readonly #params: OwnedBuffer;
  readonly #widened: OwnedBuffer;

  private constructor(gpu: Gpu, shape: LayerShape, kernel: CompiledKernel, params: OwnedBuffer, widened: OwnedBuffer) {
    this.#gpu = gpu;
    this.#shape = shape;
    this.#kernel = kernel;
    this.#params = params;
    this.#widened = widened;
  }

  /** @param tokens how many at a time, at most */
  static async create(gpu: Gpu, shape: LayerShape, tokens: number): Promise<KeyWidener> {
    const kernel = await CompiledKernel.create(gpu, widenKeys, shape);
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    const params = await gpu.allocate("widen params", PARAMS_BYTES, usage);
    try {
      const values = shape.batch * shape.kvHeads * tokens * shape.headWidth;
      return new KeyWidener(gpu, shape, kernel, params, await gpu.allocate("widened keys", 4 * values));
    } catch (error) {
      params.destroy();
      throw error;
    }
  }

  /** Tokens at … at + count of a part as f32 `[B, Hkv, count, D]`; valid until the next call. */
  async widen({ keys, stride }: KeyPart, at: number, count: number): Promise<ResolvedInput> {
    const step = trainShape(stride, at, count, count);
    const packed = new Uint32Array(PARAMS_BYTES / 4);
    packParams(step, packed);
    this.#gpu.device.queue.writeBuffer(this.#params.buffer, 0, packed);
    const { buffer, bytes: size } = this.#widened;
    const widened = { buffer, offset: 0, size };
    await this.#gpu.submit("widen keys", (encoder) => {
      const pass = encoder.beginComputePass({ label: "widen keys" });
      const params = { buffer: this.#params.buffer, offset: 0 };
      this.#kernel.record(pass, step, params, (name) => name === "keys" ? keys as ResolvedInput : widened);
      pass.end();
    });
    return { ...widened, size: 4 * this.#shape.batch * this.#shape.kvHeads * count * this.#shape.headWidth };
  }

  /** Frees its buffers; safe right after a submit that reads what was widened. */
  [Symbol.dispose](): void {
    this.#params.destroy();
    this.#widened.destroy();
  }
}
