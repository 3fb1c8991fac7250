/**
 * Options of an index, their rules, and what follows from them. Everything here is pure.
 *
 * @module
 */

import { escaped } from "./safetensors.ts";
import { pooledShape } from "../kernels/pool/pool.ts";
import { MOST_SHORT } from "../kernels/refine/refine_list.ts";
import { type LayerShape, MAX_ROWS, type RowShape } from "../kernels/shape.ts";

/**
 * A number of tokens, or a share of them: `{ ratio: r }` is `floor(r × N)` in f64, where N is the
 * number of tokens that the query row sees, re-evaluated at every step.
 */
export type Size = number | {
  /** Share of N, 0 … 1. */
  readonly ratio: number;
};

/** How distances are measured when a key is coded. "ip" adds the column √max(phi − ‖x‖², 0). */
export type Metric = "euclidean" | "ip";

/**
 * Whether the query heads that share a KV head share a list: "perQueryHead", each has its own; else one list for all, by a
 * pooled score: the sum of theirs ("groupSum", where heads of large norm dominate), the largest ("groupMax"), or the sum of
 * their softmaxes of score/√D over the row's candidates ("groupSoftmax", as in PQCache; where scores lie so far apart that
 * shares underflow to 0, those tie, and the lower tokens are listed).
 */
export type Pooling = "perQueryHead" | "groupSum" | "groupMax" | "groupSoftmax";

/** Every way of pooling. */
export const POOLINGS: readonly Pooling[] = ["perQueryHead", "groupSum", "groupMax", "groupSoftmax"];

/** What is indexed and what is listed. Letters are those of the PQ literature. */
export interface PqConfig {
  /** B: sequences in the batch. Default 1. */
  readonly batch?: number;
  /** H: query heads. */
  readonly heads: number;
  /** Hkv: KV heads, a divisor of H. Default H. */
  readonly kvHeads?: number;
  /** D: head width. */
  readonly headWidth: number;
  /** M: subvectors per key, a divisor of D. Default 2. */
  readonly subvectors?: number;
  /** Bits per code, 1 … 8: C = 2^bits centroids. Default 6. */
  readonly bits?: number;
  /** Default "euclidean". */
  readonly metric?: Metric;
  /** S: first tokens, always listed. Default 128. */
  readonly sinkSize?: Size;
  /** W: last tokens, always listed. Default 128. */
  readonly windowSize?: Size;
  /** K: heavy tokens, listed by score. Default 128. */
  readonly heavySize?: Size;
  /**
   * First token that is coded. Default: the sink size at training. Tokens between the sink and a larger
   * initOffset are never heavy: they are listed only while they are in the window.
   */
  readonly initOffset?: number;
  /** Default "perQueryHead". */
  readonly pooling?: Pooling;
  /**
   * R: the heavy tokens are the K best by exact q·k of the R·K best by score. Every step that selects then takes the cached
   * keys. R·K is 4096 at most, and less where a device has little workgroup memory (2048 with 16 KiB). Default 1: no
   * re-ranking.
   */
  readonly refine?: number;
  /** How the cached keys are kept that re-ranking reads. Default "f32". */
  readonly refineElements?: "f32" | "f16";
}

/** The names of a config's options. */
export const CONFIG_OPTIONS = [
  "batch",
  "heads",
  "kvHeads",
  "headWidth",
  "subvectors",
  "bits",
  "metric",
  "sinkSize",
  "windowSize",
  "heavySize",
  "initOffset",
  "pooling",
  "refine",
  "refineElements",
] as const satisfies readonly (keyof PqConfig)[];

/** A validated config with its defaults filled in. */
export interface ResolvedConfig {
  /** The layer's shape. */
  readonly shape: LayerShape;
  /** Metric. */
  readonly metric: Metric;
  /** S. */
  readonly sinkSize: Size;
  /** W. */
  readonly windowSize: Size;
  /** K. */
  readonly heavySize: Size;
  /** First coded token if it was given. */
  readonly initOffset: number | undefined;
  /** Pooling; "perQueryHead" where every query head has a KV head of its own, as then all are the same. */
  readonly pooling: Pooling;
  /** The shape that lists have: the layer's, with as many heads as there are lists per batch and row. */
  readonly listShape: LayerShape;
  /** R. */
  readonly refine: number;
  /** How re-ranking finds the cached keys kept. */
  readonly refineElements: "f32" | "f16";
}

/** Throws the one form of range error that this project uses. */
export function refuse(action: string, rule: string, actual: string): never {
  throw new RangeError(`Cannot ${action} as ${rule}: ${escaped(String(actual))}`);
}

function wholeNumber(action: string, name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
    refuse(action, `${name} must be an integer ${least} to ${most}`, `${name} is ${show(value)}`);
  }
  return value;
}

/** A value as an error shows it: numbers as they are, strings quoted, objects by their class. */
export function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  return typeof value === "object" && value !== null
    ? `of class ${value.constructor?.name ?? "Object"}`
    : String(value);
}

/** Refuses options that nobody reads: a misspelt one would silently be the default. */
export function knowOptions(action: string, options: unknown, known: readonly string[]): void {
  if (typeof options !== "object" || options === null) {
    throw new TypeError(`Cannot ${action} as its options must be an object: they are ${show(options)}`);
  }
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) {
      throw new TypeError(`Cannot ${action} as its options are ${known.join(", ")}: ${name} is none of them`);
    }
  }
}

function validSize(action: string, name: string, value: unknown): Size {
  if (typeof value === "object" && value !== null && "ratio" in value) {
    const { ratio } = value as { ratio: unknown };
    if (typeof ratio !== "number" || !(ratio >= 0 && ratio <= 1)) {
      refuse(action, `${name}.ratio must be a number 0 to 1`, `${name}.ratio is ${ratio}`);
    }
    return { ratio };
  }
  return wholeNumber(action, name, value, 0, 2 ** 31);
}

/**
 * Validates a config and fills in its defaults.
 *
 * @throws {RangeError} for a value out of its range
 */
export function resolveConfig(config: PqConfig): ResolvedConfig {
  const action = "create an index";
  const most = 2 ** 20;
  const batch = wholeNumber(action, "batch", config.batch ?? 1, 1, most);
  const heads = wholeNumber(action, "heads", config.heads, 1, most);
  const kvHeads = wholeNumber(action, "kvHeads", config.kvHeads ?? heads, 1, heads);
  if (heads % kvHeads !== 0) {
    refuse(action, "heads must be divisible by kvHeads", `heads is ${heads}, kvHeads is ${kvHeads}`);
  }
  const headWidth = wholeNumber(action, "headWidth", config.headWidth, 1, most);
  const subvectors = wholeNumber(action, "subvectors", config.subvectors ?? 2, 1, headWidth);
  if (headWidth % subvectors !== 0) {
    refuse(action, "D must be divisible by M", `headWidth (D) is ${headWidth}, subvectors (M) is ${subvectors}`);
  }
  const bits = wholeNumber(action, "bits", config.bits ?? 6, 1, 8);
  const metric = config.metric ?? "euclidean";
  if (metric !== "euclidean" && metric !== "ip") {
    refuse(action, `metric must be "euclidean" or "ip"`, `metric is ${JSON.stringify(metric)}`);
  }
  const given = config.pooling ?? "perQueryHead";
  if (!POOLINGS.includes(given)) {
    const names = POOLINGS.map((name) => JSON.stringify(name)).join(", ");
    refuse(action, `pooling must be one of ${names}`, `pooling is ${show(given)}`);
  }
  const pooling = heads === kvHeads ? "perQueryHead" : given;
  const initOffset = config.initOffset;
  const heavySize = validSize(action, "heavySize", config.heavySize ?? 128);
  const refine = wholeNumber(action, "refine", config.refine ?? 1, 1, MOST_SHORT);
  const refineElements = config.refineElements ?? "f32";
  if (refineElements !== "f32" && refineElements !== "f16") {
    refuse(action, 'refineElements must be "f32" or "f16"', `it is ${show(refineElements)}`);
  }
  if (refine > 1) {
    if (headWidth % 8 !== 0 || headWidth > 256) {
      refuse(action, "re-ranking needs a headWidth that is a multiple of 8, at most 256", `headWidth is ${headWidth}`);
    }
    if (poolsScores({ pooling })) {
      refuse(action, 're-ranking needs pooling "perQueryHead" or "groupSum"', `pooling is ${JSON.stringify(pooling)}`);
    }
    if (typeof heavySize === "number" && refine * heavySize > MOST_SHORT) {
      refuse(action, `refine x heavySize must be at most ${MOST_SHORT}`, `they are ${refine} x ${heavySize}`);
    }
  }
  const shape = { batch, heads, kvHeads, headWidth, subvectors, centroids: 2 ** bits, augmented: metric === "ip" };
  return {
    shape,
    listShape: pooling === "perQueryHead" ? shape : pooledShape(shape),
    metric,
    sinkSize: validSize(action, "sinkSize", config.sinkSize ?? 128),
    windowSize: validSize(action, "windowSize", config.windowSize ?? 128),
    heavySize,
    refine,
    refineElements,
    initOffset: initOffset === undefined ? undefined : wholeNumber(action, "initOffset", initOffset, 0, 2 ** 31),
    pooling,
  };
}

/** A size at N tokens. */
export function sizeAt(size: Size, nTokens: number): number {
  return typeof size === "number" ? size : Math.floor(size.ratio * nTokens);
}

/** The first coded token: as configured, else the sink size at N tokens. */
export function initOffsetAt(config: ResolvedConfig, nTokens: number): number {
  return config.initOffset ?? sizeAt(config.sinkSize, nTokens);
}

/**
 * Resolves one query row to plain ranges: the short path, sink, candidates and window of a row
 * that sees `nTokens` tokens.
 *
 * @param nRows sq, the rows of the step
 */
export function resolveRow(
  config: ResolvedConfig,
  initOffset: number,
  nTokens: number,
  nRows: number,
): RowShape {
  const sink = sizeAt(config.sinkSize, nTokens);
  const window = sizeAt(config.windowSize, nTokens);
  const heavy = sizeAt(config.heavySize, nTokens);
  if (nTokens <= heavy + initOffset + nRows + config.shape.centroids || sink + heavy + window >= nTokens) {
    return {
      nTokens,
      nSink: nTokens,
      nHeavy: 0,
      windowBegin: nTokens,
      candBegin: 0,
      candEnd: 0,
      listLength: nTokens,
    };
  }
  const windowBegin = nTokens - window;
  const candBegin = Math.max(initOffset, sink) - initOffset;
  const candEnd = Math.max(candBegin, windowBegin - initOffset);
  const nHeavy = Math.min(heavy, candEnd - candBegin);
  const listLength = sink + nHeavy + window;
  const row = { nTokens, nSink: sink, nHeavy, windowBegin, candBegin, candEnd, listLength };
  return config.refine > 1 ? { ...row, nShort: Math.min(config.refine * heavy, candEnd - candBegin) } : row;
}

/** Whether a row lists every token without looking at scores. */
export function isShort(row: RowShape): boolean {
  return row.nSink === row.nTokens;
}

/**
 * Resolves the rows of a step: row r of sq sees `nTokens − sq + 1 + r` tokens.
 *
 * @throws {RangeError} if there are more rows than tokens (an empty index lists nothing for one row), or
 * more than {@linkcode MAX_ROWS}
 */
export function resolveRows(
  config: ResolvedConfig,
  initOffset: number,
  nTokens: number,
  nRows: number,
): RowShape[] {
  wholeNumber("select", "rows", nRows, 1, MAX_ROWS);
  if (nRows > Math.max(1, nTokens)) {
    refuse("select", "every query row must be the row of a cached token", `rows is ${nRows}, tokens is ${nTokens}`);
  }
  return Array.from(
    { length: nRows },
    (_, r) => resolveRow(config, initOffset, nTokens - nRows + 1 + r, nRows),
  );
}

/** How much an index has room for. Strides of its buffers. */
export interface Capacity {
  /** Tokens; weights and codes have this stride. */
  readonly tokens: number;
  /** Query rows per step. */
  readonly rows: number;
  /** Heavy tokens per list. */
  readonly heavy: number;
  /** Tokens per list. */
  readonly list: number;
  /** Heavy tokens of a shortlist; 0 without re-ranking. */
  readonly short: number;
  /** Tokens per list whose heavy tokens are the shortlist; 0 without re-ranking. */
  readonly shortList: number;
}

/** Capacities are multiples of this, so that rows of bytes and of scores begin at 16-byte boundaries. */
const CAPACITY_STEP = 16;

/** Room for every list that an index of up to `leastTokens` tokens can produce. */
export function capacityFor(config: ResolvedConfig, leastTokens: number, rows: number): Capacity {
  const tokens = Math.ceil(leastTokens / CAPACITY_STEP) * CAPACITY_STEP;
  const sink = sizeAt(config.sinkSize, tokens);
  const window = sizeAt(config.windowSize, tokens);
  const heavy = Math.min(sizeAt(config.heavySize, tokens), tokens);
  const shortPath = heavy + (config.initOffset ?? sink) + rows + config.shape.centroids;
  const list = Math.min(tokens, Math.max(shortPath, sink + heavy + window));
  if (config.refine === 1) return { tokens, rows, heavy, list, short: 0, shortList: 0 };
  const short = Math.min(config.refine * heavy, tokens);
  if (short > MOST_SHORT) {
    refuse(
      `make room for ${tokens} tokens`,
      `refine x K must be at most ${MOST_SHORT}`,
      `they are ${config.refine} x ${heavy}`,
    );
  }
  return { tokens, rows, heavy, list, short, shortList: Math.min(tokens, Math.max(list, sink + short + window)) };
}

/** Whether scores are pooled one by one, so that they must be stored; sums are those of a summed query. */
export function poolsScores({ pooling }: Pick<ResolvedConfig, "pooling">): boolean {
  return pooling === "groupMax" || pooling === "groupSoftmax";
}

/** The config of a step whose queries were summed up: that of a layer of KV heads only. */
export function summedConfig(config: ResolvedConfig): ResolvedConfig {
  return { ...config, shape: config.listShape, pooling: "perQueryHead" };
}

/** The config of the step that makes shortlists. */
export function shortlistConfig(config: ResolvedConfig): ResolvedConfig {
  const { heavySize, refine } = config;
  return {
    ...config,
    heavySize: typeof heavySize === "number" ? refine * heavySize : { ratio: Math.min(1, refine * heavySize.ratio) },
    refine: 1,
  };
}
