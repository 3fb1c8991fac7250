/**
 * What a notebook needs to measure and compare pipelines on the reader's device, beside committed results of a GPU.
 *
 * @module
 */

import { newestGpuResults, source } from "../bench/report.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import { Gpu } from "../kernels/gpu/device.ts";
import { WGSL_FILES } from "../kernels/wgsl_files.ts";
import { drawState, SEED_WORKLOAD, type Workload, type WorkloadState } from "./inputs/workload.ts";
import { Bench } from "./measure.ts";
import { summarize } from "./stats.ts";
import { verifySteps } from "./verify_steps.ts";

/** One pipeline as measured. */
export interface Measured {
  readonly id: string;
  readonly title: string;
  readonly dispatches: number;
  /** Median µs of the step's GPU pass; its wall time where the device has no timestamps. */
  readonly us: number;
  /** Operations in passes of their own, µs. */
  readonly operations: readonly { readonly name: string; readonly us: number }[];
  /** Bytes that the kernels read and write. */
  readonly bytesMoved: number;
  /** "", or what is wrong with codes, lists or weights (only where wrong ones are allowed). */
  readonly problem: string;
}

/** Options of {@linkcode measure}. */
export interface MeasureOptions {
  /** What is timed. Default: the seed configuration, or a small one (see {@linkcode isSmall}). */
  readonly workload?: Workload;
  /** Timed steps. Default 100, 5 on a software rasterizer. */
  readonly samples?: number;
  /** Whether pipelines may be wrong; their rows then say so. Default false. */
  readonly allowWrong?: boolean;
}

/** Whether notebooks run at reduced size: NOTEBOOK_SIZE=small. */
export const isSmall: boolean = Deno.env.get("NOTEBOOK_SIZE") === "small";

/** One number, or a smaller one where notebooks run at reduced size. */
export function sized(full: number, small: number): number {
  return isSmall ? small : full;
}

/** What notebooks measure: the seed configuration; at reduced size 4 heads and 2,000 tokens. */
export const WORKLOAD: Workload = isSmall ? { ...SEED_WORKLOAD, heads: 4, kvHeads: 4, tokens: 2000 } : SEED_WORKLOAD;

let gpuOnce: Promise<Gpu> | undefined;

/** The reader's device, and a sentence that names it. */
export async function lab(): Promise<{ readonly gpu: Gpu; readonly about: string }> {
  const gpu = await (gpuOnce ??= Gpu.shared());
  const kind = gpu.info.isSoftware ? ", a software rasterizer: its times say nothing about a GPU" : "";
  return { gpu, about: `${gpu.info.description}${kind}` };
}

const states = new Map<string, WorkloadState>();

function stateOf(workload: Workload): WorkloadState {
  const key = JSON.stringify(workload);
  if (!states.has(key)) states.set(key, drawState(workload, 1));
  return states.get(key)!;
}

/**
 * Verifies and times pipelines on one state, one after the other.
 *
 * @throws {Error} for a pipeline whose codes, lists or weights are wrong, unless that is allowed
 */
export async function measure(pipelines: readonly Pipeline[], options: MeasureOptions = {}): Promise<Measured[]> {
  const { gpu } = await lab();
  const { workload = WORKLOAD } = options;
  const samples = options.samples ?? (gpu.info.isSoftware ? sized(5, 2) : 100);
  const state = stateOf(workload);
  const all: Measured[] = [];
  for (const pipeline of pipelines) {
    const { problem } = await verifySteps(pipeline, workload, state, gpu, undefined);
    if (problem && !options.allowWrong) throw new Error(`Cannot measure ${pipeline.id} as it is wrong: ${problem}`);
    using bench = await Bench.open(gpu, pipeline, workload, state, { steps: 2 * samples + 300 });
    const bytesMoved = bench.indexes[0].bytesPerStep(); // before steps make the index longer
    await bench.warmUp(gpu.info.isSoftware ? 0 : 400);
    const timed = await bench.gpuSteps(samples);
    const us = summarize(timed.length > 0 ? timed : (await bench.wall(samples)).step).median;
    const totals = await bench.gpuOperations(gpu.info.isSoftware ? 2 : 60);
    all.push({
      id: pipeline.id,
      title: pipeline.title,
      dispatches: bench.dispatches,
      us,
      operations: [...totals].filter(([, us]) => us > 0).map(([name, us]) => ({ name, us })),
      bytesMoved,
      problem,
    });
  }
  return all;
}

/** The newest committed results of a GPU, at the seed configuration or another case of the bench. */
export async function published(factor = "N", value: number = SEED_WORKLOAD.tokens) {
  const file = await newestGpuResults();
  const { report } = file;
  const rows = report.rows.filter((row) => row.factor === factor && row.value === value && row.gpuUs);
  return {
    adapter: report.provenance.adapter,
    source: source(file),
    copyGBs: report.copyGBs,
    emptyPassUs: report.emptyPassUs,
    note: report.note ?? "",
    report,
    rows: rows.map((row): Measured => ({
      id: row.id,
      title: row.title,
      dispatches: row.dispatches,
      us: row.gpuUs!.median,
      operations: row.operations.filter(({ us }) => us > 0),
      bytesMoved: row.bytesMoved,
      problem: row.problem,
    })),
  };
}

/** A WGSL file of the project. */
export function wgsl(path: string): string {
  const text = WGSL_FILES[path];
  if (text === undefined) {
    throw new RangeError(`Cannot find ${path} as the WGSL files are ${Object.keys(WGSL_FILES).join(", ")}`);
  }
  return text;
}

/** The comment at the head of a WGSL file: what it computes, and who owns what. */
export function wgslHeader(path: string): string {
  const lines = wgsl(path).split("\n");
  return lines.slice(0, lines.findIndex((line) => !line.startsWith("//"))).join("\n");
}

/** Pipelines by id, in the order of the list. */
export function pipelines(...ids: readonly string[]): Pipeline[] {
  const unknown = ids.find((id) => !PIPELINES.some((pipeline) => pipeline.id === id));
  if (unknown !== undefined) {
    throw new RangeError(`Cannot find ${unknown} as the pipelines are ${PIPELINES.map(({ id }) => id).join(", ")}`);
  }
  return PIPELINES.filter(({ id }) => ids.includes(id));
}
