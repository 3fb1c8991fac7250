import { assert, assertEquals, assertThrows } from "@std/assert";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { composeWgsl } from "../../kernels/gpu/wgsl.ts";
import { assign } from "../../kernels/quantize/assign.ts";
import { concat } from "../../kernels/list/concat.ts";
import { attendMerge, attendParts } from "../../kernels/attend/attend.ts";
import { gather } from "../../kernels/score/gather.ts";
import { poolMax, poolSoftmax, sumQueries } from "../../kernels/pool/pool.ts";
import { refineList } from "../../kernels/refine/refine_list.ts";
import { mask } from "../../kernels/topk/mask.ts";
import { mostStart, PART, STATE, STATE_WORDS, TILE } from "../../kernels/train/train.ts";
import { trainingKernels } from "../../kernels/train/training.ts";
import { widenKeys } from "../../kernels/train/widen_keys.ts";
import { MAX_ROWS, PARAM_FIELDS, PARAMS_BYTES, ROW_FIELDS } from "../../kernels/shape.ts";
import { MOST_MEMBERS } from "../../kernels/topk_list/merge_list.ts";
import { cellList, MOST_MEMBERS as MOST_ENTRIES } from "../../kernels/score_topk_list/cell_list.ts";
import { cellStep } from "../../kernels/step/cell_step.ts";
import { WGSL_FILES } from "../../kernels/wgsl_files.ts";
import { resolveConfig } from "../../indexer/config.ts";
import { DEFAULT_DEVICE } from "../../indexer/pipelines/plan.ts";
import { PIPELINES } from "../../indexer/pipelines/mod.ts";
import { generate } from "../../tools/generate_wgsl.ts";
import { ODD_SHAPE } from "../support.ts";

const ATTENTION: Kernel[] = (["f32", "f16"] as const).flatMap((elements) =>
  (["listed", "all"] as const).flatMap((tokens) =>
    [false, true].flatMap((weights) => {
      const options = { elements, tokens, weights, invocations: 64, mostRounds: 1, workgroups: 1, subgroupSize: 0 };
      return [attendParts(options), attendMerge(options)];
    })
  )
);
const TRAINING: Kernel[] = (["f32", "f16"] as const).flatMap((elements) => {
  const { start, iteration } = trainingKernels({ elements, tolerance: 0, startInvocations: 64 });
  return [...start, ...iteration];
});
const REFINING: Kernel[] = (["f32", "f16"] as const).flatMap((elements) =>
  [false, true].flatMap((weights) => {
    const cells = { reRanked: { elements, mostShort: 20 }, mostHeavy: 5, weights, invocations: 256, subgroupSize: 0 };
    return [
      refineList({ elements, weights, mostShort: 20, invocations: 64, subgroupSize: 0 }),
      cellList(cells),
      cellStep(cells),
    ];
  })
);
const OTHERS: Kernel[] = [...ATTENTION, ...TRAINING, ...REFINING, sumQueries, poolMax, poolSoftmax, widenKeys];
const KERNELS: Kernel[] = [
  ...new Set(PIPELINES.flatMap((pipeline) => pipeline.kernels)),
  ...OTHERS,
];
const FILES = {
  "a.wgsl": "enable f16;\nfn a() {}\n",
  "b.wgsl": "fn b() {}\nenable f16;\nenable subgroups;\nfn c() {}",
};

Deno.test("composeWgsl refuses unknown and repeated parts", () => {
  assertThrows(
    () => composeWgsl(["a.wgsl", "c.wgsl"], { files: FILES }),
    RangeError,
    "c.wgsl is not one of a.wgsl, b.wgsl",
  );
  assertThrows(() => composeWgsl(["a.wgsl", "a.wgsl"], { files: FILES }), RangeError, "a.wgsl is listed twice");
});

Deno.test("composeWgsl hoists enable lines once and maps lines back to files", () => {
  const { code, locate } = composeWgsl(["a.wgsl", "b.wgsl"], { files: FILES });
  const lines = code.split("\n");
  assertEquals(lines.slice(0, 2), ["enable f16;", "enable subgroups;"]);
  assertEquals(lines.filter((line) => line.includes("enable")).length, 2);
  const at = (text: string) => locate(lines.indexOf(text) + 1);
  assertEquals(at("fn a() {}"), { file: "a.wgsl", line: 2 });
  assertEquals(at("fn b() {}"), { file: "b.wgsl", line: 1 });
  assertEquals(at("fn c() {}"), { file: "b.wgsl", line: 4 });
  assertEquals(at("enable subgroups;"), { file: "b.wgsl", line: 3 });
});

Deno.test("composeWgsl leaves out the enable lines that a compiler refuses", () => {
  const { code } = composeWgsl(["b.wgsl"], { files: FILES, omitEnables: ["subgroups"] });
  assert(!code.includes("subgroups"));
  assert(code.startsWith("enable f16;\n"));
});

Deno.test("kernels/wgsl_files.ts is what the .wgsl files generate", async () => {
  assertEquals(await Deno.readTextFile(new URL("../../kernels/wgsl_files.ts", import.meta.url)), await generate());
});

const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** Members of a WGSL struct, in order. */
function members(source: string, struct: string): string[] {
  const body = new RegExp(`struct ${struct} \\{([^}]*)\\}`).exec(source)![1];
  return [...body.matchAll(/^\s*(?:@\w+\([^)]*\)\s*)?(\w+):/gm)].map((match) => match[1]);
}

Deno.test("Params and Row have the host's fields in the host's order", () => {
  const source = WGSL_FILES["layer/layer.wgsl"];
  assertEquals(members(source, "Params"), [...PARAM_FIELDS.map(snake), "rows"]);
  assertEquals(members(source, "Row"), ROW_FIELDS.map(snake));
  assertEquals(source.match(/const MAX_ROWS = (\d+)u;/)![1], String(MAX_ROWS));
  assertEquals(PARAMS_BYTES, 64 + MAX_ROWS * 32);
});

Deno.test("constants that WGSL and host share are equal", () => {
  for (
    const [file, most] of [["topk_list/make_list.wgsl", MOST_MEMBERS], [
      "score_topk_list/make_cell_list.wgsl",
      MOST_ENTRIES,
    ]]
  ) {
    assertEquals(WGSL_FILES[file].match(/const MOST_MEMBERS = (\d+)u;/)![1], String(most));
  }
});

Deno.test("constants of the training that WGSL and host share are equal", () => {
  const words = (text: string) => text.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
  const source = WGSL_FILES["train/train.wgsl"];
  for (const [name, value] of Object.entries({ ...STATE, words: STATE_WORDS })) {
    assertEquals(source.match(`const STATE_${words(name)} = (\\d+)u;`)![1], String(value), name);
  }
  assertEquals(WGSL_FILES["train/tile_stats.wgsl"].match(/const TILE = (\d+)u;/)![1], String(TILE));
  for (const file of ["sum_clusters", "fill_empty"]) {
    assert(WGSL_FILES[`train/${file}.wgsl`].includes(`${TILE - 1}u) / ${TILE}u`));
  }
  assertEquals(PART % TILE, 0);
  assertEquals([mostStart({ ...ODD_SHAPE, centroids: 2 }), mostStart({ ...ODD_SHAPE, centroids: 256 })], [1024, 4096]);
});

Deno.test("every WGSL file is a part of some kernel", () => {
  const used = new Set<string>(OTHERS.flatMap((kernel) => kernel.wgsl));
  const config = resolveConfig({ heads: 2, headWidth: 64 });
  for (const pipeline of PIPELINES) {
    for (const weights of [false, true]) {
      for (const subgroupSize of [0, 8, 32]) {
        for (const bytes of [0, 1024, 49152]) {
          const limits = {
            ...DEFAULT_DEVICE.limits,
            maxComputeWorkgroupStorageSize: bytes,
            maxStorageBuffersPerShaderStage: subgroupSize + 8,
          };
          const features = new Set(["shader-f16"]);
          const device = { ...DEFAULT_DEVICE, subgroupSize, limits, features };
          for (const kernel of pipeline.kernelsFor({ config, device, weights })) {
            kernel.wgsl.forEach((part) => used.add(part));
          }
        }
      }
    }
  }
  assertEquals(Object.keys(WGSL_FILES).filter((file) => !used.has(file)), []);
});

for (const kernel of KERNELS) {
  Deno.test(`${kernel.name}: bindings, overrides and entry point match the host's lists`, () => {
    const own = kernel.wgsl[kernel.wgsl.length - 1];
    assert(own.endsWith(`/${kernel.name}.wgsl`), `${own} is named after the kernel`);
    const { code } = composeWgsl(kernel.wgsl);
    const bindings = [...code.matchAll(/@binding\((\d+)\) var<storage, (\w+)> (\w+): array<(?:atomic<)?(\w+)>+;/g)].map(
      (match) => ({
        binding: Number(match[1]),
        access: match[2],
        name: match[3],
        type: match[4].replace(/^vec4([fu])$/, (_, kind) => kind === "f" ? "f32" : "u32"),
      }),
    );
    bindings.sort((a, b) => a.binding - b.binding); // a part may bring a binding of its own
    const expected = kernel.buffers.map((use, ix) => ({
      binding: use.binding ?? ix + 1,
      access: use.access,
      name: snake(use.name),
      type: use.type,
    }));
    assertEquals(bindings, expected);
    const entries = [...code.matchAll(/@compute[^{]*?fn (\w+)\(/g)].map((match) => match[1]);
    assertEquals(entries, [kernel.name]);
    const declared = [...code.matchAll(/^override (\w+): \w+;/gm)].map((match) => match[1]).sort();
    assertEquals(Object.keys(kernel.plan(ODD_SHAPE).overrides).sort(), declared);
    const workgroupArrays = [...code.matchAll(/var<workgroup>/g)].length;
    assertEquals(kernel.plan(ODD_SHAPE).workgroupBytes > 0, workgroupArrays > 0);
  });
}

Deno.test("plans of zero work dispatch nothing", () => {
  const step = {
    nCoded: 0,
    nNew: 0,
    firstNewKey: 0,
    nNewKeys: 0,
    initOffset: 0,
    codedStride: 8,
    heavyStride: 8,
    listStride: 8,
    weightStride: 8,
    rows: [],
  };
  for (const kernel of KERNELS) assertEquals(kernel.work(ODD_SHAPE, step).workgroups, 0, kernel.name);
});

Deno.test("plans count the bytes that their formulas move", () => {
  const row = { nTokens: 100, nSink: 4, nHeavy: 8, windowBegin: 90, candBegin: 0, candEnd: 86, listLength: 22 };
  const step = {
    nCoded: 96,
    nNew: 1,
    firstNewKey: 0,
    nNewKeys: 1,
    initOffset: 4,
    codedStride: 128,
    heavyStride: 8,
    listStride: 32,
    weightStride: 128,
    rows: [row],
  };
  const lists = ODD_SHAPE.batch * ODD_SHAPE.heads;
  assertEquals(gather.work(ODD_SHAPE, step).bytesMoved, lists * 5 * 96 * 12);
  assertEquals(mask.work(ODD_SHAPE, step).bytesMoved, lists * 96 * 8);
  assertEquals(concat.work(ODD_SHAPE, step).workgroups, Math.ceil(lists * 32 / 256));
  assertEquals(assign.work(ODD_SHAPE, step).workgroups, 2 * 3 * 5);
});
