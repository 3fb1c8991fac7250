/**
 * What the tests share: the GPU or the reason for its absence, seeded shapes and data, and a way to
 * run one kernel on poisoned buffers with guard words behind them.
 *
 * @module
 */

import "../experiments/environment.ts";
import { fileURLToPath } from "node:url";
import { Gpu } from "../kernels/gpu/device.ts";
import { GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { CompiledKernel, type ElementArray, type Kernel } from "../kernels/gpu/kernel.ts";
import { type LayerShape, packParams, PARAMS_BYTES, type RowShape, type StepShape } from "../kernels/shape.ts";
import { Random } from "../indexer/kmeans.ts";
import { encodeSafetensors, type TensorData } from "../indexer/safetensors.ts";

const isOptional = Deno.env.get("GPU_OPTIONAL") === "1";
const found = await Gpu.shared().catch((error: Error) => error);

if (found instanceof Error && !isOptional) {
  throw new GpuUnavailableError(`${found.message}. To run the tests that need no GPU: GPU_OPTIONAL=1 deno task test`);
}

/** Registers a test that needs the GPU. Without one it is ignored, and only if GPU_OPTIONAL=1. */
export function gpuTest(name: string, run: (gpu: Gpu) => Promise<void> | void): void {
  Deno.test({
    name,
    ignore: found instanceof Error,
    // The device that all tests share outlives each of them.
    sanitizeResources: false,
    sanitizeOps: false,
    fn: async () => await run(found as Gpu),
  });
}

/** Ids of pipelines that can run here. */
export const hasGpu = !(found instanceof Error);

/** Uniform values in −1 … 1, f32. */
export function uniform(count: number, seed: number): Float32Array {
  const random = new Random(seed);
  return Float32Array.from({ length: count }, () => 2 * random.uniform() - 1);
}

/** A layer with pairwise different dimensions. */
export const ODD_SHAPE: LayerShape = {
  batch: 2,
  heads: 6,
  kvHeads: 3,
  headWidth: 35,
  subvectors: 5,
  centroids: 16,
  augmented: false,
};

/** A row that lists `nSink`, picks `nHeavy` and ends in a window, of `nTokens` tokens coded from `initOffset` on. */
export function row(nTokens: number, nSink: number, nHeavy: number, window: number, initOffset: number): RowShape {
  const windowBegin = nTokens - window;
  return {
    nTokens,
    nSink,
    nHeavy,
    windowBegin,
    candBegin: Math.max(initOffset, nSink) - initOffset,
    candEnd: windowBegin - initOffset,
    listLength: nSink + nHeavy + window,
  };
}

/** A step of two rows with strides that differ from every size. */
export function oddStep(nTokens: number, heavy: number): StepShape {
  const initOffset = 7;
  return {
    nCoded: nTokens - initOffset,
    nNew: 3,
    firstNewKey: 2,
    nNewKeys: 5,
    initOffset,
    codedStride: nTokens + 11,
    heavyStride: heavy + 5,
    listStride: heavy + 41,
    weightStride: nTokens + 13,
    rows: [row(nTokens - 1, 9, heavy, 17, initOffset), row(nTokens, 9, heavy, 17, initOffset)],
  };
}

/** What f32 outputs hold before a kernel runs. */
export const POISON = 12345.5;
/** What u32 outputs hold before a kernel runs, and what follows every buffer. */
export const POISON_WORD = 0xdeadbeef;
const GUARD_WORDS = 16;

/** Outputs of a kernel on the GPU and of its twin, by buffer name. */
export interface KernelRun {
  readonly gpu: Record<string, ElementArray>;
  readonly twin: Record<string, ElementArray>;
}

/**
 * Runs a kernel and its twin on the same inputs.
 *
 * @param inputs initial contents by buffer name; other buffers are poisoned
 * @throws if a word behind a buffer's end was written
 */
export async function runKernel(
  gpu: Gpu,
  kernel: Kernel,
  shape: LayerShape,
  step: StepShape,
  inputs: Readonly<Record<string, ElementArray>>,
  files?: Readonly<Record<string, string>>,
): Promise<KernelRun> {
  const compiled = await CompiledKernel.create(gpu, kernel, shape, files);
  const packed = new Uint32Array(PARAMS_BYTES / 4);
  packParams(step, packed);
  const params = await gpu.allocate("params", PARAMS_BYTES, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  gpu.device.queue.writeBuffer(params.buffer, 0, packed);
  const initial = kernel.buffers.map((use) => {
    const length = use.elements(shape, step);
    const array = use.type === "f32"
      ? new Float32Array(length).fill(POISON)
      : new Uint32Array(length).fill(POISON_WORD);
    const given = inputs[use.name];
    if (given && given.length !== length) throw new Error(`${use.name} has ${given.length} elements, wants ${length}`);
    if (given) array.set(given);
    return array;
  });
  const buffers = await Promise.all(kernel.buffers.map((use, ix) => {
    const words = new Uint32Array(initial[ix].length + GUARD_WORDS).fill(POISON_WORD);
    words.set(new Uint32Array(initial[ix].buffer));
    return gpu.upload(use.name, words);
  }));
  await gpu.submit(kernel.name, (encoder) => {
    const pass = encoder.beginComputePass();
    compiled.record(pass, step, { buffer: params.buffer, offset: 0 }, (name) => {
      const { buffer } = buffers[kernel.buffers.findIndex((use) => use.name === name)];
      return { buffer, offset: 0, size: buffer.size };
    });
    pass.end();
  });
  const parts = await gpu.read(buffers.map(({ buffer }) => ({ buffer, bytes: buffer.size })));
  const outputs: Record<string, ElementArray> = {}, twins: Record<string, ElementArray> = {};
  kernel.buffers.forEach((use, ix) => {
    const words = new Uint32Array(parts[ix]);
    const length = initial[ix].length;
    if (words.subarray(length).some((word) => word !== POISON_WORD)) {
      throw new Error(`${kernel.name} wrote behind the end of ${use.name}`);
    }
    const bytes = parts[ix].slice(0, length * 4);
    outputs[use.name] = use.type === "f32" ? new Float32Array(bytes) : new Uint32Array(bytes);
    twins[use.name] = initial[ix].slice();
  });
  kernel.twin(shape, step, twins);
  for (const owned of [params, ...buffers]) owned.destroy();
  return { gpu: outputs, twin: twins };
}

/**
 * Compares arrays; NaN equals nothing but NaN where `nanIsEqual`.
 *
 * @param tolerance allowed |a − b| of an element, 0 for equal bits of value
 * @throws with the first index, the count of differences and the largest error
 */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number | ((ix: number) => number),
  what: string,
): void {
  if (actual.length !== expected.length) {
    throw new Error(`${what}: ${actual.length} elements, expected ${expected.length}`);
  }
  let first = -1, count = 0, largest = 0;
  for (let ix = 0; ix < actual.length; ix++) {
    const error = Math.abs(actual[ix] - expected[ix]);
    const allowed = typeof tolerance === "number" ? tolerance : tolerance(ix);
    if (Object.is(actual[ix], expected[ix]) || error <= allowed) continue;
    if (first < 0) first = ix;
    count++;
    largest = Number.isNaN(error) ? NaN : Math.max(largest, error);
  }
  if (count > 0) {
    throw new Error(
      `${what}: ${count} of ${actual.length} differ, first at ${first} (${actual[first]} for ${
        expected[first]
      }), largest error ${largest}`,
    );
  }
}

/** Runs `fn` with counters on everything of a device that allocates or compiles. */
export async function countAllocations(device: GPUDevice, fn: () => Promise<void>): Promise<Record<string, number>> {
  const names = [
    "createBuffer",
    "createBindGroup",
    "createBindGroupLayout",
    "createPipelineLayout",
    "createShaderModule",
    "createComputePipeline",
    "createComputePipelineAsync",
    "createQuerySet",
  ] as const;
  const counts: Record<string, number> = {};
  const target = device as unknown as Record<string, unknown>;
  for (const name of names) {
    const original = (device[name] as (...args: unknown[]) => unknown).bind(device);
    target[name] = (...args: unknown[]) => {
      counts[name] = (counts[name] ?? 0) + 1;
      return original(...args);
    };
  }
  try {
    await fn();
  } finally {
    for (const name of names) delete target[name];
  }
  return counts;
}

/** Writes a safetensors file. */
export async function writeSafetensors(
  path: string,
  tensors: Readonly<Record<string, TensorData>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  await Deno.writeFile(path, encodeSafetensors(tensors, metadata));
}

/** The project's folder. */
export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** Runs with a folder that is gone afterwards. */
export async function withFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "pq-indexer-" });
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Runs a script of the project as a person would, in a pipe. */
export async function script(path: string, args: string[], env: Record<string, string> = {}) {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", `${ROOT}${path}`, ...args],
    env: { NO_COLOR: "1", XDG_RUNTIME_DIR: "/tmp", ...env },
    cwd: ROOT,
  });
  const { code, stdout, stderr } = await command.output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}
