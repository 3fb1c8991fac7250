/**
 * assign: codes of new keys, the nearest centroid per subvector. See `assign.wgsl`.
 *
 * @module
 */

import { type Kernel, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { centroids, codes, newKeys, phi } from "../layer/buffers.ts";
import { centroidWidth, subWidth } from "../shape.ts";

/** A power of two: the reduction halves. */
const INVOCATIONS = 64;

/** Codes the step's new keys, one code per word. */
export const assign: Kernel = {
  name: "assign",
  wgsl: ["layer/layer.wgsl", "quantize/nearest.wgsl", "quantize/assign.wgsl"],
  buffers: [reads(newKeys), reads(centroids), reads(phi), writes(codes)],
  plan: (shape) => ({ ...plainPlan(shape, INVOCATIONS), workgroupBytes: INVOCATIONS * 8 }),
  work(shape, step) {
    const groups = shape.batch * shape.kvHeads * shape.subvectors;
    const perCode = subWidth(shape) + shape.centroids * (subWidth(shape) + centroidWidth(shape)) + 1;
    return { workgroups: groups * step.nNew, bytesMoved: groups * step.nNew * perCode * 4 };
  },
  twin(shape, step, { newKeys, centroids, phi, codes }) {
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
        codes[group * step.codedStride + step.nCoded - step.nNew + i] = best;
      }
    }
  },
};
