/**
 * assign_packed: codes of new keys, four per word. See `assign_packed.wgsl`.
 *
 * @module
 */

import { type BufferDef, type Kernel, reads, writes } from "../gpu/kernel.ts";
import { centroids, newKeys, phi } from "../layer/buffers.ts";
import { codesMany } from "../shape.ts";
import { assign, assignTwin, assignWork } from "./assign.ts";

/** u32 `[B, Hkv, M, codedStride / 4]`: four codes per word, the lowest byte first */
export const packedCodesBuffer: BufferDef = {
  name: "codes",
  type: "u32",
  elements: (shape, step) => shape.batch * shape.kvHeads * shape.subvectors * step.codedStride / 4,
};

/** Codes the step's new keys where they are few, four per word. */
export const assignPacked: Kernel = {
  name: "assign_packed",
  wgsl: [
    "layer/layer.wgsl",
    "layer/columns.wgsl",
    "quantize/nearest.wgsl",
    "quantize/nearest_of_key.wgsl",
    "quantize/code_word.wgsl",
    "quantize/assign_packed.wgsl",
  ],
  buffers: [reads(newKeys), reads(centroids), reads(phi), writes(packedCodesBuffer)],
  plan: assign.plan,
  work(shape, step) {
    if (codesMany(shape, step)) return { workgroups: 0, bytesMoved: 0 };
    const firstWord = Math.floor((step.nCoded - step.nNew) / 4);
    return assignWork(shape, step, step.nNew > 0 ? Math.ceil(step.nCoded / 4) - firstWord : 0, 1);
  },
  twin(shape, step, buffers) {
    const { codes } = buffers;
    const wordAt = (group: number, i: number) => group * step.codedStride / 4 + Math.floor(i / 4);
    const first = step.nCoded - step.nNew;
    for (let group = 0; group < shape.batch * shape.kvHeads * shape.subvectors; group++) {
      // What follows the last key in its word becomes 0.
      for (let i = first; step.nNew > 0 && i < Math.ceil(step.nCoded / 4) * 4; i++) {
        codes[wordAt(group, i)] = (codes[wordAt(group, i)] & ~(0xff << i % 4 * 8)) >>> 0;
      }
    }
    assignTwin(shape, step, buffers, (group, i, code) => {
      codes[wordAt(group, i)] = (codes[wordAt(group, i)] | code << i % 4 * 8) >>> 0;
    });
  },
};
