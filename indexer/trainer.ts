/**
 * Training of the codebook on the GPU: k-means of all (batch, KV head, subvector) groups at once, over keys that stay where
 * they are. See `kernels/train/train.wgsl`.
 *
 * @module
 */

import { type GpuInput, type OwnedBuffer, type ResolvedInput, resolveInput } from "../kernels/gpu/buffers.ts";
import type { Gpu } from "../kernels/gpu/device.ts";
import { CompiledKernel, type Kernel } from "../kernels/gpu/kernel.ts";
import * as io from "../kernels/layer/buffers.ts";
import { elementBytes, type LayerShape, packParams, PARAMS_BYTES, type StepShape } from "../kernels/shape.ts";
import {
  finite,
  nGroups,
  STATE,
  state,
  STATE_WORDS,
  type TrainKernelOptions,
  trainShape,
} from "../kernels/train/train.ts";
import { trainingKernels } from "../kernels/train/training.ts";
import { refuse } from "./config.ts";
import type { KeyElements } from "./key_parts.ts";
import { checkTraining, refuseFewFinite, refusePhi, type TrainOptions } from "./kmeans.ts";
import type { Codebook } from "./reference.ts";

/** Keys of all cached tokens on the GPU. */
export interface TrainKeys {
  /** `[B, Hkv, stride, D]`. */
  readonly keys: GpuInput;
  /** Tokens. */
  readonly tokens: number;
  /** Tokens from one (batch, KV head) to the next. Default: `tokens`. */
  readonly stride?: number;
  /** How they are kept. Default "f32". */
  readonly elements?: KeyElements;
}

/** Options of {@linkcode trainOnGpu}; `onProgress` is called after every iteration. */
export interface GpuTrainOptions extends TrainOptions {
  /** Begins a compute pass, to time it. */
  readonly beginPass?: (encoder: GPUCommandEncoder, label: string) => GPUComputePassEncoder;
  /** Whether every operation gets a pass of its own, with its name as label. Default: one pass for all of a submit. */
  readonly passPerOperation?: boolean;
}

/** What a training found. */
export interface TrainedCodebook extends Codebook {
  /** f32 `[B, Hkv, M]`: sums of squared distances of the sample to its centroids, at the last assignment. */
  readonly distortions: Float32Array;
  /** u32 `[B, Hkv, M]`: iterations until a group was done, or all. */
  readonly iterations: Uint32Array;
  /** Keys per (batch, KV head) that the training looked at. */
  readonly sampled: number;
  /** Bytes of device memory that it took beside the keys. */
  readonly workBytes: number;
}

/** Keys that training looks at, out of n. */
export function sampleSize(shape: LayerShape, n: number, { maxKeysPerCentroid = 256 }: TrainOptions): number {
  return Math.min(n, maxKeysPerCentroid * shape.centroids);
}

/**
 * Trains a codebook on keys that lie on the GPU. The same keys, options and device give the same bytes, run after run.
 *
 * k-means++ on every 16·C-th part of a stratified sample of the finite keys, then Lloyd iterations over the sample. A key
 * that has a NaN or ±inf anywhere is left out.
 *
 * @throws {RangeError} for fewer keys than centroids, or fewer finite ones in the sample, squared norms beyond f32 (metric
 * "ip"), a buffer that is too small, or keys of one (batch, KV head) that one binding cannot hold
 */
export async function trainOnGpu(
  gpu: Gpu,
  shape: LayerShape,
  given: TrainKeys,
  options: GpuTrainOptions = {},
): Promise<TrainedCodebook> {
  const { seed = 0, iterations = 10, initOffset = 0, tolerance = 0, onProgress } = options;
  const { tokens, stride = tokens, elements = "f32" } = given;
  checkTraining(shape, tokens, options);
  const n = tokens - initOffset;
  const nKv = shape.batch * shape.kvHeads;
  const kvBytes = stride * shape.headWidth * elementBytes(elements);
  const whole = (bytes: number) => Math.ceil(bytes / 4) * 4;
  const anySize = { ...gpu.limits, maxStorageBufferBindingSize: Infinity };
  const all = resolveInput("keys", given.keys, whole(nKv * kvBytes), anySize);
  const slices = slicesOf(gpu, nKv, kvBytes, all.offset);
  const kernelOptions: TrainKernelOptions = {
    elements,
    tolerance,
    startInvocations: gpu.info.isSoftware
      ? 64
      : Math.min(1024, 2 ** Math.floor(Math.log2(gpu.limits.maxComputeInvocationsPerWorkgroup))),
  };
  const step = trainShape(stride, initOffset, n, sampleSize(shape, n, options));
  const total = slices.length * iterations;
  const found: Run[] = [];
  for (const [ix, { first, count }] of slices.entries()) {
    const slice: LayerShape = { ...shape, batch: 1, heads: count, kvHeads: count };
    const keys = { buffer: all.buffer, offset: all.offset + first * kvBytes, size: whole(count * kvBytes) };
    const progress = onProgress && ((done: number) => onProgress(ix * iterations + done, total));
    const firstSeed = seed + first * shape.subvectors;
    found.push(
      await runSlice(gpu, slice, step, keys, kernelOptions, { ...options, iterations, seed: firstSeed }, progress),
    );
    const { finite, phi } = found[ix];
    const few = finite.findIndex((count) => count < shape.centroids);
    if (few >= 0) refuseFewFinite(shape, `KV head ${first + few}`, finite[few], step.nNew < n ? " in the sample" : "");
    if (phi) refusePhi(phi);
  }
  const joined = (part: (run: Run) => Float32Array) => joinFloats(found.map(part));
  return {
    centroids: joined((run) => run.centroids),
    ...(shape.augmented ? { phi: joined((run) => run.phi!) } : {}),
    distortions: joined((run) => run.distortions),
    iterations: Uint32Array.from(found.flatMap((run) => [...run.iterations])),
    sampled: step.nNew,
    workBytes: Math.max(...found.map((run) => run.workBytes)),
  };
}

/** KV heads that one binding can hold, in as few and as equal slices as alignment allows. */
function slicesOf(gpu: Gpu, nKv: number, kvBytes: number, offset: number): { first: number; count: number }[] {
  const { maxStorageBufferBindingSize: limit, minStorageBufferOffsetAlignment: alignment } = gpu.limits;
  if (nKv * kvBytes <= limit) return [{ first: 0, count: nKv }];
  let together = 1;
  while (together * kvBytes % alignment !== 0) together++;
  const most = Math.floor(limit / kvBytes / together) * together;
  if (most === 0 || offset % alignment !== 0) {
    refuse(
      "train a codebook",
      `one binding of this device holds at most ${limit} bytes`,
      `the keys of ${together} KV heads take ${together * kvBytes}`,
    );
  }
  const count = Math.ceil(nKv / Math.ceil(nKv / most) / together) * together;
  return Array.from({ length: Math.ceil(nKv / count) }, (_, ix) => ({
    first: ix * count,
    count: Math.min(count, nKv - ix * count),
  }));
}

function joinFloats(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

interface Run {
  readonly centroids: Float32Array;
  readonly phi?: Float32Array;
  readonly finite: Uint32Array;
  readonly distortions: Float32Array;
  readonly iterations: Uint32Array;
  readonly workBytes: number;
}

/** Trains the groups of some KV heads. */
async function runSlice(
  gpu: Gpu,
  shape: LayerShape,
  step: StepShape,
  keys: ResolvedInput,
  options: TrainKernelOptions,
  {
    seed = 0,
    iterations = 10,
    beginPass = (encoder, label) => encoder.beginComputePass({ label }),
    passPerOperation = false,
  }: GpuTrainOptions,
  progress?: (done: number) => void,
): Promise<Run> {
  const compile = (kernels: Kernel[]) =>
    Promise.all(
      kernels.filter((kernel) => kernel.work(shape, step).workgroups > 0)
        .map((kernel) => CompiledKernel.create(gpu, kernel, shape)),
    );
  const kernels = trainingKernels(options);
  const [start, iteration] = await Promise.all([compile(kernels.start), compile(kernels.iteration)]);
  const owned = new Map<string, OwnedBuffer>();
  const params = await gpu.allocate("train params", PARAMS_BYTES, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  try {
    let workBytes = 0;
    for (const use of [...start, ...iteration].flatMap(({ kernel }) => kernel.buffers)) {
      if (use.name === "keys" || owned.has(use.name)) continue;
      const bytes = 4 * Math.max(4, use.elements(shape, step));
      owned.set(use.name, await gpu.allocate(`train ${use.name}`, bytes));
      workBytes += bytes;
    }
    const { queue } = gpu.device;
    const packed = new Uint32Array(PARAMS_BYTES / 4);
    packParams(step, packed);
    queue.writeBuffer(params.buffer, 0, packed);
    const seeds = new Uint32Array(nGroups(shape) * STATE_WORDS);
    for (let group = 0; group < nGroups(shape); group++) seeds[group * STATE_WORDS + STATE.seed] = seed + group;
    queue.writeBuffer(owned.get(state.name)!.buffer, 0, seeds);

    const buffer = (name: string): ResolvedInput => {
      if (name === "keys") return keys;
      const { buffer, bytes } = owned.get(name)!;
      return { buffer, offset: 0, size: bytes };
    };
    const submit = (kernels: readonly CompiledKernel[]) =>
      gpu.submit("train", (encoder) => {
        const whole = passPerOperation ? undefined : beginPass(encoder, "train");
        for (const kernel of kernels) {
          const pass = whole ?? beginPass(encoder, kernel.kernel.name);
          kernel.record(pass, step, { buffer: params.buffer, offset: 0 }, buffer);
          if (!whole) pass.end();
        }
        whole?.end();
      });
    // Without anybody to tell, all of it is one submit.
    const together = progress ? 1 : iterations;
    for (let done = 0; done < iterations; done += together) {
      const some = Array.from({ length: together }, () => iteration).flat();
      await submit(done === 0 ? [...start, ...some] : some);
      if (progress) {
        await gpu.fence();
        progress(done + together);
      }
    }
    const wanted = [io.centroids, state, finite, ...(shape.augmented ? [io.phi] : [])];
    const [centroids, states, counted, phi] = await gpu.read(wanted.map((def) => ({
      buffer: owned.get(def.name)!.buffer,
      bytes: 4 * def.elements(shape, step),
    })));
    const word = (name: keyof typeof STATE) => (_: number, group: number) => group * STATE_WORDS + STATE[name];
    const floats = new Float32Array(states), words = new Uint32Array(states);
    const groups = new Array<number>(nGroups(shape)).fill(0);
    return {
      centroids: new Float32Array(centroids),
      ...(phi ? { phi: new Float32Array(phi) } : {}),
      finite: new Uint32Array(counted),
      distortions: Float32Array.from(groups.map(word("distortion")), (at) => floats[at]),
      iterations: Uint32Array.from(groups.map(word("iterations")), (at) => words[at]),
      workBytes,
    };
  } finally {
    params.destroy();
    for (const buffer of owned.values()) buffer.destroy();
  }
}
