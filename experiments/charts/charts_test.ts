import { assert, assertEquals } from "@std/assert";
import { committedResults } from "../../bench/report.ts";
import { bars, COLORS, curves, heatStrips, linePanels, renderSvg, roofline, timeline } from "./charts.ts";
import { picture } from "./readme_picture.ts";
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

Deno.test("iterations.svg is what the results draw: deno task picture", async () => {
  assertEquals(await Deno.readTextFile(new URL("iterations.svg", import.meta.url)), await picture());
});

Deno.test("charts: bars, curves, strips, timeline and roofline draw every mark that they are given", async () => {
  const count = (svg: string, what: string) => svg.split(what).length - 1;
  const heading = { title: "Title", subtitle: ["subtitle"] };
  const stacked = await renderSvg(
    bars(heading, [{ name: "a", value: 3, part: "p" }, { name: "a", value: 4, part: "q" }, { name: "b", value: 1 }], "µs"),
  );
  assert(stacked.includes("7.00") && stacked.includes("1.00"), "totals");
  const points = [{ x: 1, y: 0.5, line: "one" }, { x: 2, y: 0.9, line: "one" }, { x: 1, y: 0.1, line: "two" }];
  const drawn = await renderSvg(curves(heading, points, { title: "x", log: true }, { title: "y", format: ".0%" }));
  assert(drawn.includes("one") && drawn.includes("two"));
  const cells = Array.from({ length: 12 }, (_, k) => ({ row: `head ${k % 3}`, token: k, share: k === 0 ? 0 : k / 66 }));
  const strips = await renderSvg(heatStrips(heading, cells, "share"));
  assertEquals(count(strips, 'aria-roledescription="rect'), 12 + 1); // the legend's is one
  const spans = [{ name: "encode", track: "host", beginUs: 0, us: 3 }, { name: "topk", track: "device", beginUs: 3, us: 9 }];
  const line = await renderSvg(timeline(heading, spans));
  assert(line.includes("host") && line.includes("device"));
  const roof = await renderSvg(
    roofline(heading, [{ name: "e01", bytes: 1e8, us: 300 }, { name: "e07", bytes: 1e7, us: 18 }], {
      copyGBs: 4000,
      emptyPassUs: 4,
    }),
  );
  for (const svg of [stacked, drawn, line, roof]) assert(svg.includes("Title") && !svg.includes("NaN"));
});
