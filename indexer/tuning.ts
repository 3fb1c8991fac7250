/**
 * Sizes of the tuned step, and the file in which `deno task tune` keeps those that it measured to be best: by adapter,
 * driver and class of shape. Sizes change speed only, never results.
 *
 * @module
 */

import { escaped } from "./safetensors.ts";
import { hostDriver, hostReadText } from "../kernels/gpu/host.ts";
import type { GpuInfo } from "../kernels/gpu/device.ts";
import { refuse, type ResolvedConfig, shortlistConfig, show } from "./config.ts";

/** What is tuned. Speed depends on it; results do not. */
export interface Tuning {
  /** Invocations of score_tiles, 16 tokens each per chunk: a power of two, 64 to 1024. */
  readonly invocations: number;
  /** The most chunks that make a tile: a power of two, 1 to 32. */
  readonly mostChunks: number;
  /** Workgroups of score_tiles that run at once: up to twice as many tiles have one chunk, beyond that they grow. */
  readonly workgroups: number;
  /** Query heads of a group (or rows) per workgroup of score_tiles, which share the reading of codes. */
  readonly lists: number;
  /** Invocations of the kernel that makes lists, one workgroup per list: a power of two, 64 to 1024, by cells from 256 on. */
  readonly listInvocations: number;
  /** Invocations per subgroup as the device has them, or 0 to do without. */
  readonly subgroupSize: number;
}

/** What was found best once. */
export interface TuningEntry {
  /** The adapter's description. */
  readonly adapter: string;
  /** The driver, as far as the platform tells. */
  readonly driver: string;
  /** See {@linkcode shapeClass}. */
  readonly shape: string;
  /** The sizes. */
  readonly tuning: Tuning;
  /** Median µs of the step's GPU pass by number of tokens: with these sizes, and with those that are the default. */
  readonly measured: readonly { readonly tokens: number; readonly us: number; readonly defaultUs: number }[];
  /** UTC time, ISO 8601. */
  readonly date: string;
}

/** What `deno task tune` writes. */
export interface TuningFile {
  /** At most one entry per adapter, driver and class of shape. */
  readonly tunings: readonly TuningEntry[];
}

/** All sizes. */
export const TUNING_NAMES = [
  "invocations",
  "mostChunks",
  "workgroups",
  "lists",
  "listInvocations",
  "subgroupSize",
] as const;

/**
 * Checks sizes.
 *
 * @throws {RangeError} for sizes that no kernel can have
 */
export function checkTuning(action: string, tuning: Tuning): void {
  const isPower = (value: number, least: number, most: number) =>
    Number.isInteger(Math.log2(value)) && value >= least && value <= most;
  const isCount = (value: number) => value >= 1 && value <= 65_536;
  if (
    typeof tuning !== "object" || tuning === null || TUNING_NAMES.some((name) => !Number.isInteger(tuning[name])) ||
    !isPower(tuning.invocations, 64, 1024) || !isPower(tuning.listInvocations, 64, 1024) ||
    !isPower(tuning.mostChunks, 1, 32) || !isCount(tuning.lists) || !isCount(tuning.workgroups) ||
    !(tuning.subgroupSize === 0 || isPower(tuning.subgroupSize, 4, 128))
  ) {
    refuse(
      action,
      "invocations and listInvocations must be powers of two 64 to 1024, mostChunks 1 to 32, lists and workgroups " +
        "integers 1 to 65536, subgroupSize 0 or a power of two 4 to 128",
      JSON.stringify(tuning),
    );
  }
}

/** Shapes that share their best sizes: lists and heavy tokens count by powers of two, tokens not at all. */
export function shapeClass(config: ResolvedConfig, weights: boolean): string {
  const { listShape: shape, metric, pooling, refine } = config, { heavySize } = shortlistConfig(config);
  const near = (value: number) => value === 0 ? 0 : 2 ** Math.round(Math.log2(value));
  const { batch, heads, kvHeads, headWidth, subvectors, centroids } = shape;
  return [
    `lists ${near(batch * heads)}`,
    `group ${heads / kvHeads}`,
    `D ${headWidth}`,
    `M ${subvectors}`,
    `bits ${Math.log2(centroids)}`,
    `K ${typeof heavySize === "number" ? near(heavySize) : "ratio"}`,
    ...(metric === "ip" ? ["ip"] : []),
    ...(pooling === "perQueryHead" ? [] : [pooling]),
    ...(refine > 1 ? ["re-ranked"] : []),
    `weights ${weights ? "on" : "off"}`,
  ].join(", ");
}

/**
 * The entry for an adapter, its driver and a shape, if the file has one. Where the platform does not tell the driver, any
 * driver's will do.
 *
 * @param driver is asked for only where adapter and shape are found
 */
export async function findTuning(
  { tunings }: TuningFile,
  adapter: string,
  driver: () => Promise<string>,
  shape: string,
): Promise<TuningEntry | undefined> {
  const found = tunings.filter((entry) => entry.adapter === adapter && entry.shape === shape);
  if (found.length === 0) return undefined;
  const own = await driver();
  return found.find((entry) => entry.driver === own || own === "unknown");
}

/**
 * Checks what was read from a file.
 *
 * @throws {TypeError | RangeError} if it is not what `deno task tune` writes
 */
export function checkTuningFile(file: unknown): TuningFile {
  const { tunings } = (file ?? {}) as { tunings?: unknown };
  if (!Array.isArray(tunings)) {
    throw new TypeError(
      `Cannot use this tuning as it must have a list of tunings, as deno task tune writes it: it is ${show(file)}`,
    );
  }
  for (const entry of tunings as TuningEntry[]) checkTuning("use this tuning", entry?.tuning);
  return file as TuningFile;
}

/**
 * Reads the file that `deno task tune` wrote.
 *
 * @throws {TypeError | RangeError} if it cannot be read or is none
 */
export async function readTuning(path: string | URL): Promise<TuningFile> {
  let text: string;
  try {
    text = await hostReadText(path);
  } catch (error) {
    throw new TypeError(
      `Cannot read the tuning as its file must be there, write it with deno task tune: ${(error as Error).message}`,
    );
  }
  try {
    return checkTuningFile(JSON.parse(text));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new TypeError(`Cannot read the tuning as it must be JSON: ${escaped(`${path}: ${error.message}`)}`);
  }
}

/**
 * The sizes for a shape on this machine, if a file or its content has them.
 *
 * @param info the GPU; undefined on a CPU, where nothing is tuned but the file must be right all the same
 */
export async function tuningFor(
  source: string | URL | TuningFile,
  info: GpuInfo | undefined,
  config: ResolvedConfig,
  weights: boolean,
): Promise<Tuning | undefined> {
  const file = typeof source === "string" || source instanceof URL ? await readTuning(source) : checkTuningFile(source);
  if (!info) return undefined;
  return (await findTuning(file, info.description, () => hostDriver(info), shapeClass(config, weights)))?.tuning;
}
