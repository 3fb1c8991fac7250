/**
 * code_candidates: candidates of the tiles and codes of the new keys in one dispatch. See `code_candidates.wgsl`.
 *
 * @module
 */

import { type Kernel, type KernelWork, reads, writes } from "../gpu/kernel.ts";
import { centroids, newKeys, phi, query } from "../layer/buffers.ts";
import { assignPacked, packedCodesBuffer } from "../quantize/assign_packed.ts";
import {
  candidateIx,
  candidateRanks,
  candidates,
  candidatesBytes,
  candidatesTwin,
  TILING,
  type Tiling,
} from "../score_topk/candidates.ts";
import { type LayerShape, nBeside, type StepShape } from "../shape.ts";

/** Buffers of a kernel that codes keys beside tiles. */
export function buffersBeside(tiling: Tiling): Kernel["buffers"] {
  return [
    reads(query),
    reads(centroids),
    writes(packedCodesBuffer),
    reads(newKeys),
    reads(phi),
    writes(candidateRanks(tiling)),
    writes(candidateIx(tiling)),
  ];
}

/** Work of tiles and, where the step allows, of coding beside them. */
export function workBeside(shape: LayerShape, step: StepShape, tiles: KernelWork): KernelWork {
  if (tiles.workgroups === 0 || nBeside(step) === 0) return tiles;
  const coding = assignPacked.work(shape, step);
  return {
    workgroups: tiles.workgroups + coding.workgroups,
    bytesMoved: tiles.bytesMoved + coding.bytesMoved,
  };
}

/** Codes the step's new keys where {@linkcode codeCandidates} or a kernel like it cannot. */
export const assignFirst: Kernel = {
  ...assignPacked,
  work: (shape, step) => nBeside(step) > 0 ? { workgroups: 0, bytesMoved: 0 } : assignPacked.work(shape, step),
};

/** Scores tiles, keeps their best candidates and codes the new keys. */
export const codeCandidates: Kernel = {
  name: "code_candidates",
  wgsl: [
    "layer/layer.wgsl",
    "layer/columns.wgsl",
    "quantize/nearest.wgsl",
    "quantize/nearest_of_key.wgsl",
    "quantize/code_word.wgsl",
    ...candidates.wgsl.slice(2, -1),
    "quantize_score_topk/code_candidates.wgsl",
  ],
  buffers: buffersBeside(TILING),
  plan(shape) {
    const plan = candidates.plan(shape);
    return { ...plan, workgroupBytes: codeCandidatesBytes(shape) };
  },
  work: (shape, step) => workBeside(shape, step, candidates.work(shape, step)),
  twin(shape, step, buffers) {
    if (nBeside(step) > 0) assignPacked.twin(shape, step, buffers);
    candidatesTwin(TILING, shape, step, buffers);
  },
};

/** Bytes of workgroup memory: those of the tiles and 8 per invocation for the nearest centroid. */
export function codeCandidatesBytes(shape: LayerShape): number {
  return candidatesBytes(shape) + 256 * 8;
}
