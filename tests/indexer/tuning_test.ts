import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { resolveConfig } from "../../indexer/config.ts";
import { e07 } from "../../indexer/pipelines/e07_tuned.ts";
import { e07h } from "../../indexer/pipelines/e07h_half_tables.ts";
import { DEFAULT_DEVICE, planStep } from "../../indexer/pipelines/plan.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import {
  checkTuningFile,
  findTuning,
  readTuning,
  shapeClass,
  type Tuning,
  type TuningFile,
} from "../../indexer/tuning.ts";
import { hostDriver } from "../../kernels/gpu/host.ts";
import { gaussian } from "../../experiments/inputs/synthetic.ts";
import { gpuTest, script, withFolder } from "../support.ts";

const TUNING: Tuning = {
  invocations: 64,
  mostChunks: 4,
  workgroups: 1,
  lists: 1,
  listInvocations: 256,
  subgroupSize: 0,
};

const entry = (adapter: string, driver: string, shape: string) => ({
  adapter,
  driver,
  shape,
  tuning: TUNING,
  measured: [],
  date: "2026-01-01T00:00:00Z",
});

Deno.test("shapeClass: lists and K by powers of two, tokens not at all", () => {
  const of = (config: object, weights = true) =>
    shapeClass(resolveConfig({ heads: 32, headWidth: 128, ...config }), weights);
  assertEquals(of({}), "lists 32, group 1, D 128, M 2, bits 6, K 128, weights on");
  assertEquals(
    of({ batch: 3, heavySize: 100, kvHeads: 8 }, false),
    of({ batch: 3, heavySize: 140, kvHeads: 8 }, false),
  );
  assert(of({}) !== of({}, false) && of({}) !== of({ bits: 7 }) && of({}) !== of({ heavySize: { ratio: 0.1 } }));
  assertEquals(of({ heavySize: 0 }), "lists 32, group 1, D 128, M 2, bits 6, K 0, weights on");
});

Deno.test("findTuning: only for the same adapter, driver and shape; any driver's where none is told", async () => {
  const file: TuningFile = { tunings: [entry("a", "1", "s"), entry("b", "1", "s")] };
  const find = (adapter: string, driver: string, shape: string) =>
    findTuning(file, adapter, () => Promise.resolve(driver), shape);
  assertEquals(await find("b", "1", "s"), file.tunings[1]);
  assertEquals(await find("b", "unknown", "s"), file.tunings[1]);
  for (const [adapter, driver, shape] of [["c", "1", "s"], ["a", "2", "s"], ["a", "1", "t"]]) {
    assertEquals(await find(adapter, driver, shape), undefined);
  }
  const never = () => Promise.reject(new Error("asked for the driver"));
  assertEquals(await findTuning(file, "c", never, "s"), undefined);
});

Deno.test("checkTuningFile and readTuning refuse what deno task tune does not write", () =>
  withFolder(async (folder) => {
    for (const wrong of [null, 3, {}, { tunings: {} }]) {
      assertThrows(() => checkTuningFile(wrong), TypeError, "must have a list of tunings");
    }
    for (
      const change of [
        { invocations: 100 },
        { mostChunks: 64 },
        { lists: 0 },
        { workgroups: 1.5 },
        { lists: 2 ** 32 },
        {
          subgroupSize: "32",
        },
      ]
    ) {
      const file = { tunings: [{ ...entry("a", "1", "s"), tuning: { ...TUNING, ...change } }] };
      assertThrows(() => checkTuningFile(file), RangeError, "Cannot use this tuning as invocations");
    }
    assertThrows(() => checkTuningFile({ tunings: [null] }), RangeError, "undefined");
    await assertRejects(() => readTuning(`${folder}/none.json`), TypeError, "write it with deno task tune");
    await Deno.writeTextFile(`${folder}/t.json`, "{");
    await assertRejects(() => readTuning(`${folder}/t.json`), TypeError, "must be JSON");
    await Deno.writeTextFile(`${folder}/t.json`, "\u001b[2J");
    const steering = await assertRejects(() => readTuning(`${folder}/t.json`), TypeError, "must be JSON");
    assert(!steering.message.includes("\u001b"), "control characters are escaped");
    await Deno.writeTextFile(`${folder}/t.json`, JSON.stringify({ tunings: [entry("a", "1", "s")] }));
    assertEquals((await readTuning(`${folder}/t.json`)).tunings.length, 1);
  }));

Deno.test("tuned: other sizes, same structure; sizes that cannot be are refused", () => {
  const limits = {
    ...DEFAULT_DEVICE.limits,
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupSizeX: 1024,
    maxStorageBuffersPerShaderStage: 16,
  };
  const options = {
    config: resolveConfig({ heads: 32, headWidth: 128 }),
    device: { ...DEFAULT_DEVICE, limits },
    weights: true,
    tokens: 32_000,
  };
  const plan = planStep(e07.tuned!({ invocations: 1024 }), options);
  const tiles = plan.kernels.find(({ name, workgroups }) => name === "score_tiles" && workgroups > 0)!;
  assertEquals([tiles.invocations, tiles.overrides.CHUNK, plan.dispatches], [1024, 16384, 2]);
  assertThrows(() => planStep(e07.tuned!({ invocations: 100 }), options), RangeError, "Cannot plan e07");
  assertThrows(
    () => planStep(e07.tuned!({ subgroupSize: 32 }), options),
    RangeError,
    "subgroups of this device have 0",
  );
  assertThrows(
    () => planStep(e07.tuned!({ invocations: 1024, mostChunks: 32 }), options),
    RangeError,
    "fit the device",
  );
  const many = { ...options, config: resolveConfig({ heads: 32, headWidth: 128, heavySize: 300 }) };
  assertThrows(() => planStep(e07.tuned!({ invocations: 64 }), many), RangeError, "K be a quarter of a chunk at most");
});

Deno.test("e07h: f16 tables where the device has f16, e07's kernels elsewhere", () => {
  const config = resolveConfig({ heads: 4, headWidth: 128, subvectors: 16, bits: 8, heavySize: 64 });
  const limits = { ...DEFAULT_DEVICE.limits, maxComputeWorkgroupStorageSize: 49152 };
  const tiles = (pipeline: typeof e07h, features: string[]) => {
    const device = { ...DEFAULT_DEVICE, limits, features: new Set(features) };
    return pipeline.kernelsFor({ config, device, weights: false }).find(({ name }) => name === "score_tiles")!;
  };
  const half = tiles(e07h, ["shader-f16"]), full = tiles(e07h, []);
  assert(half.wgsl.includes("score/entry_f16.wgsl") && full.wgsl.includes("score/entry_f32.wgsl"));
  assertEquals(full.wgsl, tiles(e07, ["shader-f16"]).wgsl);
  const bytes = (kernel: typeof half) => kernel.plan(config.shape).workgroupBytes;
  assertEquals(bytes(tiles(e07, [])) - bytes(half), 16 * 256 * 2 - 8); // and the scale
});

gpuTest(
  "an index takes sizes from a file that knows its device and shape, and lists the same",
  (gpu) =>
    withFolder(async (folder) => {
      const config = { heads: 2, headWidth: 16, subvectors: 2, bits: 4, sinkSize: 4, windowSize: 8, heavySize: 20 };
      const codebook = { centroids: gaussian(2 * 16 * 16, 1), tokens: 0 };
      const keys = gaussian(2 * 5000 * 16, 2), query = gaussian(2 * 16, 3), newKeys = gaussian(2 * 16, 4);
      const run = async (tuning: TuningFile | string | undefined, pipeline?: string) => {
        using index = await PqIndexer.create({ ...config, codebook, weights: true, tuning, pipeline });
        await index.append(keys);
        const data = await (await index.step(query, newKeys)).read();
        return { sizes: index.pipeline.tuning, lists: data.indices, weights: data.weights };
      };
      const driver = await hostDriver(gpu.info), shape = shapeClass(resolveConfig(config), true);
      const here = { tunings: [entry(gpu.info.description, driver, shape)] };
      const expected = await run(undefined);
      assertEquals(expected.sizes, undefined);
      const path = `${folder}/tuning.json`;
      await Deno.writeTextFile(path, JSON.stringify(here));
      for (const source of [here, path]) {
        assertEquals(await run(source), { ...expected, sizes: TUNING });
      }
      assertEquals((await run({ tunings: [entry(gpu.info.description, "another", shape)] })).sizes, undefined);
      assertEquals((await run(here, "e05")).sizes, undefined); // nothing is tuned there
      const beyond = { tunings: [{ ...here.tunings[0], tuning: { ...TUNING, subgroupSize: 128, invocations: 1024 } }] };
      assertEquals(await run(beyond), expected); // not this device's
      await assertRejects(() => run(`${folder}/none.json`), TypeError, "Cannot read the tuning");
    }),
);

gpuTest("tune: measures, keeps other entries, and what it writes can be read", () =>
  withFolder(async (folder) => {
    const path = `${folder}/tuning.json`;
    await Deno.writeTextFile(path, JSON.stringify({ tunings: [entry("a", "1", "s")] }));
    const args = ["--heads", "1", "--tokens", "1500", "--heavy", "16", "--samples", "2", "--out", path];
    const { code, stdout, stderr } = await script("experiments/tune.ts", args);
    assertEquals(code, 0, stderr);
    const { tunings } = await readTuning(path);
    assertEquals(tunings.map(({ adapter }) => adapter === "a"), [true, false]);
    assert(tunings[1].measured[0].us > 0 && stdout.includes("(default)"), stdout);
    // What was written is found again by an index of that shape.
    const codebook = { centroids: gaussian(64 * 128, 1), tokens: 0 };
    const shape = { heads: 1, headWidth: 128, heavySize: 16, codebook, weights: true };
    using index = await PqIndexer.create({ ...shape, tuning: path });
    assertEquals(index.pipeline.tuning, tunings[1].tuning);
    await Deno.writeTextFile(path, "[]");
    for (
      const [wrong, exit] of [[["--out", path], 1], [["--tokens", "x"], 2], [["--heavy", "5%"], 2], [[
        "--tokens",
        "100",
      ], 2]] as const
    ) {
      const refused = await script("experiments/tune.ts", [...wrong]);
      assertEquals(refused.code, exit, refused.stderr);
      assert(refused.stderr.startsWith("error: Cannot"), refused.stderr);
    }
  }));
