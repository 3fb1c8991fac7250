/**
 * The buffers that enter and leave a step. What only passes between kernels is defined beside the
 * kernel that writes it.
 *
 * @module
 */

import type { BufferDef } from "../gpu/kernel.ts";
import { centroidWidth, nLists } from "../shape.ts";

/** f32 `[B, H, rows, D]` */
export const query: BufferDef = {
  name: "query",
  type: "f32",
  elements: (shape, step) => nLists(shape, step) * shape.headWidth,
};

/** f32 `[B, Hkv, t, D]` */
export const newKeys: BufferDef = {
  name: "newKeys",
  type: "f32",
  elements: (shape, step) => shape.batch * shape.kvHeads * step.nNewKeys * shape.headWidth,
};

/** f32 `[B, Hkv, M, C, d]`, with metric "ip" one more column */
export const centroids: BufferDef = {
  name: "centroids",
  type: "f32",
  elements: (shape) => shape.batch * shape.kvHeads * shape.subvectors * shape.centroids * centroidWidth(shape),
};

/** f32 `[B, Hkv, M]` with metric "ip", else empty */
export const phi: BufferDef = {
  name: "phi",
  type: "f32",
  elements: (shape) => shape.augmented ? shape.batch * shape.kvHeads * shape.subvectors : 0,
};

/** u32 `[B, Hkv, M, codedStride]`: one code per word */
export const codes: BufferDef = {
  name: "codes",
  type: "u32",
  elements: (shape, step) => shape.batch * shape.kvHeads * shape.subvectors * step.codedStride,
};

/** u32 `[B, H, rows, listStride]`: the lists, ascending */
export const indices: BufferDef = {
  name: "indices",
  type: "u32",
  elements: (shape, step) => nLists(shape, step) * step.listStride,
};

/** u32 `[B, H, rows]`: how many entries of each list count */
export const lengths: BufferDef = { name: "lengths", type: "u32", elements: nLists };

/** f32 `[B, H, rows, weightStride]`: 1 at listed tokens, else 0 */
export const weights: BufferDef = {
  name: "weights",
  type: "f32",
  elements: (shape, step) => nLists(shape, step) * step.weightStride,
};
