/**
 * An index's state as a safetensors file, and from one: its own, or one in the layout of the PyTorch original.
 *
 * @module
 */

import { centroidWidth } from "../kernels/shape.ts";
import { CONFIG_OPTIONS, type PqConfig, refuse, resolveConfig, type ResolvedConfig } from "./config.ts";
import {
  BYTES,
  encodeSafetensors,
  headerBytes,
  LENGTH_BYTES,
  readHeader,
  repeatedKey,
  SafetensorsError,
} from "./safetensors.ts";

/** What an index is made of, beside its options. */
export interface IndexState {
  /** Seed of the training. */
  readonly seed: number;
  /** Most iterations of the training. */
  readonly iterations: number;
  /** Tolerance of the training. Default 0. */
  readonly tolerance?: number;
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

/** A state as it was read: the config and the training's options as far as the file has them. */
export interface ReadState extends Omit<IndexState, "codes" | "seed" | "iterations"> {
  readonly seed?: number;
  readonly iterations?: number;
  readonly config: Partial<PqConfig>;
  readonly codes?: ArrayLike<number> | ArrayLike<bigint>;
  /** Order of `codes`. */
  readonly codesLayout: "bhmn" | "bnhm";
}

const FORMAT = "pq-indexer 1";
const ACTION = "load an index";

/** Options that are part of a state; the first coded token stands by itself, as it may be known later. */
const STATE_OPTIONS = CONFIG_OPTIONS.filter((name) => name !== "initOffset");

/** A state as the bytes of a safetensors file. */
export function encodeState(config: ResolvedConfig, state: IndexState): Uint8Array {
  const { shape } = config;
  const { tokens, initOffset, centroids, phi, codes, keys, seed, iterations, tolerance = 0 } = state;
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
    refine: config.refine,
    refineElements: config.refineElements,
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
    seed: String(seed),
    iterations: String(iterations),
    ...(tolerance > 0 ? { tolerance: String(tolerance) } : {}),
    ...(initOffset === undefined ? {} : { initOffset: String(initOffset) }),
  });
}

/** A count in the metadata; undefined where it may be missing and is. */
function count(metadata: Readonly<Record<string, unknown>>, name: string): number | undefined {
  const text = metadata[name];
  if (text === undefined) return undefined;
  const value = Number(text);
  if (typeof text !== "string" || !/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    refuse(ACTION, `its ${name} must be an integer ≥ 0`, `it is ${JSON.stringify(text)}`);
  }
  return value;
}

/** A share in the metadata, 0 or more and less than 1; undefined where it is missing. */
function share(metadata: Readonly<Record<string, unknown>>, name: string): number | undefined {
  const text = metadata[name];
  if (text === undefined) return undefined;
  const value = typeof text === "string" && text.trim() !== "" ? Number(text) : NaN;
  if (!(value >= 0 && value < 1)) {
    refuse(ACTION, `its ${name} must be a share, 0 or more and less than 1`, `it is ${JSON.stringify(text)}`);
  }
  return value;
}

/** The config of a state: the known options and no others. */
function configOf(text: unknown): PqConfig {
  let config: unknown;
  try {
    config = JSON.parse(String(text));
    const twice = repeatedKey(String(text));
    if (twice !== undefined) refuse(ACTION, "its config must name each option once", `it names ${twice} twice`);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new SafetensorsError(`Cannot ${ACTION} as its config must be JSON: ${(error as Error).message}`);
  }
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    refuse(ACTION, "its config must be an object", JSON.stringify(config));
  }
  const known = new Set<string>(STATE_OPTIONS);
  const other = Object.keys(config).find((name) => !known.has(name));
  if (other !== undefined) refuse(ACTION, `its config has ${STATE_OPTIONS.join(", ")}`, `it also has ${other}`);
  return config as PqConfig;
}

interface Tensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly raw: ArrayBuffer;
}

/** Our own format: every tensor has the shape that config and tokens say, and just those are there that go together. */
function readOwn(
  metadata: Readonly<Record<string, unknown>>,
  read: (name: string, dtypes: readonly string[]) => Tensor | undefined,
): ReadState {
  const config = configOf(metadata.config);
  const resolved = resolveConfig(config), { shape } = resolved;
  const tokens = count(metadata, "tokens"), initOffset = count(metadata, "initOffset");
  if (tokens === undefined) refuse(ACTION, "it must say how many tokens there are", "tokens is missing");
  const centroids = read("centroids", ["F32"]), phi = read("phi", ["F32"]);
  const codes = read("codes", ["U8"]), keys = read("keys", ["F32"]);
  const has = Object.entries({ centroids, phi, codes, keys }).filter(([, tensor]) => tensor).map(([name]) => name)
    .join();
  const trained = shape.augmented ? "centroids,phi,codes" : "centroids,codes";
  if (has !== trained && has !== "keys") {
    refuse(ACTION, `it must hold ${trained}, or keys`, `it holds ${has || "none"}`);
  }
  if (has === trained && initOffset === undefined) {
    refuse(ACTION, "it must say which token is the first that is coded", "initOffset is missing");
  }
  const groups = [shape.batch, shape.kvHeads, shape.subvectors];
  const expect = (name: string, tensor: Tensor | undefined, wanted: readonly number[]) => {
    if (tensor && tensor.shape.join() !== wanted.join()) {
      refuse(
        ACTION,
        `${name} must be [${wanted.join(", ")}], as its config says`,
        `it is [${tensor.shape.join(", ")}]`,
      );
    }
  };
  expect("centroids", centroids, [...groups, shape.centroids, centroidWidth(shape)]);
  expect("phi", phi, groups);
  expect("codes", codes, [...groups, Math.max(0, tokens - (initOffset ?? 0))]);
  expect("keys", keys, [shape.batch, shape.kvHeads, tokens, shape.headWidth]);
  return {
    config,
    tokens,
    initOffset,
    seed: count(metadata, "seed"),
    iterations: count(metadata, "iterations"),
    tolerance: share(metadata, "tolerance"),
    centroids: floats(centroids),
    phi: floats(phi),
    codes: codes && new Uint8Array(codes.raw),
    keys: floats(keys),
    codesLayout: "bhmn",
  };
}

const floats = (tensor: Tensor | undefined) => tensor && new Float32Array(tensor.raw);

/**
 * Reads a state.
 *
 * @throws {SafetensorsError} if the bytes are broken
 * @throws {RangeError} if they are no state: tensors of another dtype or shape, or that do not go together
 */
export function decodeState(bytes: Uint8Array): ReadState {
  const what = "the state";
  const length = headerBytes(what, bytes.subarray(0, LENGTH_BYTES), bytes.length);
  const text = bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + length);
  const { tensors, metadata } = readHeader(what, text, bytes.length);
  const read = (name: string, dtypes: readonly string[], dimensions?: number): Tensor | undefined => {
    const info = tensors.get(name);
    if (!info) return undefined;
    const { dtype, shape, offset, elements } = info;
    if (!dtypes.includes(dtype) || (dimensions !== undefined && shape.length !== dimensions)) {
      refuse(
        ACTION,
        `${name} must be ${dtypes.join(" or ")}${dimensions ? ` with ${dimensions} dimensions` : ""}`,
        `it is ${dtype} [${shape.join(", ")}]`,
      );
    }
    // A copy that begins at a multiple of its element's size. A Node Buffer's `slice` would be a view.
    return { dtype, shape, raw: new Uint8Array(bytes.subarray(offset, offset + elements * BYTES[dtype])).buffer };
  };
  if (metadata.format === FORMAT) return readOwn(metadata, read);
  if (metadata.format?.startsWith("pq-indexer")) {
    refuse(ACTION, `its format must be ${FORMAT}`, `it is ${metadata.format}`);
  }
  // The PyTorch original: centroids [b, h_kv, M, C, d], codes [b, n, h_kv, M]; what else there is to know, the caller says.
  const centroids = read("centroids", ["F32"], 5), phi = read("phi", ["F32"]);
  const codes = read("codes", ["I64", "I32", "U8"], 4);
  if (!centroids || !codes) {
    const names = [...tensors.keys()], more = names.length > 8 ? `, and ${names.length - 8} more` : "";
    refuse(
      ACTION,
      "there must be centroids and codes, or what save() wrote",
      `this is no state of an index, the file holds ${names.slice(0, 8).join(", ") || "nothing"}${more}`,
    );
  }
  const [batch, kvHeads, subvectors, nCentroids, width] = centroids.shape;
  const [b, n, h, m] = codes.shape;
  if (b !== batch || h !== kvHeads || m !== subvectors) {
    refuse(
      ACTION,
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
      bits: Math.log2(nCentroids),
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
