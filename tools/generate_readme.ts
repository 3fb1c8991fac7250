/**
 * Writes the generated tables of README.md and docs/results.md: iterations from the one list of pipelines, all others from
 * committed results. With `--check` it writes nothing and exits 1 if a table is stale.
 *
 * A table lies between `<!-- name: deno task generate -->` and `<!-- /name -->`. Every table must lie in one of the files,
 * and may lie in both; which file holds which is up to the files.
 *
 * @module
 */

import { wrap } from "../experiments/cli.ts";
import { type GridRow, percent, type QualityProvenance } from "../experiments/quality_runs.ts";
import { BUNDLED_ABOUT, BUNDLED_CAPTURES, type BundledName } from "../experiments/inputs/capture.ts";
import type { CrossoverReport } from "../experiments/crossover.ts";
import type { Provenance } from "../experiments/provenance.ts";
import { committedPeers, markdown, markdownTable, newestGpuResults, number, source } from "../bench/report.ts";
import type { PeerReport, PeerRow } from "../bench/peers/peers.ts";
import type { AttendRow, TorchRow } from "../bench/attend.ts";
import type { RefineRow } from "../bench/refine.ts";
import type { TrainRow } from "../bench/train.ts";
import { resolveConfig } from "../indexer/config.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";

const ROOT = new URL("../", import.meta.url);
/** The files that hold tables. */
const PAGES = ["README.md", "docs/results.md"];
const MARK = /<!-- (\w+): deno task generate -->/g;

/** A device without tight limits. */
const GPU = {
  ...DEFAULT_DEVICE,
  limits: { ...DEFAULT_DEVICE.limits, maxComputeWorkgroupStorageSize: 32768, maxStorageBuffersPerShaderStage: 16 },
};

/** A committed file of results. */
interface File<T> {
  /** From the root of the project. */
  readonly path: string;
  readonly report: T & { readonly provenance: Provenance };
}

async function read<T>(path: string): Promise<File<T>> {
  return { path, report: JSON.parse(await Deno.readTextFile(new URL(path, ROOT))) };
}

/** The newest run on a GPU of a folder of results. */
async function newestOf<T>(folder: string): Promise<File<T>> {
  const files: File<T>[] = [];
  for await (const { name } of Deno.readDir(new URL(folder, ROOT))) {
    if (name.endsWith(".json")) files.push(await read<T>(`${folder}${name}`));
  }
  const newest = files.filter(({ report }) => !report.provenance.software)
    .sort((a, b) => a.report.provenance.date.localeCompare(b.report.provenance.date)).at(-1);
  if (!newest) throw new Error(`Cannot write tables as ${folder} holds no run on a GPU`);
  return newest;
}

/** Where a table's numbers come from: device, driver, commit, date and file. */
function caption({ path, report: { provenance } }: File<unknown>): string {
  const { adapter, driver, commit, date } = provenance;
  return `${adapter}, driver ${driver}, commit ${commit}, ${date.slice(0, 10)}; \`${path}\``;
}

/** Wrapped as `deno fmt` does; no line begins with a percent sign. */
const paragraph = (text: string) => wrap(text.replaceAll(" %", "\u00a0%"), 120);

/** A table and what is said below it. */
function block(table: readonly (readonly string[])[], ...below: readonly string[]): string {
  return [markdown(table), ...below.map(paragraph)].join("\n\n");
}

const count = (value: number) => value.toLocaleString("en");

/** Times over ours: "2.2 ×". */
const times = (theirs: number | null | undefined, mine: number | null | undefined) =>
  theirs && mine ? `${number(theirs / mine, theirs / mine < 10 ? 2 : 1)} ×` : "–";

/** What selections keep, from the committed run of `deno task quality recall`. */
class Qualities {
  readonly path = "experiments/results/recall.json";
  readonly rows: readonly GridRow[];
  readonly provenance: QualityProvenance;

  constructor({ report }: File<{ rows: readonly GridRow[] }>) {
    this.rows = report.rows.filter(({ heavySize, pooling }) => heavySize === 128 && pooling === "perQueryHead");
    this.provenance = report.provenance as QualityProvenance;
  }

  /** The captures, in the order of the bundled ones. */
  get captures(): BundledName[] {
    return Object.keys(BUNDLED_CAPTURES) as BundledName[];
  }

  row(capture: BundledName, subvectors: number, bits: number, refine: number): GridRow | undefined {
    return this.rows.find((row) =>
      row.capture === capture && row.subvectors === subvectors && row.bits === bits && row.refine === refine
    );
  }

  /** The share recovered on each capture, as cells. */
  recovered(subvectors: number, bits: number, refine: number): string[] {
    return this.captures.map((capture) => {
      const row = this.row(capture, subvectors, bits, refine);
      return row ? percent(row.quality.recovered) : "–";
    });
  }

  /** One sentence on what a configuration keeps. */
  sentence(subvectors: number, bits: number, refine: number, what = "Quality of this configuration"): string {
    const cells = this.recovered(subvectors, bits, refine);
    const each = this.captures.map((capture, ix) => `${cells[ix]} on ${capture}`).join(", ");
    const ranked = refine > 1 ? `, R ${refine}` : "";
    return `${what} (M ${subvectors}, ${bits} bits, K 128${ranked}): it recovers ${each} ` +
      `(\`${this.path}\`).`;
  }
}

function iterations(): string {
  const options = { config: resolveConfig({ heads: 32, headWidth: 128 }), device: GPU, weights: true, tokens: 32_000 };
  const rows = PIPELINES.map((pipeline) => {
    const { dispatches } = planStep(pipeline, options);
    return [pipeline.id, pipeline.title, pipeline.change, dispatches > 0 ? String(dispatches) : "–"];
  });
  return markdown([["id", "iteration", "what changes", "dispatches"], ...rows]);
}

/** A few configurations with time, quality and memory side by side. */
async function summary(quality: Qualities): Promise<string> {
  const bench = await newestGpuResults(),
    refine = await newestOf<{ rows: readonly RefineRow[] }>("bench/results/refine/");
  const plain = (id: string, title: string, bytes: string): string[] => {
    const row = bench.report.rows.find((row) => row.id === id && row.factor === "N" && row.value === 32_000);
    return [title, number(row?.gpuUs?.median), ...quality.recovered(2, 6, 1), bytes];
  };
  const ranked = (title: string, subvectors: number, bits: number, refined: number, bytes: string): string[] => {
    const row = refine.report.rows.find((row) =>
      row.tokens === 32_000 && row.elements === "f16" && row.subvectors === subvectors && row.bits === bits &&
      row.refine === refined
    );
    return [title, number(row?.gpuUs.median), ...quality.recovered(subvectors, bits, refined), bytes];
  };
  const head = [
    "configuration",
    "GPU µs, N 32,000",
    ...quality.captures.map((capture) => `recovered, ${capture}`),
    "bytes per key and head",
  ];
  const body = [
    plain("e01", "e01 baseline, M 2, 6 bits", "8"),
    plain("e07", "e07 tuned, M 2, 6 bits", "2"),
    plain("e08", "e08 cells, M 2, 6 bits", "2 + 4"),
    ranked("e08, re-ranked, R 4", 2, 6, 4, "2 + 4"),
    ranked("e08, re-ranked, R 16", 2, 6, 16, "2 + 4"),
    ranked("e07, M 8, 8 bits", 8, 8, 1, "8"),
    ranked("e07, M 8, 8 bits, re-ranked, R 4", 8, 8, 4, "8"),
  ];
  return block(
    [head, ...body],
    `Times: ${source(bench)}; \`bench/results/${bench.name}\`; re-ranked steps and those of M 8: ${caption(refine)}.`,
    qualitySource(quality),
  );
}

/** Where shares come from: each capture's run. */
function qualitySource({ provenance, path }: Qualities): string {
  const each = provenance.captures.map(({ capture, steps, commit, date }) =>
    `${capture}, ${steps} steps, commit ${commit}, ${date.slice(0, 10)}`
  );
  return `Shares: ${each.join("; ")}; on ${provenance.adapter}, seed ${provenance.seed}; \`${path}\`.`;
}

/** Ours beside theirs: of the runs with the most peers the newest. */
async function peers(quality: Qualities): Promise<string> {
  const peersOf = ({ rows }: PeerReport) => new Set(rows.map(({ peer }) => peer)).size;
  // A stable sort: of runs with as many peers the newest is last.
  const newest = (await committedPeers()).sort((a, b) => peersOf(a.report) - peersOf(b.report)).at(-1);
  if (!newest) throw new Error("Cannot write the table of peers as bench/results/peers/ holds none");
  const { rows } = newest.report;
  const sizes = [...new Set(rows.map(({ tokens }) => tokens))];
  const wall = (row: PeerRow) =>
    row.replayUs === null ? row.wallUs : Math.min(row.replayUs, row.wallUs ?? Number.POSITIVE_INFINITY);
  const mark = (row: PeerRow | undefined) => !row ? "–" : row.failed ? "did not run" : row.problem ? "**wrong**" : "✓";
  const at = (peer: string, tokens: number) => rows.find((row) => row.peer === peer && row.tokens === tokens);
  const own = rows[0];
  const body = rows.filter(({ tokens }) => tokens === sizes[0]).map((row) => [
    row.peer,
    number(row.gpuUs),
    times(row.gpuUs, own.gpuUs),
    number(row.coldUs),
    number(wall(row)),
    times(wall(row), wall(own)),
    number(row.amortizedUs),
    times(row.amortizedUs, own.amortizedUs),
    mark(row),
    ...sizes.slice(1).flatMap((tokens) => {
      const other = at(row.peer, tokens), mine = at(own.peer, tokens);
      // A time of wrong results is not one of this step.
      if (other?.problem) return ["–", "–", mark(other)];
      return [number(other?.gpuUs), times(other?.gpuUs, mine?.gpuUs), mark(other)];
    }),
  ]);
  const head = [
    "implementation",
    "GPU µs",
    "× GPU",
    "cold",
    "wall",
    "× wall",
    "amortized",
    "× amort.",
    `right, N ${count(sizes[0])}`,
    ...sizes.slice(1).flatMap((
      tokens,
    ) => [`GPU µs, N ${count(tokens)}`, `× GPU, N ${count(tokens)}`, `right, N ${count(tokens)}`]),
  ];
  return block(
    [head, ...body],
    caption({ path: `bench/results/peers/${newest.name}`, report: newest.report }),
    quality.sentence(2, 6, 1),
  );
}

/** A section for each capture. */
function qualityTables(quality: Qualities): string {
  const { rows, provenance } = quality;
  const refines = [...new Set(rows.map(({ refine }) => refine))].sort((a, b) => a - b);
  const sections = quality.captures.map((capture) => {
    const own = rows.filter((row) => row.capture === capture);
    const run = provenance.captures.find((each) => each.capture === capture);
    if (!own.length || !run) throw new Error(`Cannot write the table of quality as ${quality.path} lacks ${capture}`);
    const body = own.filter(({ refine }) => refine === 1).map(({ subvectors, bits, bytesPerKey, quality: kept }) => [
      String(subvectors),
      String(bits),
      String(bytesPerKey),
      percent(kept.recall),
      ...refines.map((refine) => percent(quality.row(capture, subvectors, bits, refine)!.quality.recovered)),
    ]);
    const { windowMass, exactMass, sameLengthWindowMass } = own[0].quality;
    const recovered = refines.map((refine) => refine === 1 ? "recovered" : `re-ranked, R ${refine}`);
    const about =
      `${BUNDLED_ABOUT[capture][0].toUpperCase()}${BUNDLED_ABOUT[capture].slice(1)}. Sink and window alone ` +
      `keep ${percent(windowMass)} of the attention mass, with the exact top 128 ${percent(exactMass)}. A window as ` +
      `long as the whole list, without sink tokens, keeps ${percent(sameLengthWindowMass)}.`;
    const from = `${run.steps} steps of \`${capture}.safetensors\`, commit ${run.commit}, ${run.date.slice(0, 10)}; ` +
      `\`${quality.path}\``;
    return [
      `### ${capture}`,
      paragraph(about),
      markdown([["M", "bits", "bytes per key and head", "recall of the exact top 128", ...recovered], ...body]),
      paragraph(from),
    ].join("\n\n");
  });
  return sections.join("\n\n");
}

/** Attention over lists and over all tokens, beside PyTorch's. */
async function attend(quality: Qualities): Promise<string> {
  const file = await newestOf<{
    rows: readonly AttendRow[];
    copyGBs: number;
    torch?: { version: string; rows: readonly TorchRow[] };
  }>("bench/results/attend/");
  const { rows, copyGBs, torch } = file.report;
  const body = rows.map((row) => {
    const { attends, elements, tokens, attended, gpuUs, bytes, verified } = row;
    const theirs = torch?.rows.find((other) =>
      other.attends === attends && other.elements === elements && other.tokens === tokens
    )?.gpuUs;
    return [
      count(tokens),
      attends === "all" ? "all" : count(attended),
      elements,
      number(gpuUs.median),
      number(gpuUs.sd),
      number(bytes / gpuUs.median / 1e3, 0),
      `${(100 * bytes / gpuUs.median / 1e3 / copyGBs).toFixed(0)} %`,
      number(theirs),
      times(theirs, gpuUs.median),
      verified ? "✓" : "**wrong**",
    ];
  });
  const head = ["N", "attends to", "cache", "GPU µs", "sd", "GB/s", "of copy", "PyTorch µs", "× ours", "right"];
  const versions = torch ? `${torch.version}, scaled_dot_product_attention. ` : "";
  return block(
    [head, ...body],
    `${versions}${caption(file)}`,
    quality.sentence(2, 6, 1, "Quality of an index's lists"),
  );
}

/** What re-ranking costs and brings. */
async function refine(quality: Qualities): Promise<string> {
  const file = await newestOf<{ rows: readonly RefineRow[] }>("bench/results/refine/");
  const { rows } = file.report;
  const body = rows.map((row) => {
    const { tokens, subvectors, bits, refine, elements, gpuUs, keyBytes, verified } = row;
    const base = rows.find((other) =>
      other.tokens === tokens && other.subvectors === subvectors && other.bits === bits &&
      other.elements === elements && other.refine === 1
    );
    return [
      count(tokens),
      String(subvectors),
      String(bits),
      String(refine),
      elements,
      number(gpuUs.median),
      number(gpuUs.sd),
      refine > 1 && base ? `+${number(gpuUs.median - base.gpuUs.median)}` : "–",
      number(keyBytes / 1e6),
      ...quality.recovered(subvectors, bits, refine),
      verified ? "✓" : "**wrong**",
    ];
  });
  const head = [
    "N",
    "M",
    "bits",
    "R",
    "keys",
    "GPU µs",
    "sd",
    "beside R 1",
    "MB of keys",
    ...quality.captures.map((capture) => `recovered, ${capture}`),
    "right",
  ];
  return block([head, ...body], caption(file), qualitySource(quality));
}

/** What training takes. */
async function train(quality: Qualities): Promise<string> {
  const file = await newestOf<{ rows: readonly TrainRow[] }>("bench/results/train/");
  const body = file.report.rows.map((row) => [
    count(row.tokens),
    String(row.heads),
    String(row.subvectors),
    String(row.bits),
    row.elements,
    number(row.gpuUs.median / 1e3),
    number(row.gpuUs.sd / 1e3),
    number(row.wallMs),
    `${(100 * row.workShare).toFixed(1)} %`,
    row.distortionRatio.toFixed(5),
    ...quality.recovered(row.subvectors, row.bits, 1),
    row.verified ? "✓" : "**wrong**",
  ]);
  const head = [
    "N",
    "heads",
    "M",
    "bits",
    "keys",
    "GPU ms",
    "sd",
    "wall ms",
    "memory",
    "distortion to f64",
    ...quality.captures.map((capture) => `recovered, ${capture}`),
    "right",
  ];
  return block([head, ...body], caption(file), qualitySource(quality));
}

/** From how many tokens on an index pays. */
async function crossover(quality: Qualities): Promise<string> {
  const file = await read<CrossoverReport>("experiments/results/crossover.json");
  const { rows, crossover, crossoverWithTraining, steps, pipeline } = file.report;
  const body = rows.map((row) => [
    count(row.tokens),
    number(row.denseUs),
    number(row.indexUs),
    number(row.sparseUs),
    number(row.bothUs),
    (row.bothUs / row.denseUs).toFixed(2),
    number(row.trainingMs),
    number(row.withTrainingUs),
  ]);
  const head = ["N", "dense", "index", "attention", "both", "both / dense", "training, ms", "with training"];
  const from = (tokens: number | undefined) => tokens ? `${count(Math.round(tokens))} tokens` : "none of these";
  return block(
    [head, ...body],
    `It pays from ${from(crossover)} on, with a training for every ${count(steps)} steps from ${
      from(crossoverWithTraining)
    } on. Pipeline ${pipeline}; ${caption(file)}`,
    quality.sentence(2, 6, 1),
  );
}

async function results(quality: Qualities): Promise<string> {
  const newest = await newestGpuResults();
  const from = `${source(newest)}; \`bench/results/${newest.name}\``;
  return [markdownTable(newest.report), paragraph(from), paragraph(quality.sentence(2, 6, 1))].join("\n\n");
}

/** What the README says below its table: the summary's captions are in docs/results.md. */
const OVERVIEW_CAPTION = wrap(
  "_Recovered_: attention mass that comes back; 0 % is sink and window alone, 100 % has the exact top 128. attention_layer3 is " +
    "one KV head of a small model trained for this project. e01 to e08 are iterations; e01 keeps 4 bytes per code. NVIDIA " +
    "H200, random keys; captures and runs: [docs/results.md](docs/results.md).",
  120,
);

/** Every table by its name, as Markdown. */
export async function generateTables(): Promise<Record<string, string>> {
  const quality = new Qualities(await read("experiments/results/recall.json"));
  return {
    summary: await summary(quality),
    overview: (await summary(quality)).trim().split("\n\n")[0] + "\n\n" + OVERVIEW_CAPTION,
    iterations: iterations(),
    results: await results(quality),
    peers: await peers(quality),
    quality: qualityTables(quality),
    attend: await attend(quality),
    refine: await refine(quality),
    train: await train(quality),
    crossover: await crossover(quality),
  };
}

/**
 * Pages with fresh tables between their marks.
 *
 * @param pages texts by path
 * @param tables Markdown by name
 * @throws {Error} if a page marks a table that there is none of or does not end one, or no page marks a table
 */
export function fillPages(
  pages: Readonly<Record<string, string>>,
  tables: Readonly<Record<string, string>>,
): Record<string, string> {
  const used = new Set<string>();
  const filled = Object.fromEntries(
    Object.entries(pages).map(([path, text]) => {
      for (const [begin, name] of [...text.matchAll(MARK)]) {
        const end = `<!-- /${name} -->`;
        if (!(name in tables)) {
          throw new Error(`Cannot write ${path} as ${name} must be one of ${Object.keys(tables).join(", ")}`);
        }
        const from = text.indexOf(begin), to = text.indexOf(end, from);
        if (to < 0) throw new Error(`Cannot write ${path} as ${begin} must end with ${end}`);
        text = `${text.slice(0, from)}${begin}\n\n${tables[name]}\n\n${text.slice(to)}`;
        used.add(name);
      }
      return [path, text];
    }),
  );
  const missing = Object.keys(tables).find((name) => !used.has(name));
  if (missing) {
    const mark = `<!-- ${missing}: deno task generate -->`;
    throw new Error(`Cannot write the table ${missing} as one of ${Object.keys(pages).join(", ")} must hold ${mark}`);
  }
  return filled;
}

/** The pages as they are, by path. */
export async function readPages(): Promise<Record<string, string>> {
  const texts = PAGES.map(async (path) => [path, await Deno.readTextFile(new URL(path, ROOT))]);
  return Object.fromEntries(await Promise.all(texts));
}

if (import.meta.main) {
  const old = await readPages(), fresh = fillPages(old, await generateTables());
  let stale = 0;
  for (const path of PAGES) {
    if (old[path] === fresh[path]) {
      console.error(`${path} is fresh`);
    } else if (Deno.args.includes("--check")) {
      console.error(`${path} has a stale table: run \`deno task generate\``);
      stale++;
    } else {
      await Deno.writeTextFile(new URL(path, ROOT), fresh[path]);
      console.error(`${path} written`);
    }
  }
  if (stale > 0) Deno.exit(1);
}
