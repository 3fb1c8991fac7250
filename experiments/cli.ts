/**
 * The one shape of our command lines: `--help`, flags with a value, exit code 2 for wrong usage and
 * 1 for a failure, progress on stderr, results on stdout, NO_COLOR respected.
 *
 * @module
 */

import "./environment.ts";
import { parseArgs } from "@std/cli/parse-args";
import type { Size } from "../indexer/config.ts";
import { Gpu } from "../kernels/gpu/device.ts";

/** A flag with a value, or without one if `value` is empty. */
export interface Flag {
  /** What the help shows for the value: "FILE", "N"; "" for a switch. */
  readonly value: string;
  /** One line. */
  readonly help: string;
  /** Shown in the help and returned where the flag is not given. */
  readonly default?: string;
}

/** A command. */
export interface Command {
  /** `deno task <name>`. */
  readonly name: string;
  /** One line on what it does. */
  readonly summary: string;
  /** Flags by name, without `--help`. */
  readonly flags: Readonly<Record<string, Flag>>;
  /** What the help shows for positional arguments; none are taken if it is left out. */
  readonly positional?: string;
}

/** Other names of flags: the letters of the glossary, and the options of an index. */
const ALIASES: Readonly<Record<string, readonly string[]>> = {
  subvectors: ["m"],
  heavy: ["k", "heavy-size"],
  sink: ["s", "sink-size"],
  window: ["w", "window-size"],
  refine: ["r"],
  tokens: ["n"],
};

/** A mistake of the person who typed the command: exit code 2. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** Flags and positional arguments of a call. */
export interface Arguments {
  /** The value of a flag, or its default. */
  text(flag: string): string | undefined;
  /** Whether a switch was given. */
  has(flag: string): boolean;
  /** An integer flag; throws {@linkcode UsageError} if it is not in the range. */
  integer(flag: string, least: number, most: number): number;
  /** Integers, as "2,4,8"; `otherwise` if the flag was not given. Throws {@linkcode UsageError} as `integer`. */
  integers(flag: string, least: number, most: number, otherwise?: readonly number[]): readonly number[];
  /** A size: an integer, or a share such as "5%". */
  size(flag: string): Size;
  /** Positional arguments. */
  readonly positional: readonly string[];
}

function help(command: Command): string {
  const rows = Object.entries({ ...command.flags, help: { value: "", help: "show this" } as Flag }).map(
    ([name, flag]) => [
      `  ${[name, ...(ALIASES[name] ?? []).slice(0, 1)].map((name) => `--${name}`).join(", ")}${
        flag.value ? ` ${flag.value}` : ""
      }`,
      flag.help + (flag.default === undefined ? "" : ` (default ${flag.default})`),
    ],
  );
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return [
    `${command.summary}`,
    "",
    `Usage: deno task ${command.name} [flags]${command.positional ? ` ${command.positional}` : ""}`,
    "",
    ...rows.map(([left, right]) => left.padEnd(width) + right),
  ].join("\n");
}

function readArguments(command: Command, args: string[]): Arguments {
  const switches = Object.keys(command.flags).filter((name) => command.flags[name].value === "");
  const values = Object.keys(command.flags).filter((name) => command.flags[name].value !== "");
  const aliases = new Map(values.flatMap((name) => (ALIASES[name] ?? []).map((alias) => [alias, name])));
  const parsed = parseArgs(args, {
    boolean: [...switches, "help"],
    string: [...values, ...aliases.keys()],
    unknown: (arg, key) => {
      if (key === undefined) return true;
      throw new UsageError(
        `Cannot understand ${arg} as the flags are ${
          [...Object.keys(command.flags), "help"].map((name) => `--${name}`).join(", ")
        }`,
      );
    },
  });
  for (const [alias, name] of aliases) {
    if (parsed[alias] === undefined) continue;
    if (parsed[name] !== undefined) {
      throw new UsageError(`Cannot understand --${alias} as --${name} was given as well: they are the same`);
    }
    parsed[name] = parsed[alias];
  }
  const positional = parsed._.map(String);
  if (positional.length > 0 && !command.positional) {
    throw new UsageError(`Cannot understand ${JSON.stringify(positional[0])} as this command takes flags only`);
  }
  for (const name of values) {
    if (parsed[name] === "") {
      throw new UsageError(`Cannot understand --${name} as it needs a value: ${command.flags[name].value}`);
    }
  }
  const text = (flag: string): string | undefined => parsed[flag] ?? command.flags[flag].default;
  const integerIn = (flag: string, given: string, rule: string, least: number, most: number): number => {
    // 1e6 is an integer, too.
    const value = /^\d+(e\d+)?$/i.test(given) ? Number(given) : NaN;
    if (!Number.isSafeInteger(value) || value < least || value > most) {
      throw new UsageError(`Cannot use --${flag} ${given} as ${rule} an integer ${least} to ${most}`);
    }
    return value;
  };
  const integer = (flag: string, least: number, most: number): number =>
    integerIn(flag, text(flag) ?? "", "it must be", least, most);
  return {
    text,
    has: (flag) => parsed[flag] === true,
    integer,
    integers: (flag, least, most, otherwise = []) =>
      text(flag)?.split(",").map((given) => integerIn(flag, given, "each must be", least, most)) ?? otherwise,
    size: (flag) => {
      const share = /^(\d+(?:\.\d+)?)%$/.exec(text(flag) ?? "");
      if (!share) return integer(flag, 0, 2 ** 31);
      if (Number(share[1]) > 100) throw new UsageError(`Cannot use --${flag} ${share[0]} as a share is at most 100%`);
      return { ratio: Number(share[1]) / 100 };
    },
    positional,
  };
}

/**
 * Runs a command to the end of the process.
 *
 * @param main returns the exit code
 */
export async function runCommand(command: Command, main: (args: Arguments) => Promise<number>): Promise<never> {
  try {
    if (Deno.args.includes("--help") || Deno.args.includes("-h")) {
      console.log(help(command));
      Deno.exit(0);
    }
    Deno.exit(await main(readArguments(command, Deno.args)));
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`error: ${error.message}\nSee \`deno task ${command.name} --help\`.`);
      Deno.exit(2);
    }
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    if (Deno.env.get("DEBUG")) console.error(error);
    Deno.exit(1);
  }
}

/**
 * The GPU. Where a task asked for it, a missing adapter is installed first: so a command calls this when it has checked what
 * it was given.
 *
 * @throws {GpuUnavailableError} without one
 */
export async function openGpu(): Promise<Gpu> {
  if (Deno.env.get("PQ_INDEXER_SETUP") === "1") {
    Deno.env.delete("PQ_INDEXER_SETUP"); // programs that this one starts need not look again
    await (await import("../tools/setup.ts")).setupAdapter();
  }
  return await Gpu.shared();
}

/** Fails now, not after the work, if a file cannot be written. */
export async function prepareOutput(path: string | undefined): Promise<void> {
  if (path === undefined) return;
  await Deno.writeTextFile(path, "", { append: true }).catch((error: Error) => {
    throw new UsageError(`Cannot write ${path}: ${error.message}`);
  });
}

/** Breaks a line at spaces so that none is longer than `width`, where words allow. */
export function wrap(text: string, width: number): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    if (last !== "" && last.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = last === "" ? word : `${last} ${word}`;
  }
  return lines.join("\n");
}

const useColor = !Deno.noColor && Deno.stdout.isTerminal();

/** Bold on a terminal that wants color. */
export function bold(text: string): string {
  return useColor ? `\x1b[1m${text}\x1b[22m` : text;
}

/** Dim on a terminal that wants color. */
export function dim(text: string): string {
  return useColor ? `\x1b[2m${text}\x1b[22m` : text;
}

/** Green if good, red if not, on a terminal that wants color. */
export function verdict(text: string, good: boolean): string {
  return useColor ? `\x1b[${good ? 32 : 31}m${text}\x1b[39m` : text;
}

/** A progress bar on stderr where that is a terminal; one line per phase elsewhere. */
export class Progress {
  readonly #terminal = Deno.stderr.isTerminal() && Deno.env.get("TERM") !== "dumb";
  #phase = "";
  #began = 0;
  #drawn = 0;

  /** Begins a phase. */
  phase(name: string): void {
    this.#phase = name;
    this.#began = performance.now();
    this.#drawn = 0;
    if (this.#terminal) this.update(0, 1);
    else console.error(`${name} …`);
  }

  /** Draws the bar, at most ten times a second. */
  update(done: number, total: number): void {
    if (!this.#terminal) return;
    const now = performance.now();
    if (done < total && now - this.#drawn < 100) return;
    this.#drawn = now;
    const share = total === 0 ? 1 : done / total;
    const filled = Math.round(share * 24);
    const left = share > 0.02 ? (now - this.#began) * (1 - share) / share / 1000 : undefined;
    const time = left === undefined ? "" : `${left.toFixed(left < 10 ? 1 : 0)} s left`;
    const bar = "█".repeat(filled) + "░".repeat(24 - filled);
    write(`\r\x1b[2K${this.#phase.padEnd(34)} ${bar} ${String(Math.round(share * 100)).padStart(3)} %  ${time}`);
  }

  /** Clears the bar. */
  done(): void {
    if (this.#terminal) write("\r\x1b[2K");
  }
}

function write(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(text));
}
