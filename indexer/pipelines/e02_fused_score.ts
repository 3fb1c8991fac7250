/**
 * e02 fused score: table, gather and sum become one kernel; scores are written once. From e01.
 *
 * Why it should help: 12·M·n + 4·(M + 1)·n bytes per list become 4·M·n + 4·n (36·n to 12·n at M = 2),
 * and two dispatches go. What it costs: no table, so every token pays D multiply-adds and reads M
 * centroids (from cache: all centroids of a head are 32 KiB in the seed config).
 *
 * Measured (walkthrough: 4 heads, 16,384 tokens, M 8, 8 bits; GPU pass): 209 µs after 198 on an NVIDIA H200.
 * score takes 21 µs in a pass of its own, table, gather and sum took 6.4 + 6.9 + 6.6: at 6 MB per operation and less
 * the bytes saved were not the cost, and a chain of D dependent multiply-adds is longer than a lookup. On
 * llvmpipe, which pays for every instruction, 18.9 ms after 10.7. It loses here and stays as a step.
 * Seed configuration: 724 µs after 287, score 457.
 *
 * @module
 */

import { score } from "../../kernels/score/score.ts";
import { E01 } from "./e01_baseline.ts";
import { gpuPipeline, type GpuPipelineDef } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

const REPLACED = new Set(["gather", "sum"]);

/** The iteration as data, to derive others from. */
export const E02: GpuPipelineDef = {
  ...E01,
  id: "e02",
  title: "fused score",
  change: "table, gather and sum in one kernel: scores are written once, nothing else is stored",
  kernels: E01.kernels.filter(({ name }) => !REPLACED.has(name)).map((kernel) =>
    kernel.name === "table" ? score : kernel
  ),
};

/** Scores in one kernel. */
export const e02: Pipeline = gpuPipeline(E02);
