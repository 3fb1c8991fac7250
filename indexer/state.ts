/**
 * An index's state as a safetensors file, and from one: its own, or one in the layout of the PyTorch original.
 *
 * @module
 */

import { centroidWidth } from "../kernels/shape.ts";
import { type PqConfig, refuse, type ResolvedConfig } from "./config.ts";
import { BYTES, encodeSafetensors, headerBytes, LENGTH_BYTES, readHeader, SafetensorsError } from "./safetensors.ts";

/** What an index is made of, beside its options. */
export interface IndexState {
  /** N. */
  readonly tokens: number;
  /** First coded token; undefined until it is known. */
  readonly initOffset: number | undefined;
  /** f32 `[B, Hkv, M, C, d]`, with metric "ip" `[B, Hkv, M, C, d + 1]`; none before training. */
  readonly centroids?: Float32Array;
  /** f32 `[B, Hkv, M]`, metric "ip" only. */
  readonly phi?: Float32Array;
  /** u8 `[B, Hkv, M, n]`; none before training. */
  readonly codes?: Uint8Array;
  /** f32 `[B, Hkv, N, D]`: the keys, as long as there is no codebook. */
  readonly keys?: Float32Array;
}

/** A state as it was read: the config as far as the file has one. */
export interface ReadState extends Omit<IndexState, "codes"> {
  readonly config: Partial<PqConfig>;
  readonly codes?: ArrayLike<number> | ArrayLike<bigint>;
  /** Order of `codes`. */
  readonly codesLayout: "bhmn" | "bnhm";
}

const FORMAT = "pq-indexer 1";

/** A state as the bytes of a safetensors file. */
export function encodeState(config: ResolvedConfig, state: IndexState): Uint8Array {
  const { shape } = config;
  const { tokens, initOffset, centroids, phi, codes, keys } = state;
  const groups = [shape.batch, shape.kvHeads, shape.subvectors];
  const n = (codes?.length ?? 0) / (shape.batch * shape.kvHeads * shape.subvectors);
  const given: PqConfig = {
    batch: shape.batch,
    heads: shape.heads,
    kvHeads: shape.kvHeads,
    headWidth: shape.headWidth,
    subvectors: shape.subvectors,
    bits: Math.log2(shape.centroids),
    metric: config.metric,
    sinkSize: config.sinkSize,
    windowSize: config.windowSize,
    heavySize: config.heavySize,
    pooling: config.pooling,
  };
  return encodeSafetensors({
    ...(centroids
      ? { centroids: { dtype: "F32", shape: [...groups, shape.centroids, centroidWidth(shape)], data: centroids } }
      : {}),
    ...(phi ? { phi: { dtype: "F32", shape: groups, data: phi } } : {}),
    ...(codes ? { codes: { dtype: "U8", shape: [...groups, n], data: codes } } : {}),
    ...(keys
      ? { keys: { dtype: "F32", shape: [shape.batch, shape.kvHeads, tokens, shape.headWidth], data: keys } }
      : {}),
  }, {
    format: FORMAT,
    config: JSON.stringify(given),
    tokens: String(tokens),
    ...(initOffset === undefined ? {} : { initOffset: String(initOffset) }),
  });
}

/**
 * Reads a state.
 *
 * @throws {SafetensorsError} if the bytes are broken
 * @throws {RangeError} if they are no state: tensors of another dtype or number of dimensions
 */
export function decodeState(bytes: Uint8Array): ReadState {
  const what = "the state", action = "load an index";
  const length = headerBytes(what, bytes.subarray(0, LENGTH_BYTES), bytes.length);
  const text = bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + length);
  const { tensors, metadata } = readHeader(what, text, bytes.length);
  const read = (name: string, dtypes: readonly string[], dimensions: number | undefined) => {
    const info = tensors.get(name);
    if (!info) return undefined;
    const { dtype, shape, offset, elements } = info;
    if (!dtypes.includes(dtype) || (dimensions !== undefined && shape.length !== dimensions)) {
      refuse(
        action,
        `${name} must be ${dtypes.join(" or ")}${dimensions ? ` with ${dimensions} dimensions` : ""}`,
        `it is ${dtype} [${shape.join(", ")}]`,
      );
    }
    return { dtype, shape, raw: bytes.slice(offset, offset + elements * BYTES[dtype]).buffer };
  };
  const centroids = read("centroids", ["F32"], 5), phi = read("phi", ["F32"], undefined);
  const floats = (tensor: ReturnType<typeof read>) => tensor && new Float32Array(tensor.raw);
  if (metadata.format === FORMAT) {
    const codes = read("codes", ["U8"], 4), keys = read("keys", ["F32"], 4);
    let config: Partial<PqConfig>;
    try {
      config = JSON.parse(metadata.config);
    } catch (error) {
      throw new SafetensorsError(`Cannot ${action} as its config must be JSON: ${(error as Error).message}`);
    }
    const initOffset = metadata.initOffset === undefined ? undefined : Number(metadata.initOffset);
    return {
      config,
      tokens: Number(metadata.tokens),
      initOffset,
      centroids: floats(centroids),
      phi: floats(phi),
      codes: codes && new Uint8Array(codes.raw),
      keys: floats(keys),
      codesLayout: "bhmn",
    };
  }
  // The PyTorch original: centroids [b, h_kv, M, C, d], codes [b, n, h_kv, M]; what else there is to know, the caller says.
  const codes = read("codes", ["I64", "I32", "U8"], 4);
  if (!centroids || !codes) {
    const names = [...tensors.keys()].join(", ") || "nothing";
    refuse(action, "there must be centroids and codes, or what save() wrote", `the file holds ${names}`);
  }
  const [batch, kvHeads, subvectors, count, width] = centroids.shape;
  const [b, n, h, m] = codes.shape;
  if (b !== batch || h !== kvHeads || m !== subvectors) {
    refuse(
      action,
      "codes [b, n, h_kv, M] must fit centroids [b, h_kv, M, C, d]",
      `they are [${codes.shape.join(", ")}] and [${centroids.shape.join(", ")}]`,
    );
  }
  const values = codes.dtype === "I64"
    ? new BigInt64Array(codes.raw)
    : codes.dtype === "I32"
    ? new Int32Array(codes.raw)
    : new Uint8Array(codes.raw);
  return {
    config: {
      batch,
      kvHeads,
      subvectors,
      bits: Math.log2(count),
      headWidth: subvectors * (width - (phi ? 1 : 0)),
      metric: phi ? "ip" : "euclidean",
    },
    tokens: n, // of which the caller's initOffset is not counted yet
    initOffset: undefined,
    centroids: floats(centroids),
    phi: floats(phi),
    codes: values,
    codesLayout: "bnhm",
  };
}
