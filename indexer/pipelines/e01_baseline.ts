/**
 * e01 baseline: one dispatch per operation, everything between them in memory. What an imperative
 * PyTorch version does (einsum, gather, sum, mask, topk, add, cat, sort, scatter), so the numbers
 * show what fusion buys and not what a better algorithm does.
 *
 * Per list it moves 12·M·n bytes in gather, 4·(M + 1)·n in sum, 8·n in mask and 20·n in topk
 * (4 radix digits and a compaction): 64·n bytes at M = 2, where the codes alone are 2·n.
 *
 * Measured (walkthrough: 4 heads, 16,384 tokens, M 8, 8 bits; GPU pass): 198 µs on an NVIDIA H200, of which
 * topk 146 in a pass of its own: one workgroup per list reads 16K ranks five times, and 4 of 132
 * multiprocessors work. Seed configuration (32 heads, 32,000 tokens, M 2, 6 bits): 287 µs, topk 216.
 *
 * @module
 */

import { concat } from "../../kernels/list/concat.ts";
import { offset } from "../../kernels/list/offset.ts";
import { scatter } from "../../kernels/list/scatter.ts";
import { sort } from "../../kernels/list/sort.ts";
import { zeros } from "../../kernels/list/zeros.ts";
import { assign } from "../../kernels/quantize/assign.ts";
import { wordCodes } from "../../kernels/quantize/codes.ts";
import { gather } from "../../kernels/score/gather.ts";
import { sum } from "../../kernels/score/sum.ts";
import { table } from "../../kernels/score/table.ts";
import { mask } from "../../kernels/topk/mask.ts";
import { topk } from "../../kernels/topk/topk.ts";
import { gpuPipeline, type GpuPipelineDef } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

/** The iteration as data, to derive others from. */
export const E01: GpuPipelineDef = {
  id: "e01",
  title: "baseline",
  change: "one dispatch per operation, every intermediate in memory",
  codes: wordCodes,
  kernels: [assign, table, gather, sum, mask, topk, offset, concat, sort],
  weightKernels: [zeros, scatter],
};

/** One dispatch per operation. */
export const e01: Pipeline = gpuPipeline(E01);
