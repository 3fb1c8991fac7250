/**
 * Writes the README's table of iterations from the one list of pipelines. With `--check` it writes
 * nothing and exits 1 if the table is stale.
 *
 * @module
 */

import { resolveConfig } from "../indexer/config.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";

const README = new URL("../README.md", import.meta.url);
const BEGIN = "<!-- iterations: deno task generate -->", END = "<!-- /iterations -->";

/** A device without tight limits. */
const GPU = {
  ...DEFAULT_DEVICE,
  limits: { ...DEFAULT_DEVICE.limits, maxComputeWorkgroupStorageSize: 32768, maxStorageBuffersPerShaderStage: 16 },
};

/** The README with a fresh table. */
export function generateReadme(readme: string): string {
  const begin = readme.indexOf(BEGIN), end = readme.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`Cannot write the table as README.md must hold ${BEGIN} and ${END}`);
  const options = { config: resolveConfig({ heads: 32, headWidth: 128 }), device: GPU, weights: true, tokens: 32_000 };
  const rows = PIPELINES.map((pipeline) => {
    const { dispatches } = planStep(pipeline, options);
    return [pipeline.id, pipeline.title, pipeline.change, dispatches > 0 ? String(dispatches) : "–"];
  });
  const table = [["id", "iteration", "what changes", "dispatches"], ...rows];
  const widths = table[0].map((_, column) => Math.max(3, ...table.map((row) => row[column].length)));
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column])).join(" | ")} |`;
  const [head, ...body] = table.map(line);
  const rule = line(widths.map((width) => "-".repeat(width)));
  return `${readme.slice(0, begin)}${BEGIN}\n\n${[head, rule, ...body].join("\n")}\n\n${readme.slice(end)}`;
}

if (import.meta.main) {
  const old = await Deno.readTextFile(README);
  const fresh = generateReadme(old);
  if (old === fresh) {
    console.error("README.md is fresh");
  } else if (Deno.args.includes("--check")) {
    console.error("README.md has a stale table: run `deno task generate`");
    Deno.exit(1);
  } else {
    await Deno.writeTextFile(README, fresh);
    console.error("README.md written");
  }
}
