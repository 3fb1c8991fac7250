/**
 * assign: codes of new keys, the nearest centroid per subvector. See `assign.wgsl`.
 *
 * @module
 */

import { type HostBuffers, type Kernel, type KernelWork, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { centroids, codes, newKeys, phi } from "../layer/buffers.ts";
import { centroidWidth, type LayerShape, type StepShape, subWidth } from "../shape.ts";

/** A power of two: the reduction halves. */
export const INVOCATIONS = 64;

/** Work of `perGroup` workgroups for every (batch, KV head, subvector); a stored code takes `codeBytes`. */
export function assignWork(shape: LayerShape, step: StepShape, perGroup: number, codeBytes: number): KernelWork {
  const groups = shape.batch * shape.kvHeads * shape.subvectors;
  const wordsRead = subWidth(shape) + shape.centroids * (subWidth(shape) + centroidWidth(shape));
  return { workgroups: groups * perGroup, bytesMoved: groups * step.nNew * (wordsRead * 4 + codeBytes) };
}

/** Codes in plain TypeScript, for every kernel that codes keys. */
export function assignTwin(
  shape: LayerShape,
  step: StepShape,
  { newKeys, centroids, phi }: HostBuffers,
  store: (group: number, i: number, code: number) => void,
): void {
  const d = subWidth(shape), width = centroidWidth(shape);
  for (let group = 0; group < shape.batch * shape.kvHeads * shape.subvectors; group++) {
    const kv = Math.floor(group / shape.subvectors), m = group % shape.subvectors;
    for (let i = 0; i < step.nNew; i++) {
      const key = kv * step.nNewKeys + step.firstNewKey + i;
      const x = [...newKeys.subarray((key * shape.subvectors + m) * d, (key * shape.subvectors + m + 1) * d)];
      if (shape.augmented) x.push(Math.sqrt(Math.max(phi[group] - x.reduce((sum, v) => sum + v * v, 0), 0)));
      let best = 0, nearest = NaN;
      for (let c = 0; c < shape.centroids; c++) {
        const at = (group * shape.centroids + c) * width;
        const distance = x.reduce((sum, v, j) => sum + (v - centroids[at + j]) ** 2, 0);
        if (distance < nearest || (Number.isNaN(nearest) && !Number.isNaN(distance))) {
          best = c;
          nearest = distance;
        }
      }
      store(group, step.nCoded - step.nNew + i, best);
    }
  }
}

/** Codes the step's new keys, one code per word. */
export const assign: Kernel = {
  name: "assign",
  wgsl: [
    "layer/layer.wgsl",
    "layer/columns.wgsl",
    "quantize/nearest.wgsl",
    "quantize/nearest_of_key.wgsl",
    "quantize/assign.wgsl",
  ],
  buffers: [reads(newKeys), reads(centroids), reads(phi), writes(codes)],
  plan: (shape) => ({ ...plainPlan(shape, INVOCATIONS), workgroupBytes: INVOCATIONS * 8 }),
  work: (shape, step) => assignWork(shape, step, step.nNew, 4),
  twin: (shape, step, buffers) =>
    assignTwin(shape, step, buffers, (group, i, code) => buffers.codes[group * step.codedStride + i] = code),
};
