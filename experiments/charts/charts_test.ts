import { assert, assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { committedResults } from "../../bench/report.ts";
import { POOLINGS } from "../../indexer/config.ts";
import { encodeSafetensors } from "../../indexer/safetensors.ts";
import { clustered, gaussian } from "../inputs/synthetic.ts";
import type { GridRow } from "../quality_runs.ts";
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

Deno.test("iterations.svg is what the results draw: deno task draw picture", async () => {
  assertEquals(await Deno.readTextFile(new URL("iterations.svg", import.meta.url)), await picture());
});

Deno.test("charts: bars, curves, strips, timeline and roofline draw every mark that they are given", async () => {
  const count = (svg: string, what: string) => svg.split(what).length - 1;
  const heading = { title: "Title", subtitle: ["subtitle"] };
  const stacked = await renderSvg(
    bars(
      heading,
      [{ name: "a", value: 3, part: "p" }, { name: "a", value: 4, part: "q" }, { name: "b", value: 1 }],
      "µs",
    ),
  );
  assert(stacked.includes("7.00") && stacked.includes("1.00"), "totals");
  const points = [{ x: 1, y: 0.5, line: "one" }, { x: 2, y: 0.9, line: "one" }, { x: 1, y: 0.1, line: "two" }];
  const drawn = await renderSvg(curves(heading, points, { title: "x", log: true }, { title: "y", format: ".0%" }));
  assert(drawn.includes("one") && drawn.includes("two"));
  const cells = Array.from({ length: 12 }, (_, k) => ({ row: `head ${k % 3}`, token: k, share: k === 0 ? 0 : k / 66 }));
  const strips = await renderSvg(heatStrips(heading, cells, "share"));
  assertEquals(count(strips, 'aria-roledescription="rect'), 12 + 1); // the legend's is one
  const spans = [{ name: "encode", track: "host", beginUs: 0, us: 3 }, {
    name: "topk",
    track: "device",
    beginUs: 3,
    us: 9,
  }];
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

/** Runs an experiment as its task does, in a pipe. */
async function experiment(name: string, args: readonly string[]) {
  const config = fileURLToPath(new URL("../../notebooks/deno.json", import.meta.url));
  const script = fileURLToPath(new URL(`${name}.ts`, import.meta.url));
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--config", config, script, ...args],
    env: {
      NO_COLOR: "1",
      NODE_OPTIONS: "--no-warnings",
      XDG_RUNTIME_DIR: "/tmp",
      DENO_WEBGPU_BACKEND: "vulkan,metal,dx12",
    },
  }).output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

/** A capture of clustered keys, so small that training takes no time; queries look for keys like those. */
async function writeCapture(path: string, tokens: number): Promise<void> {
  const [heads, kvHeads, steps, width] = [4, 2, 3, 8];
  const f32 = (shape: number[], data: Float32Array) => ({ dtype: "F32" as const, shape, data });
  const key = clustered(kvHeads * tokens, width, 6, 0.1, 1);
  const tensors = {
    query: f32([heads, steps, width], gaussian(heads * steps * width, 2).map((value) => 3 * value)),
    key: f32([kvHeads, tokens, width], key),
    value: f32([kvHeads, tokens, width], key),
  };
  await Deno.writeFile(path, encodeSafetensors(tensors));
}

Deno.test("recall, error, drift and metric: rows, picture and table from a capture; wrong flags and files are refused", async () => {
  const folder = await Deno.makeTempDir({ prefix: "pq-indexer-" });
  try {
    const [capture, json, out] = ["capture.safetensors", "rows.json", "picture.svg"].map((name) => `${folder}/${name}`);
    await writeCapture(capture, 3000);
    const common = ["--capture", capture, "--json", json, "--out", out, "--iterations", "3"];
    const cases: [string, string[], number][] = [
      // Per M, bits and K: four without re-ranking, two with; scores that are pooled one by one have none.
      [
        "recall",
        ["--subvectors", "2,4", "--bits", "2,3", "--heavy", "8,32", "--refine", "1,4", "--pooling", POOLINGS.join()],
        48,
      ],
      ["error", ["--subvectors", "2", "--bits", "2,3", "--heavy", "8,4096", "--refine", "1"], 4],
      ["drift", ["--subvectors", "2", "--bits", "3", "--heavy", "16"], 3], // 1,024, 2,048 and all
      ["metric", ["--subvectors", "2,4", "--bits", "3", "--heavy", "16"], 4],
    ];
    for (const [name, flags, count] of cases) {
      const { code, stdout, stderr } = await experiment(name, [...common, ...flags]);
      assertEquals(code, 0, stderr);
      assert(stdout.split("\n").every((line) => line.length <= 100) && !stdout.includes("NaN"), stdout);
      const { rows, provenance } = JSON.parse(await Deno.readTextFile(json));
      assertEquals(rows.length, count, name);
      for (const { quality } of rows) {
        assert(quality.recall >= 0 && quality.recall <= 1 && quality.windowMass <= quality.exactMass, name);
        assert(quality.listMass >= quality.windowMass - 1e-12 && quality.listMass <= quality.exactMass + 1e-12, name);
      }
      if (name === "recall") {
        const of = (wanted: number) =>
          rows.filter((row: GridRow) => row.refine === wanted && row.pooling === "perQueryHead");
        of(4).forEach((row: GridRow, ix: number) => assert(row.quality.recall >= of(1)[ix].quality.recall));
        assertEquals(new Set(rows.map((row: GridRow) => row.pooling)), new Set(POOLINGS));
      }
      if (name === "error") {
        // In pairs of K 8 and more than there are: a list of all tokens is dense attention.
        for (let ix = 0; ix < rows.length; ix += 2) {
          const [few, all] = [rows[ix].quality, rows[ix + 1].quality];
          assert(few.listError > 1e-3 && few.exactError > 1e-3 && few.windowError > 1e-3 && few.listCosine < 0.9999);
          assert(all.listError < 1e-12 && 1 - all.listCosine < 1e-12, `${all.listError}, ${all.listCosine}`);
        }
      }
      const [{ capture: input, tokens: cached }] = provenance.captures;
      assertEquals([input, cached], ["capture", 3000]);
      if (name === "recall") {
        assert(rows.every((row: GridRow) => row.capture === "capture" && row.bytesPerKey === row.subvectors));
        for (const column of ["bytes/key", "window", "same len."]) assert(stdout.includes(column), column);
      }
      assert((await Deno.readTextFile(out)).startsWith("<svg"));
    }
    const [few, many] = await Promise.all(["8", "32"].map(async (heavy) => {
      const path = `${folder}/${heavy}.json`;
      await experiment("recall", [
        "--capture",
        capture,
        "--json",
        path,
        "--subvectors",
        "2",
        "--bits",
        "3",
        "--heavy",
        heavy,
      ]);
      return JSON.parse(await Deno.readTextFile(path)).rows[0].quality.listMass;
    }));
    assert(many >= few, "more heavy tokens keep more");
    for (
      const [name, flag, value] of [
        ["recall", "--bits", "9"],
        ["recall", "--pooling", "mean"],
        ["error", "--refine", "0"],
        ["drift", "--steps", "0"],
        ["metric", "--heavy", "x"],
      ]
    ) {
      const { code, stderr } = await experiment(name, ["--capture", capture, flag, value]);
      assertEquals(code, 2, stderr);
      assert(stderr.includes("error: Cannot use"), stderr);
    }
    const second = `${folder}/second.safetensors`;
    await writeCapture(second, 2000);
    const small = ["--subvectors", "2", "--bits", "3", "--heavy", "8", "--refine", "1", "--iterations", "2"];
    for (const name of ["recall", "error"]) {
      const both = await experiment(name, [
        "--capture",
        `${capture},${second}`,
        "--json",
        json,
        "--out",
        out,
        ...small,
      ]);
      assertEquals(both.code, 0, both.stderr);
      const { rows, provenance } = JSON.parse(await Deno.readTextFile(json));
      const names = (of: readonly { capture: string }[]) => of.map(({ capture }) => capture);
      assertEquals([names(rows), names(provenance.captures)], [["capture", "second"], ["capture", "second"]]);
      assert(/^second: 3 steps/m.test(both.stdout) && /^capture: 3 steps/m.test(both.stdout), both.stdout);
      assert((await Deno.readTextFile(out)).includes("second: M 2"));
    }
    const twice = await experiment("recall", ["--capture", `${capture},${capture}`, ...small]);
    assertEquals([twice.code, twice.stderr.includes("Cannot use two captures of one name")], [2, true]);
    const { code, stderr } = await experiment("recall", ["--capture", capture, "--subvectors", "3"]);
    assertEquals(code, 2, stderr);
    assertEquals((await experiment("drift", ["--capture", json])).code, 1);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
