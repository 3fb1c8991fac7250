/**
 * What a step will do, before anything is compiled: kernels, sizes, workgroups, bytes. Pure.
 *
 * @module
 */

import type { DeviceFacts } from "../../kernels/gpu/device.ts";
import { postedIn } from "../../kernels/postings/postings.ts";
import type { StepShape } from "../../kernels/shape.ts";
import { type Capacity, capacityFor, initOffsetAt, refuse, type ResolvedConfig, resolveRows } from "../config.ts";
import type { Pipeline } from "./pipeline.ts";

/** What is planned. */
export interface PlanOptions {
  /** The index's config. */
  readonly config: ResolvedConfig;
  /** The device, or what it is to be planned for. */
  readonly device: DeviceFacts;
  /** Whether dense weights are written. */
  readonly weights: boolean;
  /** N after the step. */
  readonly tokens: number;
  /** Keys that the step brings per KV head. Default 1. */
  readonly newTokens?: number;
  /** Query rows. Default 1. */
  readonly rows?: number;
}

/** One kernel of a planned step. */
export interface PlannedKernel {
  /** Name of the operation. */
  readonly name: string;
  /** Workgroups; 0: not dispatched in this step. */
  readonly workgroups: number;
  /** Invocations per workgroup. */
  readonly invocations: number;
  /** Bytes of workgroup memory. */
  readonly workgroupBytes: number;
  /** Bytes that the dispatch reads and writes, each access counted once. */
  readonly bytesMoved: number;
  /** Overrides beside those of the layer's shape: tile sizes and the like. */
  readonly overrides: Readonly<Record<string, number>>;
}

/** A planned step. */
export interface StepPlan {
  /** The kernels in order. */
  readonly kernels: readonly PlannedKernel[];
  /** Dispatches of the step. */
  readonly dispatches: number;
  /** Bytes that it reads and writes. */
  readonly bytesMoved: number;
  /** Bytes of the buffers that the kernels share, by name, at just this capacity; inputs are the caller's. */
  readonly buffers: Readonly<Record<string, number>>;
}

/** Buffers that come with a step. */
export const INPUTS: ReadonlySet<string> = new Set(["query", "newKeys", "keys"]);

const SHAPE_OVERRIDES = new Set([
  "BATCH",
  "HEADS",
  "KV_HEADS",
  "SUBVECTORS",
  "CENTROIDS",
  "SUB_WIDTH",
  "CENTROID_WIDTH",
  "WG",
]);

/** Strides of buffers that hold a capacity. */
export function stridesOf(capacity: Capacity) {
  return {
    codedStride: capacity.tokens,
    heavyStride: capacity.heavy,
    listStride: Math.max(1, capacity.list),
    weightStride: capacity.tokens,
    shortStride: capacity.short,
    attended: capacity.shortList,
  };
}

/**
 * Plans a step that goes on from one before it, with a codebook.
 *
 * @throws {RangeError} if there are more rows than tokens, or counts are no integers from 0 on
 */
export function planStep(pipeline: Pipeline, options: PlanOptions): StepPlan {
  const { config, device, weights, tokens, newTokens = 1, rows = 1 } = options;
  for (const [name, value] of Object.entries({ tokens, newTokens, rows })) {
    const most = name === "newTokens" ? tokens : 2 ** 32;
    if (!Number.isInteger(value) || value < 0 || value > most) {
      refuse("plan a step", `${name} must be an integer 0 to ${most}`, `${name} is ${value}`);
    }
  }
  const initOffset = initOffsetAt(config, tokens);
  const nCoded = Math.max(0, tokens - initOffset), nNew = Math.min(newTokens, nCoded);
  const resolved = resolveRows(config, initOffset, tokens, rows);
  const { posted } = postedIn({ nCoded, nNew, rows: resolved }, undefined);
  const step: StepShape = {
    posted,
    nCoded,
    nNew,
    firstNewKey: newTokens - nNew,
    nNewKeys: newTokens,
    initOffset,
    clearsPrevious: true,
    keyStride: tokens,
    ...stridesOf(capacityFor(config, tokens, rows)),
    rows: resolved,
  };
  const all = pipeline.kernelsFor({ config, device, weights });
  const buffers: Record<string, number> = {};
  const kernels = all.map((kernel): PlannedKernel => {
    const { overrides, invocations, workgroupBytes } = kernel.plan(config.shape);
    for (const use of kernel.buffers) {
      const bytes = 4 * use.elements(config.shape, step);
      if (!INPUTS.has(use.name)) buffers[use.name] = Math.max(bytes, buffers[use.name] ?? 0);
    }
    return {
      name: kernel.name,
      ...kernel.work(config.shape, step),
      invocations,
      workgroupBytes,
      overrides: Object.fromEntries(Object.entries(overrides).filter(([name]) => !SHAPE_OVERRIDES.has(name))),
    };
  });
  return {
    kernels,
    dispatches: kernels.filter(({ workgroups }) => workgroups > 0).length,
    bytesMoved: kernels.reduce((sum, { bytesMoved }) => sum + bytesMoved, 0),
    buffers,
  };
}

/** WebGPU's default limits: what every device has. */
export const DEFAULT_DEVICE: DeviceFacts = {
  limits: {
    maxComputeInvocationsPerWorkgroup: 256,
    maxComputeWorkgroupSizeX: 256,
    maxComputeWorkgroupStorageSize: 16384,
    maxStorageBufferBindingSize: 2 ** 27,
    maxStorageBuffersPerShaderStage: 8,
  },
  subgroupSize: 0,
  features: new Set(),
  info: { isSoftware: false },
};
