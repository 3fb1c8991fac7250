/**
 * Writes the README's tables: iterations from the one list of pipelines, results from the newest result file of a
 * GPU. With `--check` it writes nothing and exits 1 if a table is stale.
 *
 * @module
 */

import { wrap } from "../experiments/cli.ts";
import { committedResults, markdown, markdownTable, source } from "../bench/report.ts";
import { resolveConfig } from "../indexer/config.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";

const README = new URL("../README.md", import.meta.url);
const MARKS = {
  iterations: ["<!-- iterations: deno task generate -->", "<!-- /iterations -->"],
  results: ["<!-- results: deno task generate -->", "<!-- /results -->"],
} as const;

/** A Markdown text with what lies between two marks replaced. */
function fill(text: string, [begin, end]: readonly [string, string], content: string): string {
  const from = text.indexOf(begin), to = text.indexOf(end);
  if (from < 0 || to < from) throw new Error(`Cannot write the table as README.md must hold ${begin} and ${end}`);
  return `${text.slice(0, from)}${begin}\n\n${content}\n\n${text.slice(to)}`;
}

/** A device without tight limits. */
const GPU = {
  ...DEFAULT_DEVICE,
  limits: { ...DEFAULT_DEVICE.limits, maxComputeWorkgroupStorageSize: 32768, maxStorageBuffersPerShaderStage: 16 },
};

/** The README with a fresh table. */
export async function generateReadme(readme: string): Promise<string> {
  const options = { config: resolveConfig({ heads: 32, headWidth: 128 }), device: GPU, weights: true, tokens: 32_000 };
  const rows = PIPELINES.map((pipeline) => {
    const { dispatches } = planStep(pipeline, options);
    return [pipeline.id, pipeline.title, pipeline.change, dispatches > 0 ? String(dispatches) : "–"];
  });
  const iterations = markdown([["id", "iteration", "what changes", "dispatches"], ...rows]);
  const newest = (await committedResults()).findLast(({ report }) => !report.provenance.software);
  if (!newest) throw new Error("Cannot write the table of results as bench/results/ holds none of a GPU");
  const results = `${markdownTable(newest.report)}\n\n${
    wrap(`${source(newest)}; \`bench/results/${newest.name}\``, 120)
  }`;
  return fill(fill(readme, MARKS.iterations, iterations), MARKS.results, results);
}

if (import.meta.main) {
  const old = await Deno.readTextFile(README);
  const fresh = await generateReadme(old);
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
