// The step as an ONNX graph on ONNX Runtime:
// deno run -A ort.ts <folder> [--steps 200] [--lib web|node] [--ep webgpu|cpu|wasm] [--capture 1]
import type * as Ort from "onnxruntime-common";
import config from "./deno.json" with { type: "json" };
import { args, candidates, captureDevice, type Case, readCase, runPeer, time, writeOutputs } from "./common.ts";
import { FLOAT, Graph, INT32 } from "./onnx.ts";

const LOCAL_SORT = 2048; // the WebGPU TopK sorts rows of at most this length in one workgroup

/** Blocks of equal length, few enough for the second stage and short enough for the first, if there are such. */
function split(count: number, heavy: number): { blocks: number; padded: number } {
  for (let blocks = Math.ceil(count / LOCAL_SORT); blocks * heavy <= LOCAL_SORT; blocks++) {
    if (count % blocks === 0 && count / blocks >= heavy) return { blocks, padded: count };
  }
  const blocks = Math.ceil(count / LOCAL_SORT);
  return { blocks, padded: blocks * LOCAL_SORT };
}

function* range(from: number, to: number, times = 1): Generator<number> {
  for (let r = 0; r < times; r++) for (let i = from; i < to; i++) yield i;
}

function buildModel(c: Case, lo: number, count: number, capture: boolean): Uint8Array<ArrayBuffer> {
  const { heads: H, headWidth: D, subvectors: M, centroids: C, tokens: N, sink: S, window: W, heavy: K } = c;
  const d = D / M, { blocks, padded } = split(count, K), length = padded / blocks;
  const g = new Graph();
  const query = g.input("query", FLOAT, [H, D]), centroids = g.input("centroids", FLOAT, [H, M, C, d]);
  const codes = g.input("codes", INT32, [H * M, count]), key = g.input("key", FLOAT, [H, D]);

  // Code of the new key; ArgMin takes the first of equals.
  const off = g.op("Sub", [g.reshape(key, [H, M, 1, d]), centroids]);
  const distance = g.op("ReduceSum", [g.op("Mul", [off, off]), g.int64([3])], { keepdims: 0 });
  const nearest = g.op("ArgMin", [distance], { axis: 2, keepdims: 0 });
  g.op("Gather", [g.int32(range(0, C), [C]), nearest], {}, "newCodes"); // see local below
  g.output("newCodes", INT32, [H, M]);

  // score[h,i] = sum_m table[h,m,code]
  const table = g.op("MatMul", [g.reshape(centroids, [H, M, C, d]), g.reshape(query, [H, M, d, 1])]);
  const parts = g.op("GatherElements", [g.reshape(table, [H * M, C]), codes], { axis: 1 });
  let score = g.op("ReduceSum", [g.reshape(parts, [H, M, count]), g.int64([1])], { keepdims: 0 });
  if (padded > count) {
    score = g.op("Pad", [score, g.int64([0, 0, 0, padded - count]), g.floats([-3e38], [])], { mode: "constant" });
  }

  // The best K of each block, then of those; TopK puts the lower index of equals first. Tokens are exact as floats,
  // the only type that TopK sorts on WebGPU.
  const best = { axis: -1, largest: 1, sorted: 1 };
  const k = g.int64([K]);
  const [top, at] = g.node("TopK", [g.reshape(score, [H, blocks, length]), k], best, 2);
  const starts = g.floats(Array.from({ length: blocks }, (_, b) => lo + b * length), [blocks, 1]);
  // A Gather from 0..length-1 turns int64 into float; a Cast of int64 would leave the GPU.
  const local = g.op("Gather", [g.floats(range(0, length), [length]), at]);
  const tokens = g.reshape(g.op("Add", [local, starts]), [H, blocks * K]);
  const [, rank] = g.node("TopK", [g.reshape(top, [H, blocks * K]), k], best, 2);
  const heavy = g.op("GatherElements", [tokens, rank], { axis: 1 });
  const [ascending] = g.node("TopK", [heavy, k], { ...best, largest: 0 }, 2);
  const chosen = g.op("Cast", [ascending], { to: INT32 });
  const [first, last] = [g.int32(range(0, S, H), [H, S]), g.int32(range(N - W, N, H), [H, W])];
  g.op("Concat", [first, chosen, last], { axis: 1 }, "indices");
  g.output("indices", INT32, [H, S + K + W]);

  // Sink and window weights are constant.
  const fixed = Float32Array.from({ length: H * N }, (_, i) => i % N < S || i % N >= N - W ? 1 : 0);
  const ones = g.floats(new Float32Array(H * K).fill(1), [H, K]);
  let base = g.floats(fixed, [H, N]);
  if (capture) { // a replay leaves out the copy that ScatterElements makes of a constant: give it a computed tensor
    const some = g.op("ReduceMax", [ascending], { axes: [1] });
    base = g.op("Add", [base, g.op("Sub", [some, some])]);
  }
  g.op("ScatterElements", [base, chosen, ones], { axis: 1 }, "weights");
  g.output("weights", FLOAT, [H, N]);
  return g.model(17);
}

/** A model that copies its inputs: moves tensors between CPU and GPU memory, depending on where its outputs go. */
function copyModel(tensors: Record<string, Ort.Tensor>): Uint8Array<ArrayBuffer> {
  const g = new Graph();
  for (const [name, t] of Object.entries(tensors)) {
    const type = t.type === "float32" ? FLOAT : INT32;
    g.output(g.op("Identity", [g.input(`${name}_in`, type, t.dims)], {}, name), type, t.dims);
  }
  return g.model(17);
}

type Tensors = Record<string, Ort.Tensor>;

const { dir, steps, options } = args();
const lib = options.get("lib") ?? "web", ep = options.get("ep") ?? "webgpu", capture = options.has("capture");
const peer = `ort-${lib}-${ep}${capture ? "-capture" : ""}`;

await runPeer(peer, async (at) => {
  const inp = readCase(dir);
  const { heads: H, headWidth: D, subvectors: M, centroids: C, heavy: K } = inp.c;
  const { lo, hi, codes } = candidates(inp);
  const gpu = ep === "webgpu";

  at("library load");
  const kept = lib === "web" && gpu ? captureDevice() : {};
  const ort: typeof Ort = lib === "web"
    ? await import("onnxruntime-web/webgpu")
    : (await import("onnxruntime-node")).default;
  if (lib === "web") ort.env.wasm.numThreads = 1; // no worker threads: their script is not found in Deno
  if (options.has("log")) ort.env.logLevel = "verbose";

  at("session");
  const executionProviders = [gpu ? { name: "webgpu", validationMode: "disabled" } as const : ep];
  const logSeverityLevel = options.has("log") ? 0 : 3;
  const session = await ort.InferenceSession.create(buildModel(inp.c, lo, hi - lo, capture), {
    executionProviders,
    preferredOutputLocation: gpu ? "gpu-buffer" : "cpu",
    enableGraphCapture: capture,
    logSeverityLevel,
  });
  // onnxruntime-node neither makes GPU tensors nor reads them (getData ends the process), and with graph capture
  // onnxruntime-web loses GPUBuffers given from outside after the first run. Copying by a session works in all cases.
  const copier = async (tensors: Tensors, preferredOutputLocation: "cpu" | "gpu-buffer") => {
    const copy = await ort.InferenceSession.create(copyModel(tensors), {
      executionProviders,
      preferredOutputLocation,
      logSeverityLevel,
    });
    return (from: Tensors) =>
      copy.run(Object.fromEntries(Object.keys(tensors).map((name) => [`${name}_in`, from[name]]))) as Promise<Tensors>;
  };

  at("inputs");
  let feeds: Tensors = {
    query: new ort.Tensor("float32", inp.query, [H, D]),
    centroids: new ort.Tensor("float32", inp.centroids, [H, M, C, D / M]),
    codes: new ort.Tensor("int32", Int32Array.from(codes), [H * M, hi - lo]),
    key: new ort.Tensor("float32", inp.newKey, [H, D]),
  };
  if (gpu) feeds = await (await copier(feeds, "gpu-buffer"))(feeds);

  at("step");
  const run = () => session.run(feeds) as Promise<Tensors>;
  let held: Tensors = await run();
  const queue = async () => {
    const next = await run();
    if (!capture) { // a captured graph has its outputs bound once
      for (const t of Object.values(held)) t.dispose();
    }
    held = next;
  };
  for (let i = 0; i < 2; i++) await queue(); // with graph capture the runs after the first are replays
  const places = (tensors: Tensors) => Object.entries(tensors).map(([name, t]) => `${name}:${t.location}`).join(" ");
  const place = `inputs ${places(feeds)}; outputs ${places(held)}`;

  at("outputs");
  const out = gpu ? await (await copier(held, "cpu"))(held) : held;
  writeOutputs(dir, peer, {
    indices: out.indices.data as Int32Array,
    codes: out.newCodes.data as Int32Array,
    weights: out.weights.data as Float32Array,
  });

  at("timing");
  // Web: in Deno the call of onSubmittedWorkDone itself blocks until the queue is idle; its promise resolves late.
  // Node: the device is the library's own; copying 64 numbers to the CPU waits for all that was queued before.
  const readCodes = gpu && !kept.device ? await copier({ newCodes: held.newCodes }, "cpu") : undefined;
  const fence = () => readCodes ? readCodes(held) : void kept.device?.queue.onSubmittedWorkDone();
  const timing = await time(steps, queue, fence);
  const pkg = `onnxruntime-${lib}` as "onnxruntime-web";
  return {
    version: config.imports[pkg].split("@").at(-1),
    device: lib === "web" && gpu ? kept.info?.description : `${lib} ${ep}`,
    ...timing,
    notes: `two-stage TopK (${split(hi - lo, K).blocks} blocks), int32 codes; ${place}; ` +
      "the new code is computed but not appended",
  };
});
