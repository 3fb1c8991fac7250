/**
 * widen_keys: f16 keys as f32. See `widen_keys.wgsl`.
 *
 * @module
 */

import { type Kernel, perElement, plainPlan, reads, writes } from "../gpu/kernel.ts";
import { newKeys } from "../layer/buffers.ts";
import { keyParts, keysBuffer, type TrainKernelOptions, TrainView } from "./train.ts";

const HALF: TrainKernelOptions = { elements: "f16", tolerance: 0, startInvocations: 64 };

/** Some of the keys as f32. */
export const widenKeys: Kernel = {
  name: "widen_keys",
  wgsl: [...keyParts(HALF), "train/widen_keys.wgsl"],
  buffers: [
    reads(keysBuffer(HALF)),
    writes({ ...newKeys, elements: (shape, { nNew }) => shape.batch * shape.kvHeads * nNew * shape.headWidth }),
  ],
  plan: (shape) => plainPlan(shape),
  work(shape, { nNew }) {
    const values = shape.batch * shape.kvHeads * nNew * shape.headWidth;
    return perElement(values, 256, 6 * values);
  },
  twin(shape, step, buffers) {
    const view = new TrainView(shape, step, buffers, HALF);
    for (let kv = 0; kv < shape.batch * shape.kvHeads; kv++) {
      for (let row = 0; row < step.nNew; row++) {
        buffers.newKeys.set(view.key(kv, row), (kv * step.nNew + row) * shape.headWidth);
      }
    }
  },
};
