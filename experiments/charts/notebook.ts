/**
 * How notebooks show things: charts as interactive Vega views with an SVG beside for viewers that have none, tables,
 * and differences of WGSL files.
 *
 * @module
 */

import { diffLines } from "diff";
import type { TopLevelSpec } from "vega-lite";
import { renderSvg } from "./charts.ts";

/** Shows a chart. */
export async function show(spec: TopLevelSpec): Promise<void> {
  // The SVG without what changes from run to run.
  const svg = (await renderSvg(spec)).replaceAll(/(clip|gradient_)\d+/g, "$1");
  await Deno.jupyter.display({ "application/vnd.vegalite.v5+json": spec, "image/svg+xml": svg }, { raw: true });
}

/** Shows Markdown. */
export async function markdown(text: string): Promise<void> {
  await Deno.jupyter.display({ "text/markdown": text }, { raw: true });
}

/** Shows a table; the first row is its head, numbers are right-aligned. */
export async function table(rows: readonly (readonly (string | number)[])[]): Promise<void> {
  const text = (cell: string | number) =>
    typeof cell === "number"
      ? cell.toLocaleString("en", { maximumFractionDigits: Math.abs(cell) < 100 ? 2 : 0 })
      : cell.replaceAll("|", "\\|");
  const line = (cells: readonly (string | number)[]) => `| ${cells.map(text).join(" | ")} |`;
  const body = rows.slice(1);
  const align = rows[0].map((_, column) => body.every((row) => typeof row[column] === "number") ? "--:" : "---");
  await markdown([line(rows[0]), line(align), ...body.map(line)].join("\n"));
}

/** Shows what changed from one WGSL text to another, unchanged stretches shortened. */
export async function showDiff(from: string, to: string, context = 2): Promise<void> {
  const lines: string[] = [];
  const parts = diffLines(from, to);
  parts.forEach(({ value, added, removed }, ix) => {
    const own = value.replace(/\n$/, "").split("\n");
    if (added || removed) {
      lines.push(...own.map((line) => `${added ? "+" : "-"} ${line}`));
      return;
    }
    const head = ix === 0 ? [] : own.slice(0, context), tail = ix === parts.length - 1 ? [] : own.slice(-context);
    if (own.length <= head.length + tail.length) lines.push(...own.map((line) => `  ${line}`));
    else lines.push(...head.map((line) => `  ${line}`), "  …", ...tail.map((line) => `  ${line}`));
  });
  await markdown(["```diff", ...lines, "```"].join("\n"));
}
