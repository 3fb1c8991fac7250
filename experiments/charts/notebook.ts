/**
 * How notebooks show things: charts as interactive Vega views with an SVG beside for viewers that have none, tables,
 * and differences of WGSL files.
 *
 * @module
 */

import { measure, type Measured, pipelines, published } from "../lab.ts";
import { diffLines } from "diff";
import type { TopLevelSpec } from "vega-lite";
import { bars, renderSvg } from "./charts.ts";

/** Shows a chart. */
export async function show(spec: TopLevelSpec): Promise<void> {
  // The SVG without what changes from run to run.
  const svg = (await renderSvg(spec)).replaceAll(/(clip|gradient_)\d+/g, "$1");
  await Deno.jupyter.display({ "application/vnd.vegalite.v5+json": spec, "image/svg+xml": svg }, { raw: true });
}

/** Shows Markdown. */
async function markdown(text: string): Promise<void> {
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
  const escape = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  // Half transparent, so that it reads on light and dark.
  const style = { "+": "background:rgba(0,158,115,.25)", "-": "background:rgba(213,94,0,.25)" } as Record<
    string,
    string
  >;
  const html = lines.map((line) =>
    style[line[0]] ? `<span style="${style[line[0]]}">${escape(line)}</span>` : escape(line)
  );
  await Deno.jupyter.display({
    "text/html": `<pre style="font-family:monospace;font-size:12px;line-height:1.35">${html.join("\n")}</pre>`,
    "text/plain": lines.join("\n"),
  }, { raw: true });
}

/** Stages of each pipeline, one bar each. */
async function showStages(title: string, subtitle: string, rows: readonly Measured[]): Promise<void> {
  const stages = rows.flatMap(({ id, title, operations }) =>
    operations.map(({ name, us }) => ({ name: `${id} ${title}`, part: name, value: us }))
  );
  await show(bars({ title, subtitle: [subtitle] }, stages, "µs"));
}

/**
 * Verifies and measures pipelines here, and shows them beside the committed results of a GPU: a table, and the time of each
 * kernel.
 *
 * @param here the reader's device
 * @returns the rows of the reader's device, and the results of the GPU
 */
export async function compare(here: string, ...ids: readonly string[]) {
  const own = await measure(pipelines(...ids)), all = await published();
  const rows = all.rows.filter(({ id }) => ids.includes(id));
  await table([
    ["iteration", "dispatches", "µs here", `µs on ${all.adapter}`, "MB accessed", "verified"],
    ...own.map(({ id, title, dispatches, us, bytesMoved, problem }) => [
      `${id} ${title}`,
      dispatches,
      us,
      rows.find((row) => row.id === id)?.us ?? "–",
      bytesMoved / 1e6,
      problem || "✓",
    ]),
  ]);
  await showStages(`By kernel, here: ${here}`, "each kernel in a pass of its own", own);
  await showStages(`By kernel, ${all.adapter}`, all.source, rows);
  return { own, published: { ...all, rows } };
}
