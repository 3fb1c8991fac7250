/**
 * Draws time over tokens, heads and K from the bench's result files: `deno task draw scaling`. One picture for each file, as
 * a picture never mixes adapters.
 *
 * @module
 */

import { newestGpuResults, readResults, type ResultFile, source } from "../../bench/report.ts";
import { SEED_WORKLOAD } from "../inputs/workload.ts";
import { bold, type Command, runCommand, UsageError, wrap } from "../cli.ts";
import { type LinePanel, linePanels, renderSvg } from "./charts.ts";

const COMMAND: Command = {
  name: "draw scaling",
  summary: "Draws time over tokens, heads and K from result files of the bench, as SVG and as a table.",
  flags: {
    out: { value: "FILE", help: "the SVG (default: the result file's name with .scaling.svg, in the current folder)" },
    wall: { value: "", help: "wall time from submit to idle in place of the GPU's" },
  },
  positional: "[FILE] (default: the newest of bench/results/)",
};

/** Factors and the value that the seed configuration has of each. */
const FACTORS = [
  ["N", "N, cached tokens", SEED_WORKLOAD.tokens],
  ["heads", "heads", SEED_WORKLOAD.heads],
  ["K", "K, heavy tokens", SEED_WORKLOAD.heavySize],
] as const;

/** The panels of a result file; lines in the order of its rows. */
export function panelsOf({ report }: ResultFile, wall: boolean): { lines: string[]; panels: LinePanel[] } {
  const name = (row: typeof report.rows[number]) => `${row.id} ${row.title}`;
  const time = (row: typeof report.rows[number]) => wall ? row.wallUs.median : row.gpuUs?.median;
  const rows = report.rows.filter((row) => time(row) !== undefined);
  const seed = rows.filter(({ factor, value }) => factor === "N" && value === SEED_WORKLOAD.tokens);
  const panels = FACTORS.map(([factor, title, seedValue]) => {
    const own = rows.filter((row) => row.factor === factor);
    const points = own.map((row) => ({ x: row.value, us: time(row)!, line: name(row) }));
    if (factor !== "N" && own.length > 0) {
      points.push(...seed.map((row) => ({ x: seedValue, us: time(row)!, line: name(row) })));
    }
    const format = factor === "N" ? ".3~s" : ",d";
    return { title, format, points: points.sort((a, b) => a.x - b.x) };
  }).filter(({ points }) => new Set(points.map(({ x }) => x)).size > 1);
  return { lines: [...new Set(seed.map(name))], panels };
}

const micros = (us: number | undefined) =>
  us === undefined ? "–" : us.toLocaleString("en", { maximumFractionDigits: us < 100 ? 1 : 0 });

function print({ lines, panels }: ReturnType<typeof panelsOf>): void {
  for (const { title, points } of panels) {
    const values = [...new Set(points.map(({ x }) => x))];
    console.log(bold(title.padEnd(22) + values.map((x) => x.toLocaleString("en").padStart(11)).join("")));
    for (const line of lines) {
      const at = (x: number) => points.find((point) => point.x === x && point.line === line)?.us;
      console.log(line.padEnd(22) + values.map((x) => micros(at(x)).padStart(11)).join(""));
    }
    console.log();
  }
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    if (args.positional.length > 1) throw new UsageError("Cannot draw several files as a picture never mixes adapters");
    const file = args.positional.length === 1 ? await readResults(args.positional[0]) : await newestGpuResults();
    const wall = args.has("wall");
    const drawn = panelsOf(file, wall);
    if (drawn.panels.length === 0) {
      throw new UsageError(`Cannot draw ${file.name} as no factor in it has two values: run deno task bench --full`);
    }
    console.log(bold(file.name));
    console.log(wrap(`${source(file)}; ${wall ? "wall" : "GPU"} time of a step, medians, µs`, 100));
    if (file.report.note) console.log(wrap(`Note: ${file.report.note}`, 100));
    console.log();
    print(drawn);
    const title = `${wall ? "Wall" : "GPU"} time of one step on ${file.report.provenance.adapter}`;
    const subtitle = [
      "From the seed configuration (32 heads, 32,000 tokens, M 2, 6 bits, K 128), one factor at a time",
      `Medians; ${source(file)}`,
    ];
    const svg = await renderSvg(linePanels(title, subtitle, drawn.lines, drawn.panels, "µs per step"));
    const out = args.text("out") ?? `${file.name.replace(/\.json$/, "")}.scaling.svg`;
    await Deno.writeTextFile(out, svg).catch((error) => {
      throw new UsageError(`Cannot write ${out}: ${error.message}`);
    });
    console.log(`written: ${out}`);
    return 0;
  });
}
