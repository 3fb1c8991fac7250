import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { fileURLToPath } from "node:url";
import {
  BUNDLED_CAPTURE,
  BUNDLED_CAPTURES,
  type BundledName,
  CaptureError,
  captureName,
  capturePath,
  keysOf,
  loadCapture,
  queryOf,
} from "../experiments/inputs/capture.ts";
import { BUNDLED_GOLDEN, GoldenError, loadGolden } from "../experiments/inputs/golden.ts";
import { halfToNumber, Safetensors, SafetensorsError } from "../experiments/inputs/safetensors.ts";
import { crossing } from "../experiments/crossover.ts";
import { QualityMeter } from "../experiments/quality.ts";
import { summarize } from "../experiments/stats.ts";
import { verifyCase } from "../experiments/verify.ts";
import { resolveConfig } from "../indexer/config.ts";
import { readHeader } from "../indexer/safetensors.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";
import { gpuTest, hasGpu, ROOT, script, uniform, withFolder, writeSafetensors } from "./support.ts";

Deno.test("safetensors: every dtype, as f32 and as integers, whole and in slices", () =>
  withFolder(async (folder) => {
    const path = `${folder}/x.safetensors`;
    await writeSafetensors(path, {
      f64: { dtype: "F64", shape: [2], data: new Float64Array([0.1, -2]) },
      f32: { dtype: "F32", shape: [2, 2], data: new Float32Array([1, 2, 3, 4]) },
      f16: { dtype: "F16", shape: [6], data: new Uint16Array([0x3c00, 0xc000, 0x0001, 0x7c00, 0xfc00, 0x8000]) },
      bf16: { dtype: "BF16", shape: [2], data: new Uint16Array([0x3f80, 0xc040]) },
      i64: { dtype: "I64", shape: [2], data: new BigInt64Array([-5n, 2n ** 40n]) },
      u64: { dtype: "U64", shape: [1], data: new BigUint64Array([7n]) },
      i32: { dtype: "I32", shape: [3], data: new Int32Array([-1, 0, 2 ** 30]) },
      u32: { dtype: "U32", shape: [1], data: new Uint32Array([2 ** 32 - 1]) },
      i16: { dtype: "I16", shape: [1], data: new Int16Array([-300]) },
      u16: { dtype: "U16", shape: [1], data: new Uint16Array([65535]) },
      i8: { dtype: "I8", shape: [1], data: new Int8Array([-8]) },
      u8: { dtype: "U8", shape: [0], data: new Uint8Array(0) },
      bool: { dtype: "BOOL", shape: [], data: new Uint8Array([1]) },
    }, { note: "hello" });
    using file = await Safetensors.open(path);
    assertEquals(file.metadata, { note: "hello" });
    const floats = async (
      name: string,
      begin?: number,
      count?: number,
    ) => [...await file.readFloat32(name, begin, count)];
    assertEquals(await floats("f64"), [Math.fround(0.1), -2]);
    assertEquals(await floats("f32", 1, 2), [2, 3]);
    assertEquals(await floats("f16"), [1, -2, 2 ** -24, Infinity, -Infinity, -0]);
    assertEquals(await floats("bf16"), [1, -3]);
    assertEquals(await floats("i64"), [-5, 2 ** 40]);
    assertEquals(await floats("u8"), []);
    const integers = async (name: string) => [...await file.readInt32(name)];
    assertEquals(await integers("i32"), [-1, 0, 2 ** 30]);
    assertEquals([...await file.readInt32("i64", 0, 1), ...await integers("u64")], [-5, 7]);
    assertEquals([...await integers("i16"), ...await integers("u16"), ...await integers("i8")], [-300, 65535, -8]);
    assertEquals(await integers("bool"), [1]);
    await assertRejects(() => file.readInt32("i64"), SafetensorsError, "it holds 1099511627776");
    await assertRejects(() => file.readInt32("u32"), SafetensorsError, "it holds 4294967295");
    await assertRejects(() => file.readInt32("f32"), SafetensorsError, "its dtype is F32");
    await assertRejects(() => file.readFloat32("f32", 3, 2), RangeError, "its 4 elements: 3 to 5");
    await assertRejects(() => file.readFloat32("f32", -1), RangeError, "must lie in");
    await assertRejects(() => file.readFloat32("nope"), SafetensorsError, "it holds bf16, bool");
  }));

Deno.test("safetensors: halves", () => {
  for (
    const [half, value] of [[0x3555, 0.333251953125], [0x7bff, 65504], [0x0400, 2 ** -14], [0x03ff, 1023 * 2 ** -24]]
  ) {
    assertEquals(halfToNumber(half), value);
  }
  assert(Number.isNaN(halfToNumber(0x7e00)));
});

Deno.test("safetensors: a slice of a file of 5 GB is read without reading the file", () =>
  withFolder(async (folder) => {
    const path = `${folder}/large.safetensors`;
    const elements = 5 * 2 ** 28;
    const header = new TextEncoder().encode(
      JSON.stringify({ key: { dtype: "F32", shape: [elements], data_offsets: [0, elements * 4] } }),
    );
    using raw = await Deno.open(path, { write: true, create: true });
    const head = new Uint8Array(8);
    new DataView(head.buffer).setBigUint64(0, BigInt(header.length), true);
    await raw.write(head);
    await raw.write(header);
    await raw.truncate(8 + header.length + elements * 4);
    await raw.seek(8 + header.length + (elements - 2) * 4, Deno.SeekMode.Start);
    await raw.write(new Uint8Array(new Float32Array([3, 4]).buffer));
    using file = await Safetensors.open(path);
    assertEquals([...await file.readFloat32("key", elements - 3, 3)], [0, 3, 4]);
  }));

Deno.test("safetensors: truncated and lying headers are refused", () =>
  withFolder(async (folder) => {
    const path = `${folder}/bad.safetensors`;
    const refused = async (bytes: Uint8Array, message: string) => {
      await Deno.writeFile(path, bytes);
      await assertRejects(() => Safetensors.open(path), SafetensorsError, message);
    };
    const withHeader = (header: unknown, data = 16, length?: number) => {
      const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
      const bytes = new Uint8Array(8 + text.length + data);
      new DataView(bytes.buffer).setBigUint64(0, BigInt(length ?? text.length), true);
      bytes.set(text, 8);
      return bytes;
    };
    const tensor = (change: object) =>
      withHeader({ x: { dtype: "F32", shape: [4], data_offsets: [0, 16], ...change } });
    await refused(new Uint8Array(5), "it has 5 bytes");
    await refused(withHeader({}, 0, 1000), "its header claims 1000 bytes, the file has 10");
    await refused(withHeader({}, 0, 2 ** 52), "its header claims");
    await refused(withHeader("{not json"), "not JSON");
    await refused(withHeader("[1]"), "not an object");
    await refused(withHeader("null"), "not an object");
    await refused(tensor({ dtype: "F8" }), 'has dtype "F8"');
    await refused(tensor({ dtype: undefined }), "has dtype");
    await refused(tensor({ shape: [-4] }), "has shape [-4]");
    await refused(tensor({ shape: "4" }), "has shape");
    await refused(tensor({ shape: [5] }), "20 bytes, but its data_offsets span 16");
    await refused(tensor({ data_offsets: [16, 0] }), "has data_offsets");
    await refused(tensor({ data_offsets: [0] }), "has data_offsets");
    await refused(tensor({ shape: [8], data_offsets: [0, 32] }), "truncated");
    await refused(tensor({ shape: [1e200, 1e200] }), "has shape");
    await refused(
      withHeader({
        x: { dtype: "F32", shape: [4], data_offsets: [0, 16] },
        y: { dtype: "F32", shape: [2], data_offsets: [8, 16] },
      }),
      "x and y overlap",
    );
    await refused(withHeader({ x: null }), "has dtype");
    await assertRejects(() => Safetensors.open(folder), Error);
    await assertRejects(() => Safetensors.open(`${folder}/none`), SafetensorsError, "cannot be opened");
  }));

Deno.test("bundled captures: each by its name, of several KV heads too, and what its README says", async () => {
  const readme = await Deno.readTextFile(`${ROOT}experiments/inputs/data/README.md`);
  for (const name of Object.keys(BUNDLED_CAPTURES) as BundledName[]) {
    const { heads, kvHeads, headWidth, tokens, steps, key } = await loadCapture(capturePath(name));
    const smol = name !== "attention_layer3";
    const expected = smol ? [9, 3, 64, 8192, 64] : [4, 1, 128, 16384, 64];
    assertEquals([heads, kvHeads, headWidth, tokens, steps], expected, name);
    assertEquals(key.length, kvHeads * tokens * headWidth);
    assert(readme.includes(`${name}.safetensors`), name);
    assertEquals(captureName(capturePath(name)), name);
  }
  assertEquals(capturePath("my.safetensors"), "my.safetensors");
  assertEquals(captureName("a/b\\my.safetensors"), "my");
});

Deno.test("a capture in memory has its keys and queries where its file has them", async () => {
  const capture = await loadCapture(BUNDLED_CAPTURE);
  assertEquals([capture.heads, capture.kvHeads, capture.headWidth, capture.tokens, capture.steps], [
    4,
    1,
    128,
    16384,
    64,
  ]);
  assertEquals(keysOf(capture, 16383, 16384), capture.key.slice(16383 * 128));
  assertEquals(queryOf(capture, 63).slice(128, 256), capture.query.slice(127 * 128, 128 * 128));
});

Deno.test("captures with the wrong tensors are refused", () =>
  withFolder(async (folder) => {
    const path = `${folder}/capture.safetensors`;
    const f32 = (shape: number[], fill = 1) => ({
      dtype: "F32" as const,
      shape,
      data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(fill),
    });
    const good = { query: f32([4, 3, 8]), key: f32([2, 10, 8]), value: f32([2, 10, 8]) };
    await writeSafetensors(path, good);
    assertEquals((await loadCapture(path)).tokens, 10);
    const refused = async (change: object, message: string) => {
      const tensors: Record<string, ReturnType<typeof f32>> = { ...good, ...change };
      for (const name in tensors) if (!tensors[name]) delete tensors[name];
      await writeSafetensors(path, tensors);
      await assertRejects(() => loadCapture(path), CaptureError, message);
    };
    await refused({ key: undefined }, "it has no tensor key (it has query, value)");
    await refused({ key: f32([10, 8]) }, "key has shape [10, 8]");
    await refused({ key: f32([2, 0, 8]) }, "key has shape [2, 0, 8]");
    await refused({ key: f32([2, 10, 4]) }, "query has head width 8, key has 4");
    await refused({ value: f32([2, 9, 8]) }, "value has shape [2, 9, 8], key has [2, 10, 8]");
    await refused({ query: f32([5, 3, 8]) }, "5 query heads cannot share 2 KV heads evenly");
    await refused({ query: f32([4, 11, 8]) }, "11 queries are more than 10 keys");
    await refused({ query: { dtype: "I32", shape: [4, 3, 8], data: new Int32Array(96) } }, "query has dtype I32");
    await refused({ key: f32([2, 10, 8], NaN) }, "key holds NaN at element 0");
  }));

Deno.test("golden files: missing settings and tensors are refused; a wrong expectation fails its case", () =>
  withFolder(async (folder) => {
    const path = `${folder}/golden.safetensors`;
    const refused = async (metadata: Record<string, string>, message: string) => {
      await writeSafetensors(path, {}, metadata);
      await assertRejects(() => loadGolden(path), GoldenError, message);
    };
    const settings = {
      name: "a",
      b: 1,
      h: 1,
      h_kv: 1,
      d: 4,
      sk: 9,
      subvectors: 2,
      bits: 1,
      sink_size: 1,
      window_size: 1,
      heavy_size: 1,
      init_offset: 1,
      metric: "euclidean",
      new_keys: 1,
    };
    await refused({}, "not a JSON list of cases");
    await refused({ cases: "[]" }, "not a list of cases");
    await refused({ cases: "[{}]" }, "a case has no name");
    await refused({ cases: JSON.stringify([{ ...settings, sk: -1 }]) }, "case a has sk -1");
    await refused({ cases: JSON.stringify([{ ...settings, metric: "l1" }]) }, "case a has metric l1");
    await refused({ cases: JSON.stringify([settings]) }, "it has no tensor a/sparse_list");

    const cases = await loadGolden(BUNDLED_GOLDEN);
    assertEquals(cases.length, 9);
    const golden = cases.find(({ name }) => name === "metric_ip")!;
    assertEquals((await verifyCase(golden, "e00")).passed, true);
    const fails = async (change: object, message: string) => {
      const result = await verifyCase({ ...golden, ...change }, "e00");
      assertEquals(result.passed, false);
      assertStringIncludes(result.detail, message);
    };
    const changed = <T extends Int32Array | Float32Array>(array: T, at: number, value: number) => {
      const copy = array.slice() as T;
      copy[at] = value;
      return copy;
    };
    const unlisted = Array.from({ length: 600 }, (_, token) => token + 20).find((token) =>
      !golden.list.subarray(0, 80).includes(token)
    )!;
    await fails({ list: changed(golden.list, 30, unlisted) }, "weight of token");
    const list = changed(golden.list, 30, unlisted);
    const weights = changed(changed(golden.weights, golden.list[30], 0), unlisted, 1);
    await fails({ list, weights }, "the file's is");
    await fails({ list: changed(golden.list, 2, 690) }, "weight of token");
    await fails({ weights: changed(golden.weights, 3, 0) }, "weight of token 3");
    await fails({ scores: changed(golden.scores, 100, golden.scores[100] + 0.01) }, "score of coded token 100");
    const newest = (golden.codesAfter.length - 1) as number;
    await fails(
      { codesAfter: changed(golden.codesAfter, newest, (golden.codesAfter[newest] + 1) % 32) },
      "in the file, code of key 2",
    );
    await fails({ heavySize: 31, listLength: 79, list: golden.list.slice(0, 4 * 79) }, "");
  }));

Deno.test("summarize", () => {
  const { mean, median, min, max, sd, count } = summarize([4, 1, 3, 2]);
  assertEquals([mean, median, min, max, count], [2.5, 2.5, 1, 4, 4]);
  assert(Math.abs(sd - Math.sqrt(5 / 3)) < 1e-12);
  assertEquals(summarize([7]).sd, 0);
  assertEquals(summarize([3, 1, 2]).median, 2);
  assertThrows(() => summarize([]), RangeError);
});

Deno.test("quality: exact lists recall everything, window-only keeps its own mass", () => {
  const heads = 2, N = 200, D = 4;
  const capture = {
    heads,
    kvHeads: 1,
    headWidth: D,
    tokens: N,
    steps: 1,
    query: uniform(heads * D, 1),
    key: uniform(N * D, 2).map((value) => value * 10),
    metadata: {},
  };
  const config = resolveConfig({ heads, kvHeads: 1, headWidth: D, bits: 2, sinkSize: 2, windowSize: 6, heavySize: 5 });
  const logit = (h: number, token: number) => {
    let dot = 0;
    for (let j = 0; j < D; j++) dot += capture.query[h * D + j] * capture.key[token * D + j];
    return dot / 2;
  };
  const fixed = [0, 1, 194, 195, 196, 197, 198, 199];
  const best = (h: number) =>
    Array.from({ length: 192 }, (_, i) => i + 2).sort((a, b) => logit(h, b) - logit(h, a)).slice(0, 5);
  const mass = (h: number, tokens: number[]) => {
    const sum = (of: number[]) => of.reduce((total, token) => total + Math.exp(logit(h, token)), 0);
    return sum(tokens) / sum(Array.from({ length: N }, (_, token) => token));
  };
  const exact = new QualityMeter(capture, config, 2);
  exact.add(0, N, [[...fixed, ...best(0)], [...fixed, ...best(1)]]);
  const result = exact.result();
  assertEquals([result.recall, result.recovered, result.listLength], [1, 1, 13]);
  assert(Math.abs(result.listMass - (mass(0, [...fixed, ...best(0)]) + mass(1, [...fixed, ...best(1)])) / 2) < 1e-12);
  assert(Math.abs(result.windowMass - (mass(0, fixed) + mass(1, fixed)) / 2) < 1e-12);
  const none = new QualityMeter(capture, config, 2);
  none.add(0, N, [fixed, fixed]);
  assertEquals([none.result().recall, none.result().recovered], [0, 0]);
});

/** Runs a script of ours as its task does. */
/** A backend that no Linux or macOS machine has: WebGPU then finds no adapter. */
const NO_GPU = { DENO_WEBGPU_BACKEND: Deno.build.os === "windows" ? "metal" : "dx12" };
const SMALL = ["--steps", "2", "--subvectors", "2", "--bits", "3", "--iterations", "1"];

Deno.test("walkthrough: replays, verifies, writes JSON, and a pipe gets no control characters", () =>
  withFolder(async (folder) => {
    const { code, stdout, stderr } = await script("experiments/walkthrough.ts", [
      ...SMALL,
      "--heavy",
      "50",
      "--json",
      `${folder}/w.json`,
    ]);
    assertEquals(code, 0, stderr);
    assert(!stdout.includes("\x1b") && !stderr.includes("\r"));
    assert(stdout.split("\n").every((line) => line.length <= 100), "tables fit 100 columns");
    const report = JSON.parse(await Deno.readTextFile(`${folder}/w.json`));
    const expected = PIPELINES.filter((pipeline) => hasGpu || pipeline.runsOn === "cpu").map(({ id }) => id);
    assertEquals(report.rows.map((row: { id: string }) => row.id), expected);
    for (const row of report.rows) {
      assertEquals(row.verified, true);
      assert(row.wallUs.median > 0 && row.wallUs.count === 2);
      const { kernels } = PIPELINES.find(({ id }) => id === row.id)!;
      // From e05 on some kernels find no work in most steps, and one that codes prompts does so in all of them.
      const each = kernels.filter(({ name }) => name !== "assign_many").length;
      assertEquals(row.dispatches, { e05: 3, e06: 2, e07: 2, e07h: 2, e08: 2 }[row.id as string] ?? each);
      if (kernels.length > 0) {
        assert(row.gpuUs.median > 0);
        assert(
          Math.abs(row.operations.reduce((sum: number, { share }: { share: number }) => sum + share, 0) - 1) < 1e-9,
        );
      }
    }
    assert(report.quality.listMass > report.quality.windowMass);
    assert(report.refined.refine === 4 && report.refined.quality.recovered >= report.quality.recovered);
    assertStringIncludes(stdout, "re-ranked by exact scores, R 4");
    assertStringIncludes(stdout, "smollm2_layer3, 9 query heads on 3 KV, D 64; 8,190 tokens, then 2 steps");
    for (const field of ["adapter", "driver", "deno", "commit", "input", "seed"]) {
      assert(field in report.provenance, field);
    }
  }));

Deno.test("walkthrough without a GPU runs the reference and says so in its first line", async () => {
  const { code, stdout } = await script("experiments/walkthrough.ts", SMALL, NO_GPU);
  assertEquals(code, 0);
  assert(stdout.startsWith("No GPU: running the CPU reference only."), stdout);
  assertStringIncludes(stdout, "e00 reference");
  assert(!stdout.includes("e01"));
});

Deno.test("walkthrough: bad flags exit with 2, bad inputs with 1, each with one clear error", () =>
  withFolder(async (folder) => {
    const cases: [string[], number, string][] = [
      [["--fast"], 2, "Cannot understand --fast as the flags are --capture"],
      [["extra"], 2, 'Cannot understand "extra"'],
      [["--steps", "x"], 2, "--steps x as it must be an integer 1 to"],
      [["--steps", "0"], 2, "--steps 0 as it must be"],
      [["--steps", "65"], 2, "--steps 65 as it must be an integer 1 to 64"],
      [["--heavy", "101%"], 2, "a share is at most 100%"],
      [["--bits", "9"], 2, "--bits 9 as it must be an integer 1 to 8"],
      [["--metric", "cosine"], 2, "--metric cosine"],
      [["--json", `${folder}/none/x.json`], 2, "Cannot write"],
      [["--capture"], 2, "--capture as it needs a value"],
      [["--subvectors", "7"], 1, "D must be divisible by M: headWidth (D) is 64, subvectors (M) is 7"],
      [["--capture", `${folder}/none`], 1, "none"],
      [["--capture", fileURLToPath(BUNDLED_GOLDEN)], 1, "it has no tensor query"],
      [["--capture", `${ROOT}README.md`], 1, "as safetensors: its header claims"],
    ];
    await Promise.all(cases.map(async ([args, expected, message]) => {
      const { code, stderr } = await script("experiments/walkthrough.ts", args, NO_GPU);
      assertEquals([args, code], [args, expected]);
      assertStringIncludes(stderr, message);
      assert(!stderr.includes("    at "), "no stack trace");
    }));
    const { code, stdout } = await script("experiments/walkthrough.ts", ["--help"], NO_GPU);
    assertEquals(code, 0);
    assertStringIncludes(stdout, "--capture FILE");
  }));

Deno.test("verify: the bundled file passes, a file that lies fails with exit code 1", () =>
  withFolder(async (folder) => {
    const runs = 9 * PIPELINES.filter((pipeline) => hasGpu || pipeline.runsOn === "cpu").length;
    const good = await script("experiments/verify.ts", ["--json", `${folder}/v.json`]);
    assertEquals(good.code, 0, good.stderr);
    assertStringIncludes(good.stdout, `${runs} passed, 0 failed`);
    assertEquals(JSON.parse(await Deno.readTextFile(`${folder}/v.json`)).rows.length, runs);

    const bytes = await Deno.readFile(fileURLToPath(BUNDLED_GOLDEN));
    using file = await Safetensors.open(fileURLToPath(BUNDLED_GOLDEN));
    new DataView(bytes.buffer).setInt32(file.info("decode_gqa/sparse_list").offset + 4 * 20, 400, true);
    await Deno.writeFile(`${folder}/lie.safetensors`, bytes);
    const bad = await script("experiments/verify.ts", [`${folder}/lie.safetensors`], NO_GPU);
    assertEquals(bad.code, 1);
    assertStringIncludes(bad.stdout, "decode_gqa      e00  FAILED");
    assertStringIncludes(bad.stdout, "16 passed, 2 failed");
    const none = await script("experiments/verify.ts", [`${ROOT}README.md`], NO_GPU);
    assertEquals(none.code, 1);
    assertStringIncludes(none.stderr, "as safetensors");
  }));

Deno.test("tests without a GPU fail with the install hint, unless GPU_OPTIONAL=1", async () => {
  const run = async (env: Record<string, string>) => {
    const args = ["test", "-A", "--no-check", `${ROOT}tests/kernels/wgsl_test.ts`];
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args,
      env: { ...NO_GPU, ...env },
      cwd: ROOT,
    }).output();
    return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
  };
  const strict = await run({ GPU_OPTIONAL: "0" });
  assert(strict.code !== 0);
  assertStringIncludes(strict.text, "Cannot find a WebGPU adapter");
  assertStringIncludes(strict.text, "GPU_OPTIONAL=1");
  assertEquals((await run({ GPU_OPTIONAL: "1" })).code, 0);
});

Deno.test("crossing: between the rows where the gap changes its sign, or nowhere", () => {
  const xs = [1000, 2000, 4000];
  assertEquals(crossing(xs, [5, 5, 5], [1, 2, 4]), undefined);
  assertEquals(crossing(xs, [1, 1, 1], [2, 2, 2]), undefined);
  assertEquals(Math.round(crossing(xs, [4, 4, 4], [2, 4, 8])!), 2000);
  assertEquals(Math.round(crossing(xs, [4, 4, 4], [1, 2, 8])!), Math.round(2000 * Math.SQRT2));
});

gpuTest(
  "crossover: dense beside sparse attention, in a table and as rows; what cannot be is refused",
  () =>
    withFolder(async (folder) => {
      const path = `${folder}/c.json`;
      const shape = [
        "--heads",
        "2",
        "--head-width",
        "16",
        "--sink",
        "8",
        "--window",
        "16",
        "--heavy",
        "32",
        "--bits",
        "4",
      ];
      const args = [...shape, "--tokens", "600,1200", "--samples", "45", "--json", path]; // more than one submit
      const { code, stdout, stderr } = await script("experiments/crossover.ts", args);
      assertEquals(code, 0, stderr);
      assert(stdout.split("\n").every((line) => line.length <= 100), stdout);
      const { rows, steps, provenance } = JSON.parse(await Deno.readTextFile(path));
      assertEquals([rows.map(({ tokens }: { tokens: number }) => tokens), steps], [[600, 1200], 1000]);
      for (const row of rows) {
        assert([row.denseUs, row.indexUs, row.bothUs, row.trainingMs].every((time) => time > 0), JSON.stringify(row));
        assert(row.sparseUs > 0 && row.sparseUs !== row.bothUs - row.indexUs, "attention is measured, not subtracted");
        assert(Math.abs(row.withTrainingUs - row.bothUs - row.trainingMs) < 1e-6, "1,000 steps share a training");
      }
      assert(provenance.adapter.length > 0);
      for (const wrong of [["--tokens", "50"], ["--head-width", "12"], ["--heavy", "5%"], ["--steps", "0"]]) {
        const refused = await script("experiments/crossover.ts", [...shape, ...wrong]);
        assertEquals(refused.code, 2, refused.stderr);
        assertStringIncludes(refused.stderr, "error: Cannot");
      }
    }),
);

Deno.test("safetensors: repeated names, dtypes of Object.prototype and metadata that is no object of strings are refused", () => {
  const raw = (header: string) => {
    const text = new TextEncoder().encode(header);
    const file = new Uint8Array(8 + text.length + 8);
    new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
    file.set(text, 8);
    return () => readHeader("a file", file.subarray(8, 8 + text.length), file.length);
  };
  const entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}';
  assertEquals(raw(`{"a":${entry}, "b": {"dtype":"U8","shape":[],"data_offsets":[4,5]}}`)().tensors.size, 2);
  for (
    const [header, why] of [
      [`{"a":${entry},"a":${entry}}`, "names a twice"],
      [`{"a":${entry},"\\u0061" :${entry}}`, "names a twice"],
      [`{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}`, "names shape twice"],
      [`{"__metadata__":{},"a":${entry},"__metadata__":{}}`, "names __metadata__ twice"],
      [`{"a":{"dtype":"constructor","shape":[1],"data_offsets":[0,4]}}`, "dtype"],
      [`{"a":{"dtype":"toString","shape":[0],"data_offsets":[0,0]}}`, "dtype"],
      [`{"__metadata__":[],"a":${entry}}`, "not an object of strings"],
      [`{"__metadata__":{"format":1},"a":${entry}}`, "not an object of strings"],
      [`{"a\\u001b]0;x\\u0007":{"dtype":"x"}}`, "a\\u001b]0;x\\u0007"],
    ]
  ) {
    const error = assertThrows(raw(header), SafetensorsError);
    assert(error.message.includes(why) && !error.message.includes("\u001b"), `${header}: ${error.message}`);
  }
});
