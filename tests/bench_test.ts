import { assert, assertEquals, assertThrows } from "@std/assert";
import { checkTrace, type TraceEvent } from "../experiments/trace.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { pipelineById, PIPELINES } from "../indexer/pipelines/mod.ts";
import { resolveConfig } from "../indexer/config.ts";
import { PqIndexer } from "../indexer/pq_indexer.ts";
import { BUNDLED_ABOUT } from "../experiments/inputs/capture.ts";
import { gaussian } from "../experiments/inputs/synthetic.ts";
import { committedResults, floorUs, outside } from "../bench/report.ts";
import { everyCodeBytes } from "../bench/cases.ts";
import { reportJson } from "../experiments/json_rows.ts";
import { fillPages, generateTables, readPages } from "../tools/generate_readme.ts";
import type { DeviceFacts } from "../kernels/gpu/device.ts";
import { MOST_TAIL, postedIn } from "../kernels/postings/postings.ts";
import { gpuTest, hasGpu, row, script, withFolder } from "./support.ts";

const SHAPE = {
  heads: 6,
  kvHeads: 3,
  headWidth: 40,
  subvectors: 4,
  bits: 5,
  sinkSize: 5,
  windowSize: 20,
  heavySize: 30,
};

gpuTest("planStep: the dispatches that a step takes, on this device, for every pipeline", async (gpu) => {
  for (const pipeline of PIPELINES) {
    for (const weights of [false, true]) {
      const tokens = 900;
      using index = await PqIndexer.create({
        ...SHAPE,
        initOffset: 5,
        pipeline,
        device: gpu.device,
        weights,
        capacity: tokens,
        codebook: { centroids: gaussian(3 * 4 * 32 * 10, 1), tokens: 0 },
      });
      await index.append(gaussian(3 * 40 * (tokens - 1), 2));
      for (const newTokens of [0, 1]) {
        const config = resolveConfig({ ...SHAPE, initOffset: 5 });
        const plan = planStep(pipeline, { config, device: gpu, weights, tokens: tokens - 1 + newTokens, newTokens });
        assertEquals(plan.dispatches, index.dispatchesPerStep(newTokens), `${pipeline.id}, ${newTokens} new`);
        if (newTokens === 1) assertEquals(plan.bytesMoved, index.bytesPerStep(1), pipeline.id);
      }
    }
  }
});

Deno.test("planStep: e07 takes two dispatches on the fast path, and another plan where that does not fit", () => {
  const roomy = {
    ...DEFAULT_DEVICE,
    limits: { ...DEFAULT_DEVICE.limits, maxComputeWorkgroupStorageSize: 49152, maxStorageBuffersPerShaderStage: 16 },
  };
  const plan = (config: object, device = roomy, extra: object = {}) =>
    planStep(pipelineById("e07"), {
      config: resolveConfig({ heads: 32, headWidth: 128, ...config }),
      device,
      weights: true,
      tokens: 32_000,
      ...extra,
    });
  const names = (planned: ReturnType<typeof plan>) =>
    planned.kernels.filter(({ workgroups }) => workgroups > 0).map(({ name }) => name);
  assertEquals(names(plan({})), ["score_tiles", "code_list"]);
  assertEquals(names(plan({}, roomy, { newTokens: 0 })), ["score_tiles", "code_list"]);
  assertEquals(names(plan({ windowSize: 0 })), ["assign_packed", "score_tiles", "code_list"]); // it is a candidate itself
  assertEquals(names(plan({}, DEFAULT_DEVICE)), ["assign_packed", "score_tiles", "merge_list"]); // 8 buffers
  const small = { ...DEFAULT_DEVICE, limits: { ...DEFAULT_DEVICE.limits, maxComputeInvocationsPerWorkgroup: 1024 } };
  assertEquals(plan({}, small).kernels.find(({ name }) => name === "score_tiles")!.invocations, 256); // along x no more than that
  assertEquals(names(plan({ heavySize: 4000 })).includes("topk"), true);
  assertEquals(names(plan({ heavySize: { ratio: 0.1 } })).includes("topk"), true);
  assertEquals(names(plan({ subvectors: 16, bits: 8 }))[0], "score_tiles");
  assertEquals(names(plan({ subvectors: 64, bits: 8 })).includes("score"), true); // 64 KiB of table
  assertEquals(names(plan({}, roomy, { tokens: 100 })), ["code_list"]); // lists everything
  assert(plan({}).buffers.candidateRanks < 2 ** 20 && !("scores" in plan({}).buffers), "no score tensor");
  assertThrows(() => plan({}, roomy, { tokens: 2, rows: 5 }), RangeError, "rows is 5, tokens is 2");
});

Deno.test("planStep: e08 takes one dispatch by cells, and e07's plan where cells do not pay or fit", () => {
  const limits = {
    ...DEFAULT_DEVICE.limits,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupSizeX: 1024,
    maxComputeWorkgroupStorageSize: 49152,
    maxStorageBuffersPerShaderStage: 16,
    maxStorageBufferBindingSize: 2 ** 31,
  };
  const roomy = { ...DEFAULT_DEVICE, limits };
  const names = (config: object, device: DeviceFacts = roomy, tokens = 32_000) =>
    planStep(pipelineById("e08"), {
      config: resolveConfig({ heads: 32, headWidth: 128, ...config }),
      device,
      weights: true,
      tokens,
    }).kernels.filter(({ workgroups }) => workgroups > 0).map(({ name }) => name);
  assertEquals(names({}), ["cell_step"]);
  assertEquals(names({}, roomy, 2 ** 20), ["cell_step"]);
  assertEquals(names({}, roomy, 100), ["cell_step"]); // lists everything
  assertEquals(names({ subvectors: 4, bits: 3, heavySize: 512 }), ["cell_step"]);
  assertEquals(names({ windowSize: 0 }), ["assign_packed", "cell_step"]); // the new key is a candidate itself
  assertEquals(names({}, DEFAULT_DEVICE), ["assign_packed", "cell_list"]); // 8 buffers
  assertEquals(names({}, { ...roomy, info: { isSoftware: true } }), ["assign_packed", "cell_list"]);
  const refine = { refine: 4, refineElements: "f16" };
  assertEquals(names(refine), ["cell_step"]);
  assertEquals(names({ ...refine, kvHeads: 8, pooling: "groupSum" }), ["sum_queries", "cell_step"]);
  assertEquals(names({ ...refine, heavySize: 512 }), ["cell_step"]); // a shortlist need not be ordered: 2,048 are few
  assertEquals(names(refine, DEFAULT_DEVICE), ["score_tiles", "code_list", "refine_list"]); // 16 KiB
  const tiles = ["score_tiles", "code_list"];
  assertEquals(names({ subvectors: 4, bits: 4 }), tiles); // 65,536 cells
  assertEquals(names({ heavySize: 600 }), tiles);
  assertEquals(names({ sinkSize: { ratio: 0.01 } }), tiles);
  const small = { ...roomy, limits: { ...limits, maxStorageBufferBindingSize: 2 ** 24 } };
  assertEquals(names({}, small), ["cell_step"]);
  assertEquals(names({}, small, 262_144), tiles); // 33 MB of postings
  assertEquals(names(refine, small), ["cell_step"]);
  assertEquals(names(refine, small, 262_144), [...tiles, "refine_list"]);
});

Deno.test("postedIn: makes postings anew where codes changed, candidates went or the tail grew long", () => {
  const ranked = (candEnd: number, nHeavy = 4) => row(candEnd + 20, 4, nHeavy, 16, 4);
  const at = (candEnd: number, nNew = 1) => ({ nCoded: candEnd + 16, nNew, rows: [{ ...ranked(candEnd), candEnd }] });
  const first = postedIn(at(100), undefined);
  assertEquals(first, { posted: { begin: 0, end: 100 }, posts: true });
  const had = first.posted!;
  assertEquals(postedIn(at(101), had), { posted: had, posts: false });
  assertEquals(postedIn(at(100 + MOST_TAIL), had), { posted: had, posts: false });
  assertEquals(postedIn(at(101 + MOST_TAIL), had).posts, true);
  assertEquals(postedIn(at(99), had), { posted: { begin: 0, end: 99 }, posts: true }); // tokens were taken back
  assertEquals(postedIn(at(200, 120), had).posts, true); // and others coded in their place
  assertEquals(postedIn({ nCoded: 300, nNew: 1, rows: [] }, had), { posted: had, posts: false });
  assertEquals(postedIn({ nCoded: 80, nNew: 1, rows: [] }, had), { posted: undefined, posts: false });
  const rows = [ranked(140), { ...ranked(150), candBegin: 0 }];
  assertEquals(postedIn({ nCoded: 170, nNew: 2, rows }, undefined).posted!.end, 140); // what all rows may take
});

Deno.test("plan: prints and writes, and refuses what cannot be", () =>
  withFolder(async (folder) => {
    const { code, stdout, stderr } = await script("experiments/plan.ts", ["--json", `${folder}/plan.json`]);
    assertEquals(code, 0, stderr);
    assert(stdout.split("\n").every((line) => line.length <= 100), stdout);
    const plan = JSON.parse(await Deno.readTextFile(`${folder}/plan.json`));
    assertEquals(plan.pipeline, "e08");
    assertEquals(plan.dispatches, 2);
    for (
      const args of [["--pipeline", "e99"], ["--subvectors", "3"], ["--tokens", "2", "--rows", "5"], ["--heavy", "x"]]
    ) {
      const refused = await script("experiments/plan.ts", args);
      assertEquals(refused.code, 2, refused.stderr);
      assert(refused.stderr.startsWith("error: Cannot"), refused.stderr);
    }
  }));

Deno.test("checkTrace: refuses events that a viewer would not draw", () => {
  const sound: TraceEvent = { name: "a", ph: "X", pid: 1, tid: 1, ts: 0, dur: 1 };
  checkTrace([sound, { name: "process_name", ph: "M", pid: 1, tid: 1, args: { name: "x" } }]);
  const broken = [
    { ...sound, dur: -1 },
    { ...sound, ts: NaN },
    { ...sound, name: "" },
    { ...sound, pid: undefined },
    { ...sound, ph: "M" },
  ] as TraceEvent[];
  for (const event of broken) assertThrows(() => checkTrace([sound, event]), RangeError, "event 1 is not sound");
});

gpuTest("trace: every kernel of every pipeline, in order and after the submit", (gpu) =>
  withFolder(async (folder) => {
    const path = `${folder}/t.json`;
    const { code, stderr } = await script("experiments/trace.ts", ["--out", path, "--tokens", "2000", "--heads", "2"]);
    assertEquals(code, 0, stderr);
    const { traceEvents } = JSON.parse(await Deno.readTextFile(path)) as { traceEvents: TraceEvent[] };
    checkTrace(traceEvents);
    const gpuPipelines = PIPELINES.filter(({ runsOn }) => runsOn === "gpu");
    const config = resolveConfig({ heads: 2, headWidth: 128 });
    gpuPipelines.forEach(({ id, kernelsFor }, ix) => {
      const kernels = kernelsFor({ config, device: gpu, weights: true });
      const mine = traceEvents.filter(({ pid, ph }) => pid === ix + 1 && ph === "X");
      const host = mine.filter(({ cat }) => cat === "host"), device = mine.filter(({ cat }) => cat === "device");
      assertEquals(host.map(({ name }) => name), ["encode", "finish", "submit", "wait until idle"], id);
      const names = device.map(({ name }) => name);
      assertEquals(kernels.map(({ name }) => name).filter((name) => names.includes(name)), names, id);
      const submitted = host[3].ts!;
      assert(device.length > 0 && device.every(({ ts }) => ts! >= submitted - 1e-6));
    });
    assertEquals((await script("experiments/trace.ts", ["--pipelines", "e00"])).code, 2);
  }));

Deno.test("bench: verifies, measures, writes, and its report reads it", () =>
  withFolder(async (folder) => {
    const path = `${folder}/b.json`, ids = hasGpu ? ["cpu", "e08"] : ["cpu"];
    const { code, stdout, stderr } = await script("bench/bench.ts", [
      "--pipelines",
      ids.join(),
      "--samples",
      "2",
      "--json",
      path,
    ]);
    assertEquals(code, 0, stderr);
    assert(stdout.split("\n").every((line) => line.length <= 120), stdout);
    for (const column of ["no key:", "cold:", "layer:", "empty:", "amort.:"]) assert(stdout.includes(column), column);
    const { rows, provenance } = JSON.parse(await Deno.readTextFile(path));
    assertEquals(rows.length, 2 * ids.length);
    for (const row of rows) {
      assertEquals(row.verified, true, row.problem);
      assert(row.wallUs.median > 0 && row.bytesLeast > 0);
      assertEquals(row.gpuUs !== null, row.id !== "cpu");
    }
    assert(provenance.date && provenance.deno);
    const report = await script("bench/report.ts", [path]);
    assertEquals(report.code, 0, report.stderr);
    assertEquals(/^N [\d,]+ .*e08|^ +e08 /m.test(report.stdout), hasGpu); // a row of it
    await Deno.writeTextFile(path, "{}");
    assertEquals((await script("bench/report.ts", [path])).code, 2);
    assertEquals((await script("bench/report.ts", [`${folder}/none.json`])).code, 2);
    assertEquals((await script("bench/bench.ts", ["--pipelines", "e99"])).code, 2);
  }));

Deno.test("bench peers: ours checked and measured, what cannot run named", () =>
  withFolder(async (folder) => {
    const path = `${folder}/p.json`;
    const run = (...args: string[]) => script("bench/peers/peers.ts", args);
    const args = ["--tokens", "1500", "--only", "torch-imperative", "--python", `${folder}/none`, "--json", path];
    const { code, stdout, stderr } = await run(...args);
    assertEquals(code, 0, stderr);
    assert(stdout.includes("torch-imperative: did not run: "), stdout);
    const { rows } = JSON.parse(await Deno.readTextFile(path));
    assertEquals(rows.length, hasGpu ? 3 : 2);
    for (const row of rows.slice(0, -1)) {
      assertEquals([row.problem, row.failed, row.exchanges], ["", "", 0]);
      assert(row.wallUs > 0 && row.tokens === 1500);
    }
    assert(rows.at(-1).failed.includes("could not be started"), rows.at(-1).failed);
    for (const wrong of [["--tokens", "5"], ["--steps", "0"], ["--packages"]]) {
      assertEquals((await run(...wrong)).code, 2);
    }
  }));

gpuTest("bench attend: verifies, measures and writes", () =>
  withFolder(async (folder) => {
    const path = `${folder}/a.json`;
    const { code, stdout, stderr } = await script("bench/attend.ts", [
      "--tokens",
      "400",
      "--samples",
      "2",
      "--json",
      path,
    ]);
    assertEquals(code, 0, stderr);
    assert(stdout.split("\n").every((line) => line.length <= 100), stdout);
    const { rows } = JSON.parse(await Deno.readTextFile(path));
    assertEquals(rows.map(({ attends, elements }: Record<string, string>) => `${attends} ${elements}`), [
      "listed f16",
      "all f16",
      "listed f32",
      "all f32",
    ]);
    assert(rows.every((row: { verified: boolean; error: number }) => row.verified && row.error < 1e-5));
    assertEquals((await script("bench/attend.ts", ["--tokens", "10"])).code, 2);
  }));

Deno.test("fillPages: a table where its marks are, in any page; a table without marks and marks without a table are refused", () => {
  const marks = (name: string, text = "") => `<!-- ${name}: deno task generate -->\n${text}\n<!-- /${name} -->`;
  const pages = { "a.md": `x ${marks("one", "old")} y`, "b.md": `${marks("two")} ${marks("one")}`, "c.md": "no table" };
  const filled = fillPages(pages, { one: "1", two: "2" });
  assertEquals(filled["a.md"], "x <!-- one: deno task generate -->\n\n1\n\n<!-- /one --> y");
  assertEquals(filled["b.md"].match(/\d/g), ["2", "1"]);
  assertEquals(filled["c.md"], "no table");
  assertEquals(fillPages(filled, { one: "1", two: "2" }), filled);
  assertThrows(() => fillPages(pages, { one: "1", two: "2", three: "3" }), Error, "the table three as one of a.md");
  assertThrows(() => fillPages(pages, { one: "1" }), Error, "Cannot write b.md as two must be one of one");
  const open = { "a.md": "<!-- one: deno task generate --> 1" };
  assertThrows(() => fillPages(open, { one: "1" }), Error, "must end with <!-- /one -->");
});

Deno.test("generated tables: time, quality and bytes together; peers by each time; every capture; no page lacks one", async () => {
  const tables = await generateTables();
  const pages = await readPages();
  assertEquals(fillPages(pages, tables), pages, "README.md and docs/results.md are fresh");
  const row = (table: string, begin: string) => {
    const found = table.split("\n").find((line) => line.startsWith(`| ${begin}`));
    return found!.split("|").slice(1, -1).map((cell) => cell.trim());
  };
  const summary = row(tables.summary, "e08, re-ranked, R 4");
  assert(Number(summary[1]) > 0 && summary.slice(2, 5).every((cell) => cell.endsWith(" %")), summary.join());
  assertEquals(summary[5], "2 + 4");
  const peers = row(tables.peers, "implementation"), triton = row(tables.peers, "triton lookup + fused top-K");
  for (const [ratio, time] of [["× GPU", "GPU µs"], ["× wall", "wall"], ["× amort.", "amortized"]]) {
    const at = peers.indexOf(time), ours = row(tables.peers, "ours, e08 cells");
    const expected = Number(triton[at]) / Number(ours[at]);
    assert(Math.abs(parseFloat(triton[peers.indexOf(ratio)]) - expected) < 0.01 * expected + 0.005, ratio);
  }
  assertEquals(peers.filter((name) => name.startsWith("right, N")).length, 2);
  for (const name of Object.keys(BUNDLED_ABOUT)) assert(tables.quality.includes(`### ${name}`), name);
  assert(tables.quality.includes("One KV head of a small model trained for this project"));
  for (const name of ["results", "peers", "attend", "crossover"]) assert(tables[name].includes("it recovers"), name);
  for (const table of Object.values(tables)) assert(!/undefined|NaN/.test(table), table);
});

Deno.test("outside: the share beside the kernels, and nothing where the kernels alone took longer", async () => {
  const row = (await committedResults())[0].report.rows.find(({ id }) => id === "e08")!;
  const [one] = row.operations;
  const step = (us: number) => ({ ...row, gpuUs: { ...row.gpuUs!, median: 10 }, operations: [{ ...one, us }] });
  assertEquals(outside(step(9), 4), 0.5);
  assertEquals(outside(step(16), 4), undefined);
});

Deno.test("reportJson: what JSON.stringify says, with a row a line", () => {
  const report = {
    rows: [{ a: [1, 2], b: { c: "x, y: {z}" }, d: NaN }, { a: [], b: {}, d: -0 }],
    nothing: undefined,
    none: [],
    about: { text: "µ\n", list: [1, null], deep: { rows: [{ a: 1 }] } },
  };
  const text = reportJson(report);
  assertEquals(JSON.parse(text), JSON.parse(JSON.stringify(report)));
  assertEquals(text.split("\n").slice(1, 5), [
    '  "rows": [',
    '    { "a": [1, 2], "b": { "c": "x, y: {z}" }, "d": null },',
    '    { "a": [], "b": {}, "d": 0 }',
    "  ],",
  ]);
  assert(text.endsWith("}\n") && text.includes('        { "a": 1 }\n'));
});

Deno.test("committed results: a row a line in every file", async () => {
  for (const folder of ["../bench/results/", "../experiments/results/"]) {
    const read = async (url: URL): Promise<void> => {
      for await (const { name, isDirectory } of Deno.readDir(url)) {
        if (isDirectory) await read(new URL(`${name}/`, url));
        if (!name.endsWith(".json")) continue;
        const text = await Deno.readTextFile(new URL(name, url));
        assertEquals(text, reportJson(JSON.parse(text)), name);
      }
    };
    await read(new URL(folder, import.meta.url));
  }
});

Deno.test("committed results: of GPUs, verified, named after their adapter", async () => {
  for (const { name, report } of await committedResults()) {
    assertEquals(report.provenance.software, false, name);
    assert(name.startsWith(report.provenance.adapter.toLowerCase().replaceAll(" ", "-")), name);
    assert(report.rows.every(({ verified }) => verified), name);
    assert(report.copyGBs > 0 && report.emptyPassUs > 0);
    for (const row of report.rows.filter(({ gpuUs }) => gpuUs)) {
      assert(
        floorUs(row, report.copyGBs) < row.gpuUs!.median,
        `${row.id}, ${row.factor} ${row.value}: below its floor`,
      );
      assertEquals(row.bytesLeast, everyCodeBytes(row.workload));
    }
  }
});
