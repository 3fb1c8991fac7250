/**
 * Composition of WGSL: a kernel is an explicit list of parts (paths of `.wgsl` files below
 * `kernels/`), joined in order. There is no directive language: what is listed is what is compiled.
 *
 * @module
 */

import { WGSL_FILES } from "../wgsl_files.ts";

/** Joined WGSL text with the way back to the files it came from. */
export interface ComposedWgsl {
  /** What is given to the compiler. */
  readonly code: string;
  /** The file and 1-based line that a 1-based line of `code` came from. */
  locate(line: number): { file: string; line: number };
}

/** Options of {@linkcode composeWgsl}. */
export interface ComposeOptions {
  /** Texts by path; default: the project's own files. */
  readonly files?: Readonly<Record<string, string>>;
  /** Extensions whose `enable` line is left out (Naga has subgroups without one and refuses the line). */
  readonly omitEnables?: readonly string[];
}

/**
 * Joins parts. `enable` and `requires` lines move to the top, once each, as WGSL wants them.
 *
 * @throws {RangeError} for an unknown or a repeated part
 */
export function composeWgsl(parts: readonly string[], options: ComposeOptions = {}): ComposedWgsl {
  const { files = WGSL_FILES, omitEnables = [] } = options;
  const hoisted = new Map<string, { file: string; line: number }>();
  const body: string[] = [];
  const origin: { file: string; line: number }[] = [];
  const seen = new Set<string>();
  for (const file of parts) {
    const text = files[file];
    if (text === undefined) {
      throw new RangeError(
        `Cannot compose WGSL as every part must be a known file: ${file} is not one of ${
          Object.keys(files).join(", ")
        }`,
      );
    }
    if (seen.has(file)) {
      throw new RangeError(`Cannot compose WGSL as a part may be listed once: ${file} is listed twice`);
    }
    seen.add(file);
    text.split("\n").forEach((lineText, ix) => {
      const at = { file, line: ix + 1 };
      const directive = /^\s*(enable|requires)\s+(\w+)\s*;/.exec(lineText);
      if (directive) {
        if (!(directive[1] === "enable" && omitEnables.includes(directive[2]))) {
          const normal = `${directive[1]} ${directive[2]};`;
          if (!hoisted.has(normal)) hoisted.set(normal, at);
        }
        body.push("");
      } else {
        body.push(lineText);
      }
      origin.push(at);
    });
  }
  const head = [...hoisted.keys()];
  const lines = [...hoisted.values(), ...origin];
  return {
    code: [...head, ...body].join("\n"),
    locate: (line) => lines[Math.min(Math.max(line, 1), lines.length) - 1] ?? { file: parts[0] ?? "", line: 0 },
  };
}
