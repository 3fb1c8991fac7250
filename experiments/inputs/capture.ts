/**
 * Attention captures: the last queries of a context with all of its keys and values.
 *
 * A capture is a safetensors file with `query` `[H, T, D]`, `key` `[Hkv, N, D]` and `value` `[Hkv, N, D]`,
 * after RoPE, any float dtype. Query t of T is position N − T + t and may attend keys 0 … N − T + t, so
 * a capture replays T decode steps. Query head h reads KV head floor(h / (H / Hkv)). Other tensors are ignored.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { escaped } from "../../indexer/safetensors.ts";
import { Safetensors } from "./safetensors.ts";

const bundled = (name: string): URL => new URL(`data/${name}.safetensors`, import.meta.url);

/** The captures that come with the project, by name, the default first; `data/README.md` says what each is. */
export const BUNDLED_CAPTURES = {
  smollm2_layer3: bundled("smollm2_layer3"),
  smollm2_layer21: bundled("smollm2_layer21"),
  attention_layer3: bundled("attention_layer3"),
} as const satisfies Record<string, URL>;

/** The name of a bundled capture. */
export type BundledName = keyof typeof BUNDLED_CAPTURES;

/** What each bundled capture is, as it stands beside its figures. */
export const BUNDLED_ABOUT: Readonly<Record<BundledName, string>> = {
  smollm2_layer3: "layer 3 of SmolLM2-135M-Instruct, 9 query heads on 3 KV heads of width 64, 8,192 tokens",
  smollm2_layer21: "layer 21 of SmolLM2-135M-Instruct, 9 query heads on 3 KV heads of width 64, 8,192 tokens",
  attention_layer3:
    "one KV head of a small model trained for this project, 4 query heads of width 128, 16,384 tokens of Python",
};

/** The capture that experiments read where none is named. */
export const DEFAULT_CAPTURE: BundledName = "smollm2_layer3";

/** The capture of one KV head that notebooks take: keys of width 128, one cell's loop over them. */
export const BUNDLED_CAPTURE: URL = BUNDLED_CAPTURES.attention_layer3;

/** The path that `--capture` means: that of a bundled capture by its name, or a path as it is. */
export function capturePath(named: string = DEFAULT_CAPTURE): string {
  return Object.hasOwn(BUNDLED_CAPTURES, named) ? fileURLToPath(BUNDLED_CAPTURES[named as BundledName]) : named;
}

/** The name of a capture by its path: the file's name without its ending. */
export function captureName(path: string): string {
  return path.split(/[\\/]/).at(-1)!.replace(/\.safetensors$/, "");
}

/** A capture in memory. */
export interface Capture {
  /** H. */
  readonly heads: number;
  /** Hkv. */
  readonly kvHeads: number;
  /** D. */
  readonly headWidth: number;
  /** N: all tokens. */
  readonly tokens: number;
  /** T: queries, and so decode steps. */
  readonly steps: number;
  /** f32 `[H, T, D]` */
  readonly query: Float32Array;
  /** f32 `[Hkv, N, D]` */
  readonly key: Float32Array;
  /** What the file says of itself. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** A file that is no capture. */
export class CaptureError extends Error {
  override name = "CaptureError";

  /** @param message may quote the file: control characters are escaped */
  constructor(message: string) {
    super(escaped(message));
  }
}

/**
 * Loads a capture's queries and keys.
 *
 * @throws {CaptureError} if tensors are missing or their shapes do not fit together, or hold NaN or ±inf
 * @throws {SafetensorsError} if the file is broken
 */
export async function loadCapture(path: string | URL): Promise<Capture> {
  const name = path instanceof URL ? fileURLToPath(path) : path;
  using file = await Safetensors.open(name);
  const refuse = (why: string): never => {
    throw new CaptureError(
      `Cannot use ${name} as a capture: ${why}. A capture holds query [H, T, D], key [Hkv, N, D] and value [Hkv, N, D]`,
    );
  };
  for (const tensor of ["query", "key", "value"]) {
    if (!file.tensors.has(tensor)) {
      refuse(`it has no tensor ${tensor} (it has ${[...file.tensors.keys()].slice(0, 8).join(", ") || "none"})`);
    }
    const { dtype, shape } = file.info(tensor);
    if (!["F64", "F32", "F16", "BF16"].includes(dtype)) refuse(`${tensor} has dtype ${dtype}`);
    if (shape.length !== 3 || shape.includes(0)) refuse(`${tensor} has shape [${shape.join(", ")}]`);
  }
  const [heads, steps, headWidth] = file.info("query").shape;
  const [kvHeads, tokens, keyWidth] = file.info("key").shape;
  if (keyWidth !== headWidth) refuse(`query has head width ${headWidth}, key has ${keyWidth}`);
  if (file.info("value").shape.join() !== file.info("key").shape.join()) {
    refuse(`value has shape [${file.info("value").shape.join(", ")}], key has [${file.info("key").shape.join(", ")}]`);
  }
  if (heads % kvHeads !== 0) refuse(`${heads} query heads cannot share ${kvHeads} KV heads evenly`);
  if (steps > tokens) refuse(`${steps} queries are more than ${tokens} keys`);

  const query = await file.readFloat32("query");
  const key = await readRows(file, "key", tokens * headWidth);
  for (const [tensor, values] of [["query", query], ["key", key]] as const) {
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at >= 0) refuse(`${tensor} holds ${values[at]} at element ${at}`);
  }
  return { heads, kvHeads, headWidth, tokens, steps, query, key, metadata: file.metadata };
}

/**
 * The values of a capture, f32 `[Hkv, N, D]`; {@linkcode loadCapture} has checked their shape.
 *
 * @throws {CaptureError} if they hold NaN or ±inf
 */
export async function loadValues(path: string | URL, { tokens, headWidth }: Capture): Promise<Float32Array> {
  const name = path instanceof URL ? fileURLToPath(path) : path;
  using file = await Safetensors.open(name);
  const values = await readRows(file, "value", tokens * headWidth);
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at >= 0) throw new CaptureError(`Cannot use ${name} as a capture: value holds ${values[at]} at element ${at}`);
  return values;
}

/** A large tensor, one outer row at a time, so that no more than one row exists twice. */
async function readRows(file: Safetensors, name: string, rowElements: number): Promise<Float32Array> {
  const { elements } = file.info(name);
  const all = new Float32Array(elements);
  for (let at = 0; at < elements; at += rowElements) {
    all.set(await file.readFloat32(name, at, Math.min(rowElements, elements - at)), at);
  }
  return all;
}

/** Keys begin … end − 1 of every KV head, f32 `[Hkv, end − begin, D]`. */
export function keysOf(capture: Capture, begin: number, end: number): Float32Array {
  const { kvHeads, tokens, headWidth, key } = capture;
  const keys = new Float32Array(kvHeads * (end - begin) * headWidth);
  for (let kv = 0; kv < kvHeads; kv++) {
    const from = (kv * tokens + begin) * headWidth;
    keys.set(key.subarray(from, from + (end - begin) * headWidth), kv * (end - begin) * headWidth);
  }
  return keys;
}

/** The query of step t, f32 `[H, D]`. */
export function queryOf(capture: Capture, t: number): Float32Array {
  const { heads, steps, headWidth, query } = capture;
  const row = new Float32Array(heads * headWidth);
  for (let h = 0; h < heads; h++) {
    const from = (h * steps + t) * headWidth;
    row.set(query.subarray(from, from + headWidth), h * headWidth);
  }
  return row;
}
