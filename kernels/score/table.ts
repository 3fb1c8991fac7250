/**
 * table: lookup table of query · centroid. See `table.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { centroids, query } from "../layer/buffers.ts";
import { centroidWidth, kvOfList, needsScores, nLists, subWidth } from "../shape.ts";

/** f32 `[B, H, rows, M, C]`: query · centroid */
export const lut: BufferDef = {
  name: "lut",
  type: "f32",
  elements: (shape, step) => nLists(shape, step) * shape.subvectors * shape.centroids,
};

const INVOCATIONS = 256;

/** Fills the lookup table of every list. */
export const table: Kernel = {
  name: "table",
  wgsl: ["layer/layer.wgsl", "layer/columns.wgsl", "score/dot.wgsl", "score/table.wgsl"],
  buffers: [reads(query), reads(centroids), writes(lut)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    // The whole table or nothing: rows that pick no heavy token ride along.
    const entries = needsScores(step) ? nLists(shape, step) * shape.subvectors * shape.centroids : 0;
    return perElement(entries, INVOCATIONS, entries * (2 * subWidth(shape) + 1) * 4);
  },
  twin(shape, step, { query, centroids, lut }) {
    const d = subWidth(shape), width = centroidWidth(shape);
    for (let list = 0; list < nLists(shape, step); list++) {
      for (let m = 0; m < shape.subvectors; m++) {
        for (let c = 0; c < shape.centroids; c++) {
          const queryAt = (list * shape.subvectors + m) * d;
          const centroidAt = ((kvOfList(shape, step, list) * shape.subvectors + m) * shape.centroids + c) * width;
          let sum = 0;
          for (let j = 0; j < d; j++) sum += query[queryAt + j] * centroids[centroidAt + j];
          lut[(list * shape.subvectors + m) * shape.centroids + c] = sum;
        }
      }
    }
  },
};
