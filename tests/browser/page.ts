/**
 * What runs inside the browser: Tint's word on every WGSL text that a plan can name, and a step of every pipeline on
 * the GPU, checked there.
 *
 * @module
 */

import { attendMerge, attendParts } from "../../kernels/attend/attend.ts";
import { Attention } from "../../indexer/attention.ts";
import { checkCodes, checkSelection } from "../../indexer/checks.ts";
import { type PqConfig, resolveConfig } from "../../indexer/config.ts";
import { e07 } from "../../indexer/pipelines/e07_tuned.ts";
import { PIPELINES } from "../../indexer/pipelines/mod.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import { type DeviceFacts, Gpu } from "../../kernels/gpu/device.ts";
import type { Kernel } from "../../kernels/gpu/kernel.ts";
import { composeWgsl } from "../../kernels/gpu/wgsl.ts";
import { trainingKernels } from "../../kernels/train/training.ts";
import { widenKeys } from "../../kernels/train/widen_keys.ts";

/** What the page reports. */
export interface Report {
  readonly adapter: string;
  /** Distinct texts given to the compiler. */
  readonly texts: number;
  /** Kernels of texts that need f16, which this browser does not have. */
  readonly without: readonly string[];
  /** Those that begin with `enable subgroups;`. */
  readonly withSubgroups: number;
  /** "kernel: type file:line:column message" of whatever the compiler says. */
  readonly messages: readonly string[];
  /** Pipelines that ran, with the kernels that their step dispatched. */
  readonly ran: Readonly<Record<string, number>>;
  /** What is wrong with their codes, lists or weights. */
  readonly problems: readonly string[];
}

/** A step to run. */
export const CONFIG: PqConfig = {
  batch: 2,
  heads: 4,
  kvHeads: 2,
  headWidth: 24,
  subvectors: 3,
  bits: 4,
  sinkSize: 16,
  windowSize: 32,
  heavySize: 64,
};
const TOKENS = 5000;

function noise(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Devices whose limits and subgroups lead to every kind of plan. */
function devices(gpu: Gpu): DeviceFacts[] {
  const all: DeviceFacts[] = [];
  for (const isSoftware of [false, true]) {
    for (const subgroupSize of [0, 4, 32]) {
      for (const bytes of [gpu.limits.maxComputeWorkgroupStorageSize, 1024]) {
        for (const buffers of [gpu.limits.maxStorageBuffersPerShaderStage, 8]) {
          const limits = {
            ...gpu.limits,
            maxComputeWorkgroupStorageSize: bytes,
            maxStorageBuffersPerShaderStage: buffers,
          };
          all.push({ limits, info: { isSoftware }, subgroupSize, features: new Set(["shader-f16"]) });
        }
      }
    }
  }
  return all;
}

/** Every kernel of attention. */
function attentionKernels(gpu: Gpu): Kernel[] {
  const all: Kernel[] = [];
  for (const elements of ["f32", "f16"] as const) {
    for (const tokens of ["listed", "all"] as const) {
      for (const weights of tokens === "listed" ? [false, true] : [false]) {
        for (const subgroupSize of [0, Math.max(16, gpu.subgroupSize)]) {
          const options = { elements, tokens, weights, invocations: 64, mostRounds: 2, workgroups: 1, subgroupSize };
          all.push(attendParts(options), attendMerge(options));
        }
      }
    }
  }
  return all;
}

async function compileAll(gpu: Gpu): Promise<Pick<Report, "texts" | "without" | "withSubgroups" | "messages">> {
  const seen = new Set<string>(), messages: string[] = [], without: string[] = [];
  const compile = async (kernel: Kernel) => {
    const { code, locate } = composeWgsl(kernel.wgsl);
    if (seen.has(code)) return;
    seen.add(code);
    if (/^enable f16;/m.test(code) && !gpu.features.has("shader-f16")) {
      without.push(kernel.name);
      return;
    }
    gpu.device.pushErrorScope("validation");
    const module = gpu.device.createShaderModule({ label: kernel.name, code });
    const info = await module.getCompilationInfo();
    await gpu.device.popErrorScope();
    for (const { type, lineNum, linePos, message } of info.messages) {
      const { file, line } = locate(lineNum);
      messages.push(`${kernel.name}: ${type} ${file}:${line}:${linePos} ${message}`);
    }
  };
  for (const kernel of [...attentionKernels(gpu), widenKeys]) await compile(kernel);
  // Texts only: SwiftShader takes minutes to turn sum_clusters into code, so that training is not run here.
  for (const elements of ["f32", "f16"] as const) {
    const { start, iteration } = trainingKernels({ elements, tolerance: 0, startInvocations: 64 });
    for (const kernel of [...start, ...iteration]) await compile(kernel);
  }
  for (const metric of ["euclidean", "ip"] as const) {
    for (const heavySize of [64, 4096, { ratio: 0.1 }]) {
      const plain = { ...CONFIG, metric, heavySize };
      const configs: PqConfig[] = [plain, { ...plain, pooling: "groupMax" }, { ...plain, pooling: "groupSoftmax" }];
      if (heavySize === 64) {
        configs.push({ ...plain, refine: 4 }, { ...plain, refine: 2, refineElements: "f16", pooling: "groupSum" });
      }
      for (const config of configs.map(resolveConfig)) {
        for (const device of devices(gpu)) {
          // No shortlist fits so little workgroup memory.
          if (config.refine > 1 && device.limits.maxComputeWorkgroupStorageSize < 16384) continue;
          for (const weights of [false, true]) {
            for (const pipeline of PIPELINES) {
              for (const kernel of pipeline.kernelsFor({ config, device, weights })) await compile(kernel);
            }
          }
        }
      }
    }
  }
  return {
    texts: seen.size - without.length,
    without,
    withSubgroups: [...seen].filter((code) => /^enable subgroups;/m.test(code)).length,
    messages,
  };
}

async function runAll(gpu: Gpu): Promise<Pick<Report, "ran" | "problems">> {
  const ran: Record<string, number> = {}, problems: string[] = [];
  const { shape } = resolveConfig(CONFIG);
  const nKv = shape.batch * shape.kvHeads;
  const codebook = { centroids: noise(nKv * shape.headWidth * shape.centroids, 1) };
  const keys = noise(nKv * TOKENS * shape.headWidth, 2);
  const query = noise(shape.batch * shape.heads * shape.headWidth, 3), newKeys = noise(nKv * shape.headWidth, 4);
  let first: Uint8Array | undefined;
  const long = { invocations: 64, mostChunks: 4, workgroups: 1 }; // tiles of several chunks
  const pipelines = PIPELINES.filter(({ runsOn }) => runsOn === "gpu");
  for (const pipeline of [...pipelines, e07.tuned!(long)]) {
    const index = await PqIndexer.create({ ...CONFIG, pipeline, device: gpu.device, weights: true, codebook });
    try {
      await index.append(keys);
      await index.step(noise(query.length, 5), newKeys); // whose weights the next one must clear
      const data = await (await index.step(query, newKeys)).read();
      const codes = await index.readCodes();
      ran[pipeline.tuning ? `${pipeline.id} long` : pipeline.id] = index.dispatchesPerStep();
      if (first === undefined) {
        const coded = keysOf(shape.headWidth, nKv, [keys, newKeys, newKeys], index.initOffset!);
        const { errors, firstError } = checkCodes(shape, codebook, coded, codes);
        if (errors > 0) problems.push(`${pipeline.id}: ${errors} codes are wrong: ${firstError}`);
      } else if (codes.length !== first.length || codes.some((code, ix) => code !== first![ix])) {
        problems.push(`${pipeline.id}: other codes than those of the first pipeline`);
      }
      first ??= codes;
      const nTokens = index.tokens, { config } = index;
      const { errors, firstError } = checkSelection(
        {
          config,
          initOffset: index.initOffset!,
          codebook,
          codes,
          nTokens,
          query,
          weights: true,
          halfTables: pipeline.halfTables,
        },
        data,
      );
      if (errors > 0) problems.push(`${pipeline.id}: ${errors} lists are wrong: ${firstError}`);
    } finally {
      index.destroy();
    }
  }
  problems.push(...await attend(gpu));
  return { ran, problems };
}

/** Dense attention of two heads over 900 tokens, so over several parts; what is wrong with it. */
async function attend(gpu: Gpu): Promise<string[]> {
  const [heads, D, tokens] = [2, 16, 900];
  const query = noise(heads * D, 1), keys = noise(heads * tokens * D, 2), values = noise(heads * tokens * D, 3);
  using keysOnGpu = await gpu.upload("keys", keys);
  using valuesOnGpu = await gpu.upload("values", values);
  using attention = await Attention.create({ heads, headWidth: D, device: gpu.device });
  const step = { query, keys: keysOnGpu.buffer, values: valuesOnGpu.buffer, stride: tokens, tokens };
  const output = await (await attention.attend(step)).read();
  const problems: string[] = [];
  for (let head = 0; head < heads; head++) {
    const shares = Array.from({ length: tokens }, (_, i) => {
      let sum = 0;
      for (let j = 0; j < D; j++) sum += query[head * D + j] * keys[(head * tokens + i) * D + j];
      return Math.exp(sum / Math.sqrt(D));
    });
    const total = shares.reduce((a, b) => a + b, 0);
    for (let j = 0; j < D; j++) {
      const exact = shares.reduce((sum, share, i) => sum + share / total * values[(head * tokens + i) * D + j], 0);
      const got = output[head * D + j];
      if (!(Math.abs(got - exact) < 1e-6)) problems.push(`attention: head ${head}, column ${j} is ${got} for ${exact}`);
    }
  }
  return problems;
}

/** Joins keys f32 `[B, Hkv, t, D]` along t, without the first `skip`. */
function keysOf(width: number, nKv: number, parts: readonly Float32Array[], skip: number): Float32Array {
  const total = parts.reduce((sum, part) => sum + part.length, 0) / nKv;
  const joined = new Float32Array(nKv * (total - skip * width));
  for (let kv = 0; kv < nKv; kv++) {
    const row = new Float32Array(total);
    let at = 0;
    for (const part of parts) {
      const each = part.length / nKv;
      row.set(part.subarray(kv * each, (kv + 1) * each), at);
      at += each;
    }
    joined.set(row.subarray(skip * width), kv * (total - skip * width));
  }
  return joined;
}

/** Runs everything; the runner calls it. */
export async function main(): Promise<Report> {
  const gpu = await Gpu.shared();
  return { adapter: gpu.info.description, ...await compileAll(gpu), ...await runAll(gpu) };
}
