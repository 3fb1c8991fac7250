/**
 * Pooling over the query heads that share a KV head: one list for all of them. See `sum_queries.wgsl`, `pool_max.wgsl` and
 * `pool_softmax.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, type KernelView, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { query } from "../layer/buffers.ts";
import { scores } from "../score/sum.ts";
import { type LayerShape, needsScores, nLists, type StepShape } from "../shape.ts";
import { rankOf } from "../topk/rank.ts";

/** A layer of which every KV head is one head. */
export function pooledShape(shape: LayerShape): LayerShape {
  return { ...shape, heads: shape.kvHeads };
}

/** f32 `[B, Hkv, rows, D]` */
export const pooledQuery: BufferDef = {
  ...query,
  name: "pooledQuery",
  elements: (shape, step) => query.elements(pooledShape(shape), step),
};

/** f32 `[B, Hkv, rows, codedStride]` */
export const pooledScores: BufferDef = {
  ...scores,
  name: "pooledScores",
  elements: (shape, step) => scores.elements(pooledShape(shape), step),
};

/** How kernels see a layer whose queries were summed up. */
export const SUMMED: KernelView = { shape: pooledShape, names: { query: pooledQuery.name } };

/** How kernels see a layer whose scores were pooled. */
export const POOLED: KernelView = { shape: pooledShape, names: { scores: pooledScores.name } };

/** List of the g-th head of a pooled list's group. */
function listOfHead(shape: LayerShape, step: StepShape, pooled: number, g: number): number {
  const rows = step.rows.length, kv = Math.floor(pooled / rows);
  return (kv * (shape.heads / shape.kvHeads) + g) * rows + pooled % rows;
}

/** Sums of the queries of each group. */
export const sumQueries: Kernel = {
  name: "sum_queries",
  wgsl: ["layer/layer.wgsl", "pool/sum_queries.wgsl"],
  buffers: [reads(query), writes(pooledQuery)],
  plan: (shape) => plainPlan(shape),
  work(shape, step) {
    const values = pooledQuery.elements(shape, step);
    return perElement(values, 256, 4 * (values + query.elements(shape, step)));
  },
  twin(shape, step, buffers) {
    const D = shape.headWidth;
    for (let pooled = 0; pooled < nLists(pooledShape(shape), step); pooled++) {
      for (let j = 0; j < D; j++) {
        let sum = 0;
        for (let g = 0; g < shape.heads / shape.kvHeads; g++) {
          sum = Math.fround(sum + buffers.query[listOfHead(shape, step, pooled, g) * D + j]);
        }
        buffers.pooledQuery[pooled * D + j] = sum;
      }
    }
  },
};

const WG = 256;

function poolBytes(shape: LayerShape, step: StepShape): number {
  return 4 * step.nCoded * (nLists(shape, step) + nLists(pooledShape(shape), step));
}

/** The largest score of each group. */
export const poolMax: Kernel = {
  name: "pool_max",
  wgsl: ["layer/layer.wgsl", "topk/rank.wgsl", "pool/pool.wgsl", "pool/pool_max.wgsl"],
  buffers: [reads(scores), writes(pooledScores)],
  plan: (shape) => plainPlan(shape, WG),
  work(shape, step) {
    const elements = needsScores(step) ? nLists(pooledShape(shape), step) * step.nCoded : 0;
    return perElement(elements, WG, poolBytes(shape, step));
  },
  twin(shape, step, buffers) {
    for (let pooled = 0; pooled < nLists(pooledShape(shape), step); pooled++) {
      for (let i = 0; i < step.nCoded; i++) {
        const all = Array.from(
          { length: shape.heads / shape.kvHeads },
          (_, g) => buffers.scores[listOfHead(shape, step, pooled, g) * step.codedStride + i],
        );
        const best = all.reduce((a, b) => rankOf(b) > rankOf(a) ? b : a);
        buffers.pooledScores[pooled * step.codedStride + i] = best;
      }
    }
  },
};

/** Sums of the softmaxes of each group. */
export const poolSoftmax: Kernel = {
  name: "pool_softmax",
  wgsl: ["layer/layer.wgsl", "pool/pool.wgsl", "pool/pool_softmax.wgsl"],
  buffers: [reads(scores), writes(pooledScores)],
  plan: (shape) => ({ ...plainPlan(shape, WG), workgroupBytes: 4 * WG }),
  work(shape, step) {
    const workgroups = needsScores(step) ? nLists(pooledShape(shape), step) : 0;
    return { workgroups, bytesMoved: workgroups > 0 ? 3 * poolBytes(shape, step) : 0 };
  },
  twin(shape, step, buffers) {
    for (let pooled = 0; pooled < nLists(pooledShape(shape), step); pooled++) {
      const { candBegin, candEnd } = step.rows[pooled % step.rows.length];
      const out = pooled * step.codedStride;
      buffers.pooledScores.fill(0, out + candBegin, out + candEnd);
      for (let g = 0; g < shape.heads / shape.kvHeads; g++) {
        const first = listOfHead(shape, step, pooled, g) * step.codedStride;
        const own = Array.from(buffers.scores.subarray(first + candBegin, first + candEnd));
        const largest = own.reduce((a, b) => Math.max(a, b), -Infinity);
        const shares = own.map((score) => Math.exp((score - largest) / Math.sqrt(shape.headWidth)));
        const total = shares.reduce((a, b) => a + b, 0);
        shares.forEach((share, ix) => buffers.pooledScores[out + candBegin + ix] += share / total);
      }
    }
  },
};
