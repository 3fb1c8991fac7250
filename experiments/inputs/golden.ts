/**
 * Golden files: inputs and outputs of other implementations, case by case. See `data/README.md` for the
 * tensors of a case.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import type { Metric } from "../../indexer/config.ts";
import { escaped } from "../../indexer/safetensors.ts";
import { Safetensors } from "./safetensors.ts";

/** The golden file that comes with the project: nine cases of the PyTorch original. */
export const BUNDLED_GOLDEN: URL = new URL("data/golden.safetensors", import.meta.url);

/** One case. Dimensions as in the vocabulary of the step. */
export interface GoldenCase {
  readonly name: string;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headWidth: number;
  readonly tokens: number;
  readonly subvectors: number;
  readonly bits: number;
  readonly sinkSize: number;
  readonly windowSize: number;
  readonly heavySize: number;
  readonly initOffset: number;
  readonly metric: Metric;
  readonly newKeyCount: number;
  /** f32 `[B, H, D]` */
  readonly query: Float32Array;
  /** f32 `[B, Hkv, newKeyCount, D]` */
  readonly newKeys: Float32Array;
  /** f32 `[B, Hkv, M, C, d (+1)]` */
  readonly centroids: Float32Array;
  /** f32 `[B, Hkv, M]`, metric "ip" only */
  readonly phi: Float32Array | undefined;
  /** i32 `[B, n, Hkv, M]` before the step */
  readonly codesBefore: Int32Array;
  /** i32 `[B, n, Hkv, M]` after the step; with as many tokens as before if it left them untouched */
  readonly codesAfter: Int32Array;
  /** f32 `[B, H, n]` */
  readonly scores: Float32Array;
  /** i32 `[B, H, listLength]`, ascending */
  readonly list: Int32Array;
  readonly listLength: number;
  /** f32 `[B, H, tokens]` */
  readonly weights: Float32Array;
}

/** A file that is not in the golden format. */
export class GoldenError extends Error {
  override name = "GoldenError";

  /** @param message may quote the file: control characters are escaped */
  constructor(message: string) {
    super(escaped(message));
  }
}

const SETTINGS = {
  b: "batch",
  h: "heads",
  h_kv: "kvHeads",
  d: "headWidth",
  sk: "tokens",
  subvectors: "subvectors",
  bits: "bits",
  sink_size: "sinkSize",
  window_size: "windowSize",
  heavy_size: "heavySize",
  init_offset: "initOffset",
  new_keys: "newKeyCount",
} as const;

/**
 * Loads every case of a golden file.
 *
 * @throws {GoldenError} if settings or tensors are missing or do not fit together
 * @throws {SafetensorsError} if the file is broken
 */
export async function loadGolden(path: string | URL): Promise<GoldenCase[]> {
  const name = path instanceof URL ? fileURLToPath(path) : path;
  using file = await Safetensors.open(name);
  const refuse = (why: string): never => {
    throw new GoldenError(`Cannot use ${name} as a golden file: ${why}`);
  };
  let settings: unknown;
  try {
    settings = JSON.parse(file.metadata.cases ?? "");
  } catch {
    refuse("its __metadata__.cases is not a JSON list of cases");
  }
  if (!Array.isArray(settings) || settings.length === 0) return refuse("its __metadata__.cases is not a list of cases");
  const cases: GoldenCase[] = [];
  for (const given of settings) cases.push(await loadCase(file, given, refuse));
  return cases;
}

async function loadCase(
  file: Safetensors,
  given: Record<string, unknown>,
  refuse: (why: string) => never,
): Promise<GoldenCase> {
  const name = typeof given?.name === "string" ? escaped(given.name) : undefined;
  if (typeof name !== "string") return refuse(`a case has no name: ${JSON.stringify(given)}`);
  const read: Record<string, number> = {};
  for (const [key, field] of Object.entries(SETTINGS)) {
    const value = given[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0) refuse(`case ${name} has ${key} ${value}`);
    read[field] = value as number;
  }
  const s = read as Record<typeof SETTINGS[keyof typeof SETTINGS], number>;
  const metric = given.metric as Metric;
  if (metric !== "euclidean" && metric !== "ip") refuse(`case ${name} has metric ${metric}`);
  const C = 2 ** s.bits, d = s.headWidth / s.subvectors;
  const nAfter = s.tokens - s.initOffset;

  const tensor = (which: string, shape: readonly (number | readonly number[])[]): readonly number[] => {
    const full = `${name}/${which}`;
    if (!file.tensors.has(full)) refuse(`it has no tensor ${full}`);
    const actual = file.info(full).shape;
    const fits = actual.length === shape.length &&
      shape.every((extent, ix) => typeof extent === "number" ? extent === actual[ix] : extent.includes(actual[ix]));
    if (!fits) {
      const wanted = shape.map((extent) => typeof extent === "number" ? extent : extent.join(" or ")).join(", ");
      refuse(`${full} has shape [${actual.join(", ")}], its settings want [${wanted}]`);
    }
    return actual;
  };
  const floats = async (which: string, shape: readonly (number | readonly number[])[]) => {
    tensor(which, shape);
    return await file.readFloat32(`${name}/${which}`);
  };
  const codes = async (which: string, n: readonly number[]) => {
    tensor(which, [s.batch, n, s.kvHeads, s.subvectors]);
    return await file.readInt32(`${name}/${which}`);
  };
  const nBefore = Math.max(0, nAfter - s.newKeyCount);
  const listLength = file.tensors.get(`${name}/sparse_list`)?.shape[2] ?? 0;
  tensor("sparse_list", [s.batch, s.heads, listLength]);
  tensor("sparse_len", [s.batch, s.heads]);
  const list = await file.readInt32(`${name}/sparse_list`);
  const lengths = await file.readInt32(`${name}/sparse_len`);
  if (lengths.some((length) => length !== listLength)) refuse(`${name}/sparse_len is not ${listLength} everywhere`);
  if (list.some((token) => token < 0 || token >= s.tokens)) {
    refuse(`${name}/sparse_list holds a token beyond ${s.tokens}`);
  }
  const loaded = {
    query: await floats("query", [s.batch, s.heads, s.headWidth]),
    newKeys: await floats("new_keys", [s.batch, s.kvHeads, s.newKeyCount, s.headWidth]),
    centroids: await floats("centroids", [s.batch, s.kvHeads, s.subvectors, C, d + (metric === "ip" ? 1 : 0)]),
    phi: metric === "ip" ? await floats("phi", [s.batch * s.kvHeads * s.subvectors]) : undefined,
    codesBefore: await codes("codes_before", [nBefore]),
    codesAfter: await codes("codes_after", [nAfter, nBefore]),
    scores: await floats("scores", [s.batch, s.heads, [nAfter, nBefore]]),
    weights: await floats("weight_list", [s.batch, s.heads, s.tokens]),
  };
  return { ...s, name, metric, list, listLength, ...loaded };
}
