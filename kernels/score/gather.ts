/**
 * gather: table entries by code. See `gather.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { codes } from "../layer/buffers.ts";
import { lut } from "./table.ts";
import { kvOfList, needsScores, nLists } from "../shape.ts";

/** f32 `[B, H, rows, M, codedStride]`: the table entry of every code */
export const gathered: BufferDef = {
  name: "gathered",
  type: "f32",
  elements: (shape, step) => nLists(shape, step) * shape.subvectors * step.codedStride,
};

const INVOCATIONS = 256;

/** Looks up every coded token's entry for every subvector. */
export const gather: Kernel = {
  name: "gather",
  wgsl: ["layer/layer.wgsl", "score/gather.wgsl"],
  buffers: [reads(lut), reads(codes), writes(gathered)],
  plan: (shape) => plainPlan(shape, INVOCATIONS),
  work(shape, step) {
    const elements = needsScores(step) ? nLists(shape, step) * shape.subvectors * step.nCoded : 0;
    return perElement(elements, INVOCATIONS, elements * 12);
  },
  twin(shape, step, { lut, codes, gathered }) {
    for (let list = 0; list < nLists(shape, step); list++) {
      for (let m = 0; m < shape.subvectors; m++) {
        const tableRow = list * shape.subvectors + m;
        const codeRow = kvOfList(shape, step, list) * shape.subvectors + m;
        for (let i = 0; i < step.nCoded; i++) {
          gathered[tableRow * step.codedStride + i] =
            lut[tableRow * shape.centroids + codes[codeRow * step.codedStride + i]];
        }
      }
    }
  },
};
