/**
 * Charts: Vega-Lite specifications and their SVG. Colors are those of Okabe and Ito, which people who see few colors tell
 * apart; text is large enough and the ground white, so that they read on light and dark pages.
 *
 * @module
 */

import * as vega from "vega";
import { compile, type TopLevelSpec } from "vega-lite";

/** Okabe and Ito's colors, the strongest first. */
export const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"];

/** What every chart shares. */
const CONFIG = {
  background: "white",
  font: "sans-serif",
  padding: 12,
  axis: { labelFontSize: 12, titleFontSize: 13, gridColor: "#dddddd", titleFontWeight: "normal" },
  legend: { labelFontSize: 12, titleFontSize: 12 },
  title: { fontSize: 15, anchor: "start", subtitleFontSize: 12, subtitleColor: "#444444" },
} as const;

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
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v5.json",
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
  } as TopLevelSpec;
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
