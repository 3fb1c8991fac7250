/**
 * Writes the README's tables: iterations from the one list of pipelines, results from the newest result file of a
 * GPU. With `--check` it writes nothing and exits 1 if a table is stale.
 *
 * @module
 */

import { wrap } from "../experiments/cli.ts";
import { type GridRow, percent } from "../experiments/quality_runs.ts";
import { committedPeers, markdown, markdownTable, newestGpuResults, source } from "../bench/report.ts";
import type { PeerReport } from "../bench/peers/peers.ts";
import { resolveConfig } from "../indexer/config.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";

const README = new URL("../README.md", import.meta.url);
const QUALITY = new URL("../experiments/results/recall.json", import.meta.url);
const MARKS = {
  iterations: ["<!-- iterations: deno task generate -->", "<!-- /iterations -->"],
  results: ["<!-- results: deno task generate -->", "<!-- /results -->"],
  peers: ["<!-- peers: deno task generate -->", "<!-- /peers -->"],
  quality: ["<!-- quality: deno task generate -->", "<!-- /quality -->"],
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

/** The newest run that measured every peer: ours beside theirs, at the first number of tokens. */
async function peersTable(): Promise<string> {
  const peersOf = ({ rows }: PeerReport) => new Set(rows.map(({ peer }) => peer)).size;
  // A stable sort: of runs with as many peers the newest is last.
  const newest = (await committedPeers()).sort((a, b) => peersOf(a.report) - peersOf(b.report)).at(-1);
  if (!newest) throw new Error("Cannot write the table of peers as bench/results/peers/ holds none");
  const { rows, provenance } = newest.report;
  const number = (value: number | null) =>
    value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 1000 ? 1 : 0 });
  const most = Math.max(...rows.map(({ tokens }) => tokens));
  const body = rows.filter(({ tokens }) => tokens === rows[0].tokens).map((row) => {
    const larger = rows.find(({ peer, tokens }) => peer === row.peer && tokens === most);
    const right = row.failed ? "did not run" : row.problem ? "**wrong**" : "✓";
    const ratio = row.amortizedUs === null ? "–" : `${number(row.amortizedUs / rows[0].amortizedUs!)} ×`;
    const largerCell = larger?.problem ? "**wrong**" : number(larger?.gpuUs ?? null);
    return [
      row.peer,
      number(row.gpuUs),
      number(row.coldUs),
      number(row.replayUs ?? row.wallUs),
      number(row.amortizedUs),
      ratio,
      largerCell,
      right,
    ];
  });
  const head = [
    "implementation",
    "GPU µs",
    "cold",
    "wall",
    "amortized",
    "to ours",
    `GPU µs, N ${most.toLocaleString("en")}`,
    "checked",
  ];
  const from = `${provenance.adapter}, driver ${provenance.driver}, commit ${provenance.commit}, ${
    provenance.date.slice(0, 10)
  }; \`bench/results/peers/${newest.name}\``;
  return `${markdown([head, ...body])}\n\n${wrap(from, 120)}`;
}

/** What selections keep of the bundled capture's attention, from the committed run of `deno task recall`. */
async function qualityTable(): Promise<string> {
  const { rows, provenance } = JSON.parse(await Deno.readTextFile(QUALITY)) as {
    readonly rows: readonly GridRow[];
    readonly provenance: {
      readonly input: string;
      readonly capture: { readonly steps: number };
      readonly date: string;
    };
  };
  const some = rows.filter(({ heavySize }) => heavySize === 128);
  const refines = [...new Set(some.map(({ refine }) => refine))].sort((a, b) => a - b);
  const body = some.filter(({ refine }) => refine === 1).map(({ subvectors, bits, bytesPerKey, quality }) => [
    String(subvectors),
    String(bits),
    String(bytesPerKey),
    percent(quality.recall),
    ...refines.map((refine) => {
      const same = some.find((row) => row.subvectors === subvectors && row.bits === bits && row.refine === refine);
      return percent(same!.quality.recovered);
    }),
  ]);
  const { windowMass, exactMass } = some[0].quality;
  const recovered = refines.map((refine) => refine === 1 ? "recovered" : `re-ranked, R ${refine}`);
  const head = ["M", "bits", "bytes per key and head", "recall of the exact top 128", ...recovered];
  const from =
    `Sink and window alone keep ${percent(windowMass)}, with the exact top 128 ${
      percent(exactMass)
    }; recovered is the ` +
    `share of what lies between. Re-ranked: the best 128 by exact score of the R · 128 best by code. ${provenance.capture.steps} steps of ${provenance.input}, ${
      provenance.date.slice(0, 10)
    }; ` +
    "`experiments/results/recall.json`";
  return `${markdown([head, ...body])}\n\n${wrap(from, 120)}`;
}

/** The README with fresh tables. */
export async function generateReadme(readme: string): Promise<string> {
  const options = { config: resolveConfig({ heads: 32, headWidth: 128 }), device: GPU, weights: true, tokens: 32_000 };
  const rows = PIPELINES.map((pipeline) => {
    const { dispatches } = planStep(pipeline, options);
    return [pipeline.id, pipeline.title, pipeline.change, dispatches > 0 ? String(dispatches) : "–"];
  });
  const iterations = markdown([["id", "iteration", "what changes", "dispatches"], ...rows]);
  const newest = await newestGpuResults();
  const results = `${markdownTable(newest.report)}\n\n${
    wrap(`${source(newest)}; \`bench/results/${newest.name}\``, 120)
  }`;
  const filled = fill(fill(readme, MARKS.iterations, iterations), MARKS.results, results);
  return fill(fill(filled, MARKS.peers, await peersTable()), MARKS.quality, await qualityTable());
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
