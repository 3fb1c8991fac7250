import { assert, assertEquals } from "@std/assert";
import { committedResults } from "../../bench/report.ts";
import { COLORS, linePanels, renderSvg } from "./charts.ts";
import { panelsOf } from "./scaling.ts";

Deno.test("linePanels: an SVG with every line, axis and title", async () => {
  const points = [1, 10, 100].flatMap((x) => [{ x, us: 3 * x, line: "a" }, { x, us: 7, line: "b" }]);
  const panel = { title: "N, tokens", points };
  const svg = await renderSvg(linePanels("Title", ["subtitle"], ["a", "b"], [panel, panel], "µs per step"));
  assert(svg.startsWith("<svg"));
  for (const text of ["Title", "subtitle", "N, tokens", "µs per step", COLORS[0], COLORS[1]]) {
    assert(svg.includes(text), text);
  }
  assert(!svg.includes("NaN"));
});

Deno.test("scaling: a line per GPU pipeline over each factor that the newest results vary", async () => {
  const file = (await committedResults()).at(-1)!;
  for (const wall of [false, true]) {
    const { lines, panels } = panelsOf(file, wall);
    assertEquals(panels.map(({ title }) => title), ["N, cached tokens", "heads", "K, heavy tokens"]);
    assert(lines.some((line) => line.startsWith("e07")) && lines.some((line) => line.startsWith("e01")));
    for (const { title, points } of panels) {
      for (const line of lines.filter((line) => /^e0[1-6]/.test(line))) {
        assert(points.filter((point) => point.line === line).length > 1, `${line} over ${title}`);
      }
      assert(points.every(({ x, us }) => x > 0 && us > 0));
    }
  }
});
