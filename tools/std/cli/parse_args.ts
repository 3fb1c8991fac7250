/**
 * Stand-in for `parseArgs` of `jsr:@std/cli`, for machines that cannot reach JSR: the options that
 * our scripts use, with the same meaning, on top of `parseArgs` of `node:util`.
 *
 * @module
 */

import { parseArgs as nodeParseArgs } from "node:util";

/** The options that our scripts use. */
export interface ParseOptions {
  /** Flags without a value. */
  readonly boolean?: readonly string[];
  /** Flags with a value. */
  readonly string?: readonly string[];
  /** Called for every argument that no option names; `false` leaves it out. */
  readonly unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

/** Parsed flags by name, positional arguments under `_`. */
export interface Args {
  /** Positional arguments. */
  _: (string | number)[];
  // deno-lint-ignore no-explicit-any
  [name: string]: any;
}

/** Parses command line arguments: `--name value`, `--name=value`, `--flag`, `--` before positionals. */
export function parseArgs(args: string[], options: ParseOptions = {}): Args {
  const { boolean = [], string = [], unknown } = options;
  const known = {
    ...Object.fromEntries(boolean.map((name) => [name, { type: "boolean" as const }])),
    ...Object.fromEntries(string.map((name) => [name, { type: "string" as const }])),
  };
  const { tokens } = nodeParseArgs({ args, options: known, strict: false, allowPositionals: true, tokens: true });
  const result: Args = { _: [], ...Object.fromEntries(boolean.map((name) => [name, false])) };
  for (const token of tokens) {
    if (token.kind === "positional") {
      if (unknown?.(token.value) !== false) result._.push(token.value);
    } else if (token.kind === "option") {
      const value = boolean.includes(token.name) ? token.value !== "false" : token.value ?? "";
      if (!Object.hasOwn(known, token.name) && unknown?.(token.rawName, token.name, token.value) === false) continue;
      result[token.name] = value;
    }
  }
  return result;
}
