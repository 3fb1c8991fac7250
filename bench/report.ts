/**
 * Turns result files of the bench into tables: `deno task bench report [FILE …]`. A table never mixes adapters: every
 * file is reported by itself.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { bold, type Command, runCommand, UsageError, wrap } from "../experiments/cli.ts";
import type { BenchReport, BenchRow } from "./bench.ts";
import type { PeerReport } from "./peers/peers.ts";

const RESULTS = new URL("results/", import.meta.url);

/** A result file. */
export interface ResultFile {
  /** Name of the file. */
  readonly name: string;
  readonly report: BenchReport;
}

/**
 * Reads a result file.
 *
 * @throws {UsageError} if it cannot be read or is none
 */
export async function readResults(path: string): Promise<ResultFile> {
  const name = path.split(/[\\/]/).at(-1)!;
  let report: BenchReport;
  try {
    report = JSON.parse(await Deno.readTextFile(path));
  } catch (error) {
    throw new UsageError(`Cannot read ${path}: ${(error as Error).message}`);
  }
  if (!Array.isArray(report?.rows) || typeof report?.provenance?.adapter !== "string") {
    throw new UsageError(
      `Cannot report ${path} as it holds no rows and provenance: write it with deno task bench --json`,
    );
  }
  return { name, report };
}

/** All committed result files, newest last. */
export async function committedResults(): Promise<ResultFile[]> {
  const names: string[] = [];
  for await (const entry of Deno.readDir(RESULTS)) if (entry.name.endsWith(".json")) names.push(entry.name);
  names.sort((a, b) => a.slice(-15).localeCompare(b.slice(-15)) || a.localeCompare(b));
  return await Promise.all(names.map((name) => readResults(fileURLToPath(new URL(name, RESULTS)))));
}

/**
 * The newest committed results of a GPU.
 *
 * @throws {UsageError} if there are none
 */
export async function newestGpuResults(): Promise<ResultFile> {
  const newest = (await committedResults()).findLast(({ report }) => !report.provenance.software);
  if (!newest) {
    throw new UsageError(
      "Cannot find results of a GPU as bench/results/ holds none: run deno task bench --full on one, which writes them there",
    );
  }
  return newest;
}

/** A result file of `deno task bench peers`. */
export interface PeerFile {
  /** Name of the file. */
  readonly name: string;
  readonly report: PeerReport;
}

/** All committed runs of the peers on a GPU, oldest first. */
export async function committedPeers(): Promise<PeerFile[]> {
  const folder = new URL("peers/", RESULTS), files: PeerFile[] = [];
  for await (const { name } of Deno.readDir(folder)) {
    if (name.endsWith(".json")) {
      files.push({ name, report: JSON.parse(await Deno.readTextFile(new URL(name, folder))) });
    }
  }
  return files.filter(({ report }) => !report.provenance.software && report.rows[0]?.amortizedUs)
    .sort((a, b) => a.report.provenance.date.localeCompare(b.report.provenance.date));
}

/** A number for a table: digits after the point below 100, "–" where there is none. */
export const number = (value: number | undefined | null, digits = 1): string =>
  value === undefined || value === null ? "–" : value.toLocaleString("en", {
    minimumFractionDigits: value < 100 ? digits : 0,
    maximumFractionDigits: value < 100 ? digits : 0,
  });

/**
 * The share of a step that the GPU spent beside its kernels: pass, barriers between dispatches, launches. Undefined where
 * the kernels in passes of their own take longer than the whole step, as then their difference says nothing.
 */
export function outside(row: BenchRow, emptyPassUs: number): number | undefined {
  if (!row.gpuUs || row.operations.length === 0) return undefined;
  // An operation's own pass holds the overhead of a pass, once; so what is left of it is the kernel.
  const kernels = row.operations.filter(({ us }) => us > 0).reduce(
    (sum, { us }) => sum + Math.max(0, us - emptyPassUs),
    0,
  );
  const share = 1 - kernels / row.gpuUs.median;
  return share < 0 ? undefined : share;
}

/**
 * µs below which no step of this pipeline can be: the bytes that it cannot do without at the speed of a copy. These are
 * those of reading every code, or its own accesses where it makes fewer, as a pipeline that ranks cells does.
 */
export function floorUs(row: BenchRow, copyGBs: number): number {
  return Math.min(row.bytesLeast, row.bytesMoved) / copyGBs / 1e3;
}

/** Cells of the bound report: which bytes a step that reads every code moves, which this one does, and at what rate. */
export function boundRows(report: BenchReport): string[][] {
  const gpuRows = report.rows.filter((row) => row.gpuUs);
  return gpuRows.map((row) => {
    const us = row.gpuUs!.median;
    const floor = floorUs(row, report.copyGBs), share = floor / us;
    return [
      `${row.factor} ${row.value.toLocaleString("en")}`,
      row.id,
      number(us),
      number(row.bytesLeast / 1e6),
      number(row.bytesMoved / 1e6),
      number(floor),
      `${(100 * share).toFixed(1)} %`,
      row.dispatches.toString(),
      ((value) => value === undefined ? "–" : `${(100 * value).toFixed(0)} %`)(outside(row, report.emptyPassUs)),
    ];
  });
}

const BOUND_HEAD = ["case", "id", "GPU µs", "every code", "own MB", "floor µs", "of copy", "disp.", "outside"];

/** The iterations at the seed configuration as a Markdown table, for the README. */
export function markdownTable(report: BenchReport): string {
  const seed = report.rows.filter((row) => row.factor === "N" && row.value === 32_000);
  const baseline = seed.find((row) => row.gpuUs);
  const larger = (id: string) =>
    report.rows.find((row) => row.factor === "N" && row.value === 131_072 && row.id === id);
  const body = seed.filter((row) => row.gpuUs).map((row, ix, rows) => {
    const before = rows[ix - 1];
    const ratio = (other: BenchRow | undefined) => other ? (other.gpuUs!.median / row.gpuUs!.median).toFixed(2) : "–";
    return [
      `${row.id} ${row.title}`,
      row.dispatches.toString(),
      number(row.gpuUs!.median),
      number(row.gpuUs!.sd),
      ratio(before),
      ratio(baseline),
      number(row.gpuColdUs?.median),
      number(row.gpuPerLayerUs?.median),
      row.wallEmptyUs ? number(row.wallUs.median - row.wallEmptyUs.median) : "–",
      number(row.amortizedUs?.median),
      number(larger(row.id)?.gpuUs?.median),
    ];
  });
  const head = [
    "iteration",
    "disp.",
    "GPU µs",
    "sd",
    "× prev.",
    "× base",
    "cold",
    "per layer of 32",
    "wall − empty",
    "amortized",
    "N 131,072",
  ];
  return markdown([head, ...body]);
}

/** A Markdown table with aligned columns. */
export function markdown(table: readonly (readonly string[])[]): string {
  const widths = table[0].map((_, column) => Math.max(...table.map((row) => row[column].length)));
  const row = (cells: readonly string[]) => `| ${cells.map((cell, ix) => cell.padEnd(widths[ix])).join(" | ")} |`;
  return [row(table[0]), row(widths.map((width) => "-".repeat(width))), ...table.slice(1).map(row)].join("\n");
}

function plain(table: readonly (readonly string[])[]): string {
  const widths = table[0].map((_, column) => Math.max(...table.map((row) => row[column].length)));
  return table.map((row, ix) => {
    const text = row.map((cell, column) => column < 2 ? cell.padEnd(widths[column]) : cell.padStart(widths[column]))
      .join("  ");
    return ix === 0 ? bold(text) : text;
  }).join("\n");
}

/** One line on where numbers come from. */
export function source({ report: { provenance } }: ResultFile): string {
  const { adapter, software, driver, deno, commit, date } = provenance;
  const kind = software ? " (software: its times say nothing about a GPU)" : "";
  return `${adapter}${kind}, driver ${driver}, Deno ${deno}, commit ${commit}, ${date.slice(0, 10)}`;
}

const COMMAND: Command = {
  name: "bench report",
  summary: "Reports result files of the bench: iterations, and how far each is from what its bytes take at copy speed.",
  flags: {},
  positional: "[FILE …] (default: all of bench/results/)",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const files = args.positional.length > 0
      ? await Promise.all(args.positional.map(readResults))
      : await committedResults();
    if (files.length === 0) {
      throw new UsageError("Cannot report as bench/results/ holds no results: run deno task bench --json FILE first");
    }
    for (const file of files) {
      console.log(`${bold(file.name)}\n${wrap(source(file), 100)}`);
      console.log(
        `copy ${number(file.report.copyGBs, 0)} GB/s read and written, empty pass ${
          number(file.report.emptyPassUs)
        } µs\n`,
      );
      if (file.report.note) console.log(`${wrap(`Note: ${file.report.note}`, 100)}\n`);
      console.log(plain([BOUND_HEAD, ...boundRows(file.report)]));
      console.log(
        "every code: MB of a step that reads every candidate's code once, as all do that score every key; own MB:\n" +
          "every access of this pipeline's kernels, once each (e08 reads no code of a cached key, older ones read some\n" +
          "bytes again); floor: the smaller of the two at copy speed; of copy: floor over GPU time, so at most 100 %;\n" +
          "outside: share of the pass that is in no kernel; –: the kernels, each in a pass of its own, took longer than\n" +
          "the step\n",
      );
    }
    return 0;
  });
}
