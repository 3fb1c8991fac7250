/**
 * Flags that describe an index, for the commands that take any shape.
 *
 * @module
 */

import { type PqConfig, resolveConfig, type ResolvedConfig } from "../indexer/config.ts";
import { type Arguments, type Flag, UsageError } from "./cli.ts";

/** The flags; their defaults are the seed configuration. */
export const CONFIG_FLAGS = {
  batch: { value: "B", help: "sequences", default: "1" },
  heads: { value: "H", help: "query heads", default: "32" },
  "kv-heads": { value: "N", help: "KV heads (default: as many as query heads)" },
  "head-width": { value: "D", help: "width of a head", default: "128" },
  subvectors: { value: "M", help: "subvectors per key", default: "2" },
  bits: { value: "N", help: "bits per code, 1 to 8", default: "6" },
  sink: { value: "S", help: "sink tokens, or a share such as 1%", default: "128" },
  window: { value: "W", help: "window tokens, or a share", default: "128" },
  heavy: { value: "K", help: "heavy tokens, or a share", default: "128" },
} as const satisfies Record<string, Flag>;

/**
 * The config that the flags describe.
 *
 * @throws {UsageError} for a value out of its range
 */
export function configFrom(args: Arguments): { readonly given: PqConfig; readonly config: ResolvedConfig } {
  const most = 2 ** 20;
  const heads = args.integer("heads", 1, most);
  const given: PqConfig = {
    batch: args.integer("batch", 1, most),
    heads,
    kvHeads: args.text("kv-heads") === undefined ? heads : args.integer("kv-heads", 1, most),
    headWidth: args.integer("head-width", 1, most),
    subvectors: args.integer("subvectors", 1, most),
    bits: args.integer("bits", 1, 8),
    sinkSize: args.size("sink"),
    windowSize: args.size("window"),
    heavySize: args.size("heavy"),
  };
  try {
    return { given, config: resolveConfig(given) };
  } catch (error) {
    if (error instanceof RangeError) throw new UsageError(error.message);
    throw error;
  }
}
