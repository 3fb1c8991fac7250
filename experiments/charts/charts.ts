/**
 * Charts: Vega-Lite specifications and their SVG. Colors are those of Okabe and Ito, which people who see few colors tell
 * apart; text is large enough and the ground white, so that they read on light and dark pages.
 *
 * @module
 */

import * as vega from "vega";
import { compile, type TopLevelSpec } from "vega-lite";

/** Okabe and Ito's colors, the strongest first, then lighter ones of the same hues. */
export const COLORS = [
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#000000",
  "#999999",
  "#8CBFDF",
  "#F0B48A",
  "#8CD3BC",
  "#E8C9DA",
  "#F6D896",
  "#BFE3F7",
  "#666666",
  "#D0D0D0",
];

const SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json";

/** What every chart shares. */
const CONFIG = {
  background: "white",
  font: "sans-serif",
  padding: 12,
  axis: { labelFontSize: 12, titleFontSize: 13, gridColor: "#dddddd", titleFontWeight: "normal" },
  legend: { labelFontSize: 12, titleFontSize: 12, labelLimit: 0 },
  title: { fontSize: 15, anchor: "start", subtitleFontSize: 12, subtitleColor: "#444444" },
} as const;

/** The types of Vega-Lite refuse read-only arrays and most literals; that it compiles is what tells. */
const typed = (spec: Record<string, unknown>) => spec as unknown as TopLevelSpec;

/** One point of a line. */
export interface LinePoint {
  /** Value of the factor. */
  readonly x: number;
  /** µs. */
  readonly us: number;
  /** Which line. */
  readonly line: string;
}

/** A panel of lines. */
export interface LinePanel {
  /** Title of the horizontal axis, with its unit. */
  readonly title: string;
  /** Format of its labels, as d3-format has them. Default ",d". */
  readonly format?: string;
  readonly points: readonly LinePoint[];
}

/** Panels side by side, both axes logarithmic, one color a line throughout. */
export function linePanels(
  title: string,
  subtitle: readonly string[],
  lines: readonly string[],
  panels: readonly LinePanel[],
  yTitle: string,
): TopLevelSpec {
  const all = panels.flatMap(({ points }) => points.map(({ us }) => us));
  const domain = [Math.min(...all) / 1.3, Math.max(...all) * 1.3];
  return typed({
    $schema: SCHEMA,
    title: { text: title, subtitle: [...subtitle] },
    config: CONFIG,
    hconcat: panels.map(({ title, points, format = ",d" }, ix) => ({
      width: 300,
      height: 320,
      data: { values: [...points] },
      encoding: {
        x: {
          field: "x",
          type: "quantitative",
          title,
          scale: { type: "log", nice: false },
          axis: { values: [...new Set(points.map(({ x }) => x))], format, labelOverlap: true, grid: false },
        },
        y: {
          field: "us",
          type: "quantitative",
          title: ix === 0 ? yTitle : null,
          scale: { type: "log", domain, nice: false },
          axis: { format: "~s", labels: ix === 0 },
        },
        color: {
          field: "line",
          type: "nominal",
          title: null,
          sort: [...lines],
          scale: { domain: [...lines], range: lines.map((_, k) => COLORS[k % COLORS.length]) },
        },
        shape: { field: "line", type: "nominal", title: null, sort: [...lines], scale: { domain: [...lines] } },
      },
      mark: { type: "line", point: { size: 50, filled: true }, strokeWidth: 2 },
    })),
    resolve: { scale: { color: "shared", shape: "shared" } },
  });
}

/** Title and subtitle of a chart. */
export interface Heading {
  readonly title: string;
  readonly subtitle?: readonly string[];
}

const titleOf = ({ title, subtitle = [] }: Heading) => ({ text: title, subtitle: [...subtitle] });

/** A bar. */
export interface Bar {
  /** What it stands for; bars keep their order. */
  readonly name: string;
  readonly value: number;
  /** Which color; bars of one name and several parts are stacked. Default: one color for all. */
  readonly part?: string;
}

/** Horizontal bars, each with its value; stacked where bars of a name have parts. */
export function bars(heading: Heading, rows: readonly Bar[], xTitle: string): TopLevelSpec {
  const names = [...new Set(rows.map(({ name }) => name))];
  const parts = [...new Set(rows.map(({ part }) => part ?? ""))];
  const totals = names.map((name) => ({
    name,
    value: rows.filter((row) => row.name === name).reduce((sum, { value }) => sum + value, 0),
  }));
  const y = { field: "name", type: "nominal", sort: names, title: null, axis: { labelLimit: 0 } } as const;
  const most = Math.max(...totals.map(({ value }) => value));
  const x = { field: "value", type: "quantitative", title: xTitle, scale: { domain: [0, most * 1.12] } } as const;
  const format = most < 10 ? ",.2f" : most < 1000 ? ",.1f" : ",.0f";
  return typed({
    $schema: SCHEMA,
    title: titleOf(heading),
    config: CONFIG,
    width: 460,
    height: { step: 26 },
    layer: [
      {
        data: { values: rows.map((row, order) => ({ part: "", ...row, order })) },
        mark: { type: "bar", tooltip: true },
        encoding: {
          y,
          x,
          order: { field: "order" },
          color: {
            field: "part",
            type: "nominal",
            sort: parts,
            title: null,
            scale: { domain: parts, range: parts.map((_, k) => COLORS[k % COLORS.length]) },
            legend: parts.length > 1
              ? { columns: 1, symbolLimit: 40, orient: parts.length > 3 ? "right" : "bottom" }
              : null,
          },
        },
      },
      {
        data: { values: totals },
        mark: { type: "text", align: "left", dx: 4, fontSize: 12 },
        encoding: { y, x, text: { field: "value", type: "quantitative", format } },
      },
    ],
  });
}

/** Points on a logarithmic axis, a row each, with their values: where bars would hide what is small. */
export function dots(heading: Heading, rows: readonly Bar[], xTitle: string): TopLevelSpec {
  const names = rows.map(({ name }) => name), parts = [...new Set(rows.map(({ part }) => part ?? ""))];
  const values = rows.map(({ value }) => value);
  const y = { field: "name", type: "nominal", sort: names, title: null, axis: { labelLimit: 0, grid: true } } as const;
  const domain = [Math.min(...values) / 1.3, Math.max(...values) * 1.6];
  const x = {
    field: "value",
    type: "quantitative",
    title: xTitle,
    scale: { type: "log", domain, nice: false },
  } as const;
  const color = {
    field: "part",
    type: "nominal",
    sort: parts,
    title: null,
    scale: { domain: parts, range: parts.map((_, k) => COLORS[k % COLORS.length]) },
    legend: parts.length > 1 ? { columns: 1, orient: "bottom" } : null,
  } as const;
  return typed({
    $schema: SCHEMA,
    title: titleOf(heading),
    config: CONFIG,
    width: 460,
    height: { step: 26 },
    data: { values: rows.map((row) => ({ part: "", ...row })) },
    layer: [
      { mark: { type: "point", filled: true, size: 110 }, encoding: { y, x, color } },
      {
        mark: { type: "text", align: "left", dx: 10, fontSize: 12 },
        encoding: { y, x, text: { field: "value", type: "quantitative", format: ",.1f" } },
      },
    ],
  });
}

/** A point of a curve. */
export interface CurvePoint {
  readonly x: number;
  readonly y: number;
  readonly line: string;
}

/** How an axis is drawn. */
export interface Axis {
  readonly title: string;
  readonly log?: boolean;
  /** As d3-format has it. */
  readonly format?: string;
  /** Its ends. Default: those of the values. */
  readonly domain?: readonly [number, number];
}

const scaleOf = ({ log = false, domain }: Axis) => ({
  ...(log ? { type: "log", nice: false } : { type: "linear", zero: true }),
  ...(domain ? { domain: [...domain] } : {}),
});

/** Curves with a point at each value, such as recall over bytes. */
export function curves(heading: Heading, points: readonly CurvePoint[], x: Axis, y: Axis): TopLevelSpec {
  const lines = [...new Set(points.map(({ line }) => line))];
  const domain = lines, range = lines.map((_, k) => COLORS[k % COLORS.length]);
  return typed({
    $schema: SCHEMA,
    title: titleOf(heading),
    config: CONFIG,
    width: 460,
    height: 300,
    data: { values: [...points] },
    mark: {
      type: "line",
      point: points.length < 200 ? { size: 50, filled: true } : false,
      strokeWidth: 2,
      tooltip: true,
    },
    encoding: {
      x: {
        field: "x",
        type: "quantitative",
        title: x.title,
        scale: scaleOf(x),
        axis: { format: x.format ?? ",", labelOverlap: true },
      },
      y: { field: "y", type: "quantitative", title: y.title, scale: scaleOf(y), axis: { format: y.format ?? "," } },
      color: { field: "line", type: "nominal", sort: lines, title: null, scale: { domain, range } },
      shape: { field: "line", type: "nominal", sort: lines, title: null, scale: { domain } },
    },
  });
}

/** Cells of a strip of attention: row by column, a share each. */
export interface HeatCell {
  readonly row: string;
  /** First token of the cell. */
  readonly token: number;
  readonly share: number;
}

/** Attention over the cache as strips, one a row; color is the share on a logarithmic scale. */
export function heatStrips(heading: Heading, cells: readonly HeatCell[], legend: string): TopLevelSpec {
  const rows = [...new Set(cells.map(({ row }) => row))];
  const least = Math.max(Math.min(...cells.map(({ share }) => share)), 1e-6);
  return typed({
    $schema: SCHEMA,
    title: titleOf(heading),
    config: { ...CONFIG, view: { stroke: null } },
    width: 640,
    height: { step: 34 },
    data: { values: cells.map((cell) => ({ ...cell, share: Math.max(cell.share, least) })) },
    mark: { type: "rect", tooltip: true },
    encoding: {
      x: {
        field: "token",
        type: "ordinal",
        title: "token",
        axis: { labelOverlap: true, labelAngle: 0, format: ",d", ticks: false },
      },
      y: { field: "row", type: "nominal", sort: rows, title: null },
      color: {
        field: "share",
        type: "quantitative",
        title: legend,
        scale: { type: "log", scheme: "viridis", domain: [least, Math.max(...cells.map(({ share }) => share))] },
        legend: { format: ".1p", gradientLength: 120 },
      },
    },
  });
}

/** A span of a timeline. */
export interface Span {
  readonly name: string;
  readonly track: string;
  readonly beginUs: number;
  readonly us: number;
}

/** Spans on tracks over time. */
export function timeline(heading: Heading, spans: readonly Span[]): TopLevelSpec {
  const tracks = [...new Set(spans.map(({ track }) => track))], names = [...new Set(spans.map(({ name }) => name))];
  return typed({
    $schema: SCHEMA,
    title: titleOf(heading),
    config: CONFIG,
    width: 640,
    height: { step: 40 },
    data: { values: spans.map((span) => ({ ...span, endUs: span.beginUs + span.us })) },
    mark: { type: "bar", tooltip: true, stroke: "white", strokeWidth: 1 },
    encoding: {
      x: { field: "beginUs", type: "quantitative", title: "µs", scale: { zero: true } },
      x2: { field: "endUs" },
      y: { field: "track", type: "nominal", sort: tracks, title: null },
      color: {
        field: "name",
        type: "nominal",
        sort: names,
        title: null,
        scale: { domain: names, range: names.map((_, k) => COLORS[k % COLORS.length]) },
        legend: { symbolLimit: 40 },
      },
    },
  });
}

/** A step beside what memory allows. */
export interface RooflinePoint {
  readonly name: string;
  /** Bytes that its kernels read and write. */
  readonly bytes: number;
  readonly us: number;
}

/** Time over bytes accessed, with the line that no step can be below: the bytes at copy speed after an empty pass. */
export function roofline(
  heading: Heading,
  points: readonly RooflinePoint[],
  { copyGBs, emptyPassUs }: { readonly copyGBs: number; readonly emptyPassUs: number },
): TopLevelSpec {
  const bytes = points.map((point) => point.bytes), low = Math.min(...bytes) / 2, high = Math.max(...bytes) * 2;
  const highestFirst = points.toSorted((a, b) => b.us - a.us);
  const floor = Array.from({ length: 40 }, (_, k) => {
    const at = low * (high / low) ** (k / 39);
    return { mb: at / 1e6, us: emptyPassUs + at / copyGBs / 1e3 };
  });
  const x = {
    field: "mb",
    type: "quantitative",
    title: "MB accessed by the kernels",
    scale: { type: "log", nice: false },
  } as const;
  const y = { field: "us", type: "quantitative", title: "µs per step", scale: { type: "log", nice: false } } as const;
  return typed({
    $schema: SCHEMA,
    title: titleOf(heading),
    config: CONFIG,
    width: 460,
    height: 300,
    layer: [
      { data: { values: floor }, mark: { type: "line", strokeDash: [6, 4], color: "#555555" }, encoding: { x, y } },
      {
        data: { values: highestFirst.map((point, order) => ({ ...point, order, mb: point.bytes / 1e6 })) },
        encoding: { x, y },
        layer: [
          { mark: { type: "point", filled: true, size: 70, color: COLORS[0], tooltip: true } },
          // By turns above and below, as neighbours would cover each other.
          ...[0, 1].map((turn) => ({
            transform: [{ filter: `datum.order % 2 == ${turn}` }],
            mark: { type: "text", align: "left", dx: 7, dy: turn === 0 ? -8 : 8, fontSize: 12 },
            encoding: { text: { field: "name" } },
          })),
        ],
      },
    ],
  });
}

/** Writes a picture where a command's `--out` asks for one, and says so. */
export async function writeSvg(path: string | undefined, spec: TopLevelSpec): Promise<void> {
  if (!path) return;
  await Deno.writeTextFile(path, await renderSvg(spec));
  console.log(`written: ${path}`);
}

/** Draws a specification. */
export async function renderSvg(spec: TopLevelSpec): Promise<string> {
  const view = new vega.View(vega.parse(compile(spec).spec), { renderer: "none" });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}
