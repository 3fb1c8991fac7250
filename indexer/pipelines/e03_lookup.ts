/**
 * e03 lookup in workgroup memory: codes packed four per word, the table built once per workgroup in
 * workgroup memory, loads of four codes and stores of four scores. From e02.
 *
 * Why it should help: codes shrink from 4·M·n to M·n bytes per list (8·n to 2·n at M = 2), and a token
 * costs M lookups instead of D multiply-adds on 2·D loads. What it costs: every tile of 4,096 tokens
 * builds the table anew, D·C multiply-adds. Where M·C·4 bytes exceed workgroup memory the plan keeps
 * e02's kernel on packed codes.
 *
 * Measured (walkthrough: 4 heads, 16,384 tokens, M 8, 8 bits; GPU pass): 213 µs after 209 on an NVIDIA H200, where
 * 16 workgroups leave 116 of 132 multiprocessors idle and each builds a table of 2,048 entries first
 * (score_lookup 25 µs in a pass of its own); on llvmpipe 7.1 ms after 18.9, 1.5 × the baseline. The gain
 * needs more lists or smaller tiles. Seed configuration: 289 µs after 724; score_lookup 22 after 457, and where e01 has
 * 39 for table, gather and sum. The top-K hides it.
 *
 * @module
 */

import { assignMany } from "../../kernels/quantize/assign_many.ts";
import { assignPacked } from "../../kernels/quantize/assign_packed.ts";
import { packedCodes } from "../../kernels/quantize/codes.ts";
import {
  type LookupBlock,
  scoreLookup,
  scoreLookupBy,
  scorePacked,
  tableBytes,
} from "../../kernels/score/score_lookup.ts";
import { E02 } from "./e02_fused_score.ts";
import { gpuPipeline, type GpuPipelineDef } from "./gpu_layer.ts";
import type { Pipeline } from "./pipeline.ts";

const kernelsWith = (score: typeof scoreLookup) =>
  E02.kernels.flatMap((kernel) =>
    kernel.name === "assign" ? [assignMany, assignPacked] : kernel.name === "score" ? [score] : [kernel]
  );

/** The iteration as data, to derive others from. */
export const E03: GpuPipelineDef = {
  ...E02,
  id: "e03",
  title: "lookup",
  change: "codes packed four per word; the table in workgroup memory, once per tile of 4,096 tokens",
  codes: packedCodes,
  kernels: kernelsWith(scoreLookup),
  kernelsFor: ({ config, device }) =>
    kernelsWith(tableBytes(config.shape) <= device.limits.maxComputeWorkgroupStorageSize ? scoreLookup : scorePacked),
};

/** Scores by lookup in workgroup memory. */
export const e03: Pipeline = gpuPipeline(E03);

/** The same by other tiles, to measure what their size is worth; for devices with workgroup memory for the table. */
export function e03By(block: LookupBlock): Pipeline {
  const kernels = kernelsWith(scoreLookupBy(block));
  return gpuPipeline({ ...E03, kernels, kernelsFor: undefined });
}
