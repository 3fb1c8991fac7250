/**
 * Seeded synthetic states of an index, for timing: codes and centroids are drawn, not trained, so that a
 * million tokens are there in seconds. They say nothing about quality.
 *
 * @module
 */

import { Random } from "../../indexer/kmeans.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import type { PqConfig } from "../../indexer/config.ts";
import type { Pipeline } from "../../indexer/pipelines/pipeline.ts";
import { gaussian } from "./synthetic.ts";

/** What is timed. */
export interface Workload {
  /** B. */
  readonly batch: number;
  /** H. */
  readonly heads: number;
  /** Hkv. */
  readonly kvHeads: number;
  /** D. */
  readonly headWidth: number;
  /** M. */
  readonly subvectors: number;
  /** Bits per code. */
  readonly bits: number;
  /** N before the first step. */
  readonly tokens: number;
  /** S, which is also the first coded token. */
  readonly sinkSize: number;
  /** W. */
  readonly windowSize: number;
  /** K. */
  readonly heavySize: number;
  /** Whether dense weights are written. */
  readonly weights: boolean;
  /** Share of tokens whose code is their predecessor's, per subvector, 0 to 1: neighbours in real keys are alike. */
  readonly locality: number;
}

/** The reference configuration of the design: what figures are for unless they say otherwise. */
export const SEED_WORKLOAD: Workload = {
  batch: 1,
  heads: 32,
  kvHeads: 32,
  headWidth: 128,
  subvectors: 2,
  bits: 6,
  tokens: 32_000,
  sinkSize: 128,
  windowSize: 128,
  heavySize: 128,
  weights: true,
  locality: 0,
};

/** Codes and centroids of a workload; made once for all pipelines. */
export interface WorkloadState {
  readonly centroids: Float32Array;
  /** u8 `[B, Hkv, M, n]` */
  readonly codes: Uint8Array;
}

/** The index's config for a workload. */
export function configOf(workload: Workload): PqConfig {
  const { tokens: _tokens, weights: _weights, locality: _locality, ...config } = workload;
  return { ...config, initOffset: workload.sinkSize };
}

/** Coded tokens of a workload. */
export function codedTokens({ tokens, sinkSize }: Workload): number {
  return Math.max(0, tokens - sinkSize);
}

/** Draws codes (uniform, but for `locality`) and centroids (normal). */
export function drawState(workload: Workload, seed: number): WorkloadState {
  const groups = workload.batch * workload.kvHeads * workload.subvectors, C = 2 ** workload.bits;
  const centroids = gaussian(groups * C * workload.headWidth / workload.subvectors, seed);
  const codes = new Uint8Array(groups * codedTokens(workload));
  const random = new Random(seed + 1);
  for (let i = 0; i < codes.length; i++) {
    codes[i] = i > 0 && workload.locality > 0 && random.uniform() < workload.locality ? codes[i - 1] : random.below(C);
  }
  return { centroids, codes };
}

/** An index in that state with room for `steps` more tokens. */
export function openIndex(
  workload: Workload,
  state: WorkloadState,
  pipeline: Pipeline,
  device: GPUDevice | undefined,
  steps: number,
): Promise<PqIndexer> {
  return PqIndexer.create({
    ...configOf(workload),
    pipeline,
    device,
    weights: workload.weights,
    capacity: workload.tokens + steps,
    codebook: { centroids: state.centroids, codes: state.codes, tokens: workload.tokens },
  });
}
