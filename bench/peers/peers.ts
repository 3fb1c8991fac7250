/**
 * The step as others would write it, beside ours, on one device in one run: `deno task bench peers`. On a host without
 * the tasks: `deno run -A bench/peers/peers.ts`. Every implementation gets the same inputs as files, leaves what it
 * selected as files, and is checked against the f64 oracle here. What cannot run is named with its reason.
 *
 * - PyTorch and Triton: `torch_triton.py`, where `--python` has torch and triton, eager and under CUDA-graph replay.
 * - JavaScript: `js/`, a manifest of its own, so that the project depends on none of it. For a host without a network:
 *   `bench/peers/js/pack.sh FOLDER` packs what runs on Linux x64, and `--packages FOLDER` takes it from there.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { checkCodes, checkSelection } from "../../indexer/checks.ts";
import { resolveConfig } from "../../indexer/config.ts";
import { CPU_PIPELINE, DEFAULT_PIPELINE } from "../../indexer/pipelines/mod.ts";
import type { Gpu } from "../../kernels/gpu/device.ts";
import { GpuUnavailableError } from "../../kernels/gpu/errors.ts";
import {
  bold,
  type Command,
  openGpu,
  prepareOutput,
  Progress,
  runCommand,
  UsageError,
  verdict,
} from "../../experiments/cli.ts";
import { gaussian } from "../../experiments/inputs/synthetic.ts";
import {
  configOf,
  drawState,
  openIndex,
  SEED_WORKLOAD,
  type Workload,
  type WorkloadState,
} from "../../experiments/inputs/workload.ts";
import { writeReport } from "../../experiments/json_rows.ts";
import { Bench } from "../../experiments/measure.ts";
import { type Provenance, provenance } from "../../experiments/provenance.ts";
import { summarize } from "../../experiments/stats.ts";
import { runJson } from "./run_json.ts";

/** What was measured of one implementation, µs; null where it does not apply. */
export interface PeerRow {
  /** N. */
  readonly tokens: number;
  /** The implementation. */
  readonly peer: string;
  /** Of its libraries. */
  readonly version: string;
  /** Where it ran, as it says. */
  readonly device: string;
  /** GPU time of a step: ours by timestamps of its pass, CUDA's by events around one graph of many steps. */
  readonly gpuUs: number | null;
  /** The same with so many copies of the state in turn that no cache holds them. */
  readonly coldUs: number | null;
  /** Submit to idle, the cost of a submit included. */
  readonly wallUs: number | null;
  /** Submit to idle under CUDA-graph replay. */
  readonly replayUs: number | null;
  /** Wall time per step of many, the host running ahead. */
  readonly amortizedUs: number | null;
  /** Kernels, copies and fills of a step. */
  readonly dispatches: number | null;
  /** "", or what is wrong with what it selected. */
  readonly problem: string;
  /** Tokens that differ from the oracle's within rounding, or by another choice among ties. */
  readonly exchanges: number;
  /** Why it did not run; "" if it did. */
  readonly failed: string;
  /** What it does otherwise. */
  readonly notes: string;
}

/** What a run writes. */
export interface PeerReport {
  readonly rows: readonly PeerRow[];
  readonly seed: number;
  readonly provenance: Provenance;
}

const COMMAND: Command = {
  name: "bench peers",
  summary: "Measures the step in PyTorch, Triton, jax-js and ONNX Runtime beside ours, each checked, with ratios.",
  flags: {
    tokens: { value: "N,…", help: "numbers of tokens", default: "32000" },
    python: { value: "FILE", help: "a Python that has torch and triton", default: "python3" },
    packages: { value: "FOLDER", help: "the JavaScript peers and their packages (default: bench/peers/js)" },
    only: { value: "NAMES", help: "only peers whose name contains one of these, with commas: triton,jax" },
    steps: { value: "N", help: "steps per sample of a JavaScript peer (default 200, 3 on a software rasterizer)" },
    json: { value: "FILE", help: "write the results" },
  },
};

const SEED = 1;
const JS = fileURLToPath(new URL("js/", import.meta.url));
const PYTHON = fileURLToPath(new URL("torch_triton.py", import.meta.url));

/** JavaScript peers: a script and its options; the name is the one that the script gives itself. */
const JS_PEERS: readonly (readonly [name: string, script: string, options: readonly string[]])[] = [
  ["jax-js", "jax_js.ts", []],
  ["ort-web-webgpu", "ort.ts", ["--lib", "web", "--ep", "webgpu"]],
  ["ort-web-webgpu-capture", "ort.ts", ["--lib", "web", "--ep", "webgpu", "--capture", "1"]],
  ["ort-node-webgpu", "ort.ts", ["--lib", "node", "--ep", "webgpu"]],
  ["ort-node-cpu", "ort.ts", ["--lib", "node", "--ep", "cpu"]],
];

/** One step's inputs, in memory and as files for the peers. */
interface PeerCase {
  readonly folder: string;
  /** N − 1 tokens are cached before the step. */
  readonly workload: Workload;
  readonly state: WorkloadState;
  readonly query: Float32Array;
  readonly newKeys: Float32Array;
}

async function writeCase(tokens: number): Promise<PeerCase> {
  const workload: Workload = { ...SEED_WORKLOAD, tokens: tokens - 1 };
  const state = drawState(workload, SEED);
  const { heads, headWidth, subvectors, bits, sinkSize, windowSize, heavySize } = workload;
  const query = gaussian(heads * headWidth, 5), newKeys = gaussian(heads * headWidth, 6);
  const folder = await Deno.makeTempDir({ prefix: "peers" });
  const bytes = (array: Float32Array | Uint8Array) =>
    new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
  await Deno.writeTextFile(
    `${folder}/case.json`,
    JSON.stringify({
      heads,
      headWidth,
      subvectors,
      centroids: 2 ** bits,
      tokens,
      coded: tokens - 1 - sinkSize,
      initOffset: sinkSize,
      sink: sinkSize,
      window: windowSize,
      heavy: heavySize,
    }),
  );
  await Deno.writeFile(`${folder}/query.f32`, bytes(query));
  await Deno.writeFile(`${folder}/centroids.f32`, bytes(state.centroids));
  await Deno.writeFile(`${folder}/codes.u8`, bytes(state.codes));
  await Deno.writeFile(`${folder}/new_keys.f32`, bytes(newKeys));
  return { folder, workload, state, query, newKeys };
}

/** Checks a step's codes, lists and weights. */
function check(
  { workload, state, query, newKeys }: PeerCase,
  indices: Uint32Array,
  newCodes: Uint8Array,
  weights: Float32Array,
): { problem: string; exchanges: number } {
  const config = resolveConfig(configOf(workload)), { shape } = config;
  const tokens = workload.tokens + 1;
  const codebook = { centroids: state.centroids };
  const coded = checkCodes(shape, codebook, newKeys, newCodes);
  const rows = shape.kvHeads * shape.subvectors, before = state.codes.length / rows;
  const codes = new Uint8Array(rows * (before + 1));
  for (let row = 0; row < rows; row++) {
    codes.set(state.codes.subarray(row * before, (row + 1) * before), row * (before + 1));
    codes[row * (before + 1) + before] = newCodes[row];
  }
  const listStride = workload.sinkSize + workload.heavySize + workload.windowSize;
  const listed = checkSelection(
    { config, initOffset: workload.sinkSize, codebook, codes, nTokens: tokens, query, weights: true, anyTie: true },
    {
      indices,
      lengths: new Uint32Array(shape.heads).fill(listStride),
      weights,
      listStride,
      weightStride: tokens,
    },
  );
  return { problem: coded.firstError || listed.firstError, exchanges: coded.exchanges + listed.exchanges };
}

async function checkFiles(one: PeerCase, id: string): Promise<{ problem: string; exchanges: number }> {
  try {
    const read = async (suffix: string) => (await Deno.readFile(`${one.folder}/${id}.${suffix}`)).buffer as ArrayBuffer;
    const indices = new Uint32Array(await read("indices.u32")), codes = new Uint8Array(await read("codes.u8"));
    return check(one, indices, codes, new Float32Array(await read("weights.f32")));
  } catch (error) {
    return { problem: `Cannot read what it selected: ${(error as Error).message}`, exchanges: 0 };
  }
}

const NOTHING = {
  version: "",
  device: "",
  gpuUs: null,
  coldUs: null,
  wallUs: null,
  replayUs: null,
  amortizedUs: null,
  dispatches: null,
  problem: "",
  exchanges: 0,
  failed: "",
  notes: "",
} satisfies Partial<PeerRow>;

async function ours(gpu: Gpu | undefined, one: PeerCase): Promise<PeerRow[]> {
  const { workload, state, query, newKeys } = one, tokens = workload.tokens + 1;
  const rows: PeerRow[] = [];
  for (const pipeline of gpu ? [DEFAULT_PIPELINE, CPU_PIPELINE] : [CPU_PIPELINE]) {
    const about = {
      ...NOTHING,
      tokens,
      peer: `ours, ${pipeline.id} ${pipeline.title}`,
      version: `Deno ${Deno.version.deno}`,
    };
    using index = await openIndex(workload, state, pipeline, gpu?.device, 800);
    const data = await (await index.step(query, newKeys)).read();
    const codes = await index.readCodes();
    const n = codes.length / (workload.kvHeads * workload.subvectors);
    const newCodes = Uint8Array.from({ length: codes.length / n }, (_, row) => codes[(row + 1) * n - 1]);
    const width = workload.sinkSize + workload.heavySize + workload.windowSize;
    const rowsOf = <T extends Uint32Array | Float32Array>(array: T, stride: number, count: number) =>
      Array.from({ length: workload.heads }, (_, list) => array.subarray(list * stride, list * stride + count) as T);
    const indices = new Uint32Array(workload.heads * width), weights = new Float32Array(workload.heads * tokens);
    rowsOf(data.indices, data.listStride, width).forEach((list, ix) => indices.set(list, ix * width));
    rowsOf(data.weights!, data.weightStride, tokens).forEach((list, ix) => weights.set(list, ix * tokens));
    const result = check(one, indices, newCodes, weights);
    if (pipeline.runsOn === "cpu") {
      const times: number[] = [];
      for (let k = 0; k < 600; k++) {
        const begin = performance.now();
        await index.step(query, newKeys);
        if (k >= 400) times.push((performance.now() - begin) * 1e3);
      }
      const wallUs = summarize(times).median;
      rows.push({ ...about, ...result, device: `${navigator.hardwareConcurrency} cores`, wallUs, amortizedUs: wallUs });
      continue;
    }
    const software = gpu!.info.isSoftware;
    using bench = await Bench.open(gpu!, pipeline, workload, state, { steps: 8000 });
    await bench.warmUp(software ? 0 : 500);
    const gpuUs = await bench.gpuSteps(software ? 3 : 300);
    const wall = await bench.wall(software ? 2 : 1000);
    await bench.warmUp(software ? 0 : 500); // the empty submits let the clocks fall
    const amortized = await bench.amortized(software ? 1 : 8, software ? 2 : 32, software ? 1 : 8);
    let coldUs: number | null = null;
    if (!software) {
      const count = Math.ceil(2 ** 27 / (state.codes.length + state.centroids.byteLength));
      using cold = await Bench.open(gpu!, pipeline, workload, state, { count, steps: 400 });
      await cold.warmUp(500); // less leaves the clocks low
      coldUs = summarize(await cold.gpuSteps(300)).median;
    }
    rows.push({
      ...about,
      ...result,
      device: gpu!.info.description,
      gpuUs: gpuUs.length > 0 ? summarize(gpuUs).median : null,
      coldUs,
      wallUs: summarize(wall.step).median,
      amortizedUs: summarize(amortized).median,
      dispatches: bench.dispatches,
      notes: `empty submit ${summarize(wall.empty).median.toFixed(1)} µs`,
    });
  }
  return rows;
}

const micros = (value: unknown) => typeof value === "number" ? value : null;
const text = (value: unknown) => typeof value === "string" ? value : "";

async function python(one: PeerCase, program: string, only: readonly string[]): Promise<PeerRow[]> {
  const tokens = one.workload.tokens + 1;
  const report = await runJson(program, [PYTHON, one.folder, ...(only.length > 0 ? ["--only", only.join(",")] : [])]);
  const version = `torch ${report.torch}, triton ${report.triton}`;
  const rows: PeerRow[] = [];
  for (const row of report.rows as Record<string, unknown>[]) {
    const failed = text(row.error);
    rows.push({
      ...NOTHING,
      tokens,
      peer: text(row.peer),
      version,
      device: text(report.device),
      gpuUs: micros(row.gpuUs),
      coldUs: micros(row.coldUs),
      wallUs: micros(row.wallUs),
      replayUs: micros(row.graphWallUs),
      amortizedUs: micros(row.amortizedUs),
      dispatches: micros(row.dispatches),
      ...(failed ? {} : await checkFiles(one, text(row.id))),
      failed,
      notes: [text(row.notes), row.config ? JSON.stringify(row.config) : ""].filter(Boolean).join("; "),
    });
  }
  return rows;
}

async function javascript(
  one: PeerCase,
  folder: string,
  [name, script, options]: typeof JS_PEERS[number],
  steps: number,
): Promise<PeerRow> {
  const args = ["run", "-A", "--no-check", "--config", `${folder}/deno.json`, `${folder}/${script}`, one.folder];
  const row = await runJson(Deno.execPath(), [...args, ...options, "--steps", String(steps)], folder);
  const failed = text(row.error);
  return {
    ...NOTHING,
    tokens: one.workload.tokens + 1,
    peer: name,
    version: text(row.version),
    device: text(row.device),
    wallUs: micros(row.wallUs),
    amortizedUs: micros(row.amortizedUs),
    ...(failed ? {} : await checkFiles(one, name)),
    failed,
    notes: text(row.notes),
  };
}

const PYTHON_IDS = ["torch-imperative", "triton-fused-score", "triton-lookup-torch-topk", "triton-lookup-fused-topk"];

async function measurePeers(
  one: PeerCase,
  options: { python: string; packages: string; only: readonly string[] | undefined; steps: number; progress: Progress },
): Promise<PeerRow[]> {
  const { only, progress } = options, tokens = one.workload.tokens + 1;
  const wanted = (name: string) => !only || only.some((part) => name.includes(part));
  const failure = (peer: string, error: unknown): PeerRow => ({
    ...NOTHING,
    tokens,
    peer,
    failed: error instanceof Error ? error.message : String(error),
  });
  const rows: PeerRow[] = [];
  const ids = PYTHON_IDS.filter(wanted);
  if (ids.length > 0) {
    progress.phase(`${tokens.toLocaleString("en")} tokens: PyTorch and Triton`);
    rows.push(
      ...await python(one, options.python, only ? ids : []).catch((error) => ids.map((id) => failure(id, error))),
    );
  }
  for (const peer of JS_PEERS.filter(([name]) => wanted(name))) {
    progress.phase(`${tokens.toLocaleString("en")} tokens: ${peer[0]}`);
    rows.push(await javascript(one, options.packages, peer, options.steps).catch((error) => failure(peer[0], error)));
  }
  return rows;
}

const WIDTHS = [-28, 9, 9, 9, 9, 10, 7, 7, 8];

function print(rows: readonly PeerRow[]): void {
  const line = (cells: readonly string[]) =>
    cells.map((cell, ix) => WIDTHS[ix] < 0 ? cell.padEnd(-WIDTHS[ix]) : cell.padStart(WIDTHS[ix])).join("");
  const own = rows[0];
  const number = (value: number | null, digits = 1) =>
    value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 1000 ? digits : 0 });
  const ratio = (theirs: number | null, mine: number | null) =>
    theirs === null || mine === null ? "–" : number(theirs / mine, theirs / mine < 10 ? 2 : 1);
  console.log(`\n${bold(`${own.tokens.toLocaleString("en")} tokens`)}, seed configuration; µs, medians`);
  console.log(bold(line(["implementation", "GPU", "cold", "wall", "replay", "amortized", "×GPU", "×wall", "×amort."])));
  for (const row of rows.filter(({ failed }) => !failed)) {
    const wall = row.replayUs === null ? row.wallUs : Math.min(row.replayUs, row.wallUs ?? Infinity);
    console.log(
      line([
        row.peer,
        number(row.gpuUs),
        number(row.coldUs),
        number(row.wallUs),
        number(row.replayUs),
        number(row.amortizedUs),
        ratio(row.gpuUs, own.gpuUs),
        ratio(wall, own.wallUs),
        ratio(row.amortizedUs, own.amortizedUs),
      ]) + "  " + verdict(row.problem ? "✗ WRONG" : "✓", !row.problem),
    );
  }
  for (const row of rows.filter(({ failed }) => failed)) console.log(`${row.peer}: did not run: ${row.failed}`);
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const tokens = args.text("tokens")!.split(",").map((value) => {
      if (!/^\d+$/.test(value) || Number(value) < 1024 || Number(value) > 2 ** 20) {
        throw new UsageError(`Cannot use --tokens ${value} as each must be an integer 1024 to ${2 ** 20}`);
      }
      return Number(value);
    });
    const names = [...PYTHON_IDS, ...JS_PEERS.map(([name]) => name)];
    for (const part of args.text("only")?.split(",") ?? []) {
      if (!names.some((name) => name.includes(part))) {
        throw new UsageError(`Cannot use --only ${part} as it must be part of a peer's name: ${names.join(", ")}`);
      }
    }
    if (args.text("steps") !== undefined) args.integer("steps", 1, 100_000);
    await prepareOutput(args.text("json"));
    const gpu = await openGpu().catch((error) => {
      if (!(error instanceof GpuUnavailableError)) throw error;
      return undefined;
    });
    const software = gpu?.info.isSoftware ?? true;
    const about = await provenance(gpu?.info);
    console.log(`Adapter: ${about.adapter}${software ? " (software: its times say nothing about a GPU)" : ""}`);
    const progress = new Progress();
    const rows: PeerRow[] = [];
    for (const n of tokens) {
      progress.phase(`${n.toLocaleString("en")} tokens: ours`);
      const one = await writeCase(n);
      try {
        const here = [
          ...await ours(gpu, one),
          ...await measurePeers(one, {
            python: args.text("python")!,
            packages: args.text("packages") ?? JS,
            only: args.text("only")?.split(","),
            steps: args.text("steps") ? args.integer("steps", 1, 100_000) : software ? 3 : 200,
            progress,
          }),
        ];
        progress.done();
        print(here);
        rows.push(...here);
        const path = args.text("json");
        const report: PeerReport = { rows, seed: SEED, provenance: about };
        if (path) await writeReport(path, report);
      } finally {
        await Deno.remove(one.folder, { recursive: true });
      }
    }
    console.log(
      "\n×: theirs over ours; wall takes the better of eager and replay. ✓: codes, lists and weights are right, any choice\n" +
        "among ties allowed. GPU: ours includes its pass, theirs is a graph of many steps, so without any launch.",
    );
    const wrong = rows.filter(({ problem }) => problem !== "");
    for (const row of wrong) console.error(`error: ${row.peer} is wrong at ${row.tokens} tokens: ${row.problem}`);
    return wrong.length === 0 ? 0 : 1;
  });
}
