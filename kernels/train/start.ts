/**
 * The start of the training: which keys it looks at, and the first centroids. See `sample_keys.wgsl` and
 * `start_centroids.wgsl`.
 *
 * @module
 */

import { type Kernel, perElement, reads, writes } from "../gpu/kernel.ts";
import { phi } from "../layer/buffers.ts";
import { centroidWidth, elementBytes } from "../shape.ts";
import {
  beginOf,
  extra,
  finite,
  hash,
  keyParts,
  keysBuffer,
  model,
  mostStart,
  nGroups,
  NO_KEY,
  nStart,
  sampled,
  STATE,
  state,
  STATE_WORDS,
  type TrainKernelOptions,
  trainOverrides,
  TrainView,
  work,
} from "./train.ts";

const WG = 256;
const LARGEST = Math.fround(3.4028234e38);

/** The largest squared norm of every group, metric "ip". */
export function largestNorms(options: TrainKernelOptions): Kernel {
  return {
    name: "largest_norms",
    wgsl: [...keyParts(options), "train/largest_norms.wgsl"],
    buffers: [reads(keysBuffer(options)), writes({ ...phi, type: "u32" })], // as bits
    plan: (shape) => ({ overrides: trainOverrides(shape, WG), invocations: WG, workgroupBytes: 0 }),
    work(shape, step) {
      const subvectors = shape.augmented ? nGroups(shape) * step.nCoded : 0;
      return perElement(subvectors, WG, 4 * keysBuffer(options).elements(shape, step));
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers, options);
      for (let group = 0; group < nGroups(shape); group++) {
        const kv = Math.floor(group / shape.subvectors);
        let largest = 0;
        for (let row = 0; row < step.nCoded; row++) {
          const values = view.subvector(kv, row, group % shape.subvectors);
          if (values.every(Number.isFinite)) largest = Math.max(largest, values.reduce((sum, x) => sum + x * x, 0));
        }
        buffers.phi[group] = new Uint32Array(Float32Array.of(largest).buffer)[0];
      }
    },
  };
}

/** Which keys the training looks at. */
export function sampleKeys(options: TrainKernelOptions): Kernel {
  const parts = keyParts(options);
  return {
    name: "sample_keys",
    wgsl: [...parts, "train/hash.wgsl", "train/sample_keys.wgsl"],
    buffers: [reads(keysBuffer(options)), reads(state), reads(phi), writes(sampled), writes(extra), writes(finite)],
    plan: (shape) => ({ overrides: trainOverrides(shape, WG), invocations: WG, workgroupBytes: 0 }),
    work(shape, step) {
      const slots = sampled.elements(shape, step);
      const element = elementBytes(options.elements);
      return perElement(slots, WG, slots * (shape.headWidth * element + 4) + 4 * extra.elements(shape, step));
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers, options);
      for (let kv = 0; kv < shape.batch * shape.kvHeads; kv++) {
        const seed = hash(buffers.state[kv * shape.subvectors * STATE_WORDS + STATE.seed]);
        for (let slot = 0; slot < step.nNew; slot++) {
          const begin = beginOf(slot, step.nCoded, step.nNew);
          const size = beginOf(slot + 1, step.nCoded, step.nNew) - begin;
          const first = hash((seed + slot) >>> 0) % size;
          const tried = Array.from({ length: size }, (_, n) => begin + (first + n) % size);
          const row = tried.find((candidate) => view.key(kv, candidate).every(Number.isFinite));
          buffers.sampled[kv * step.nNew + slot] = row ?? NO_KEY;
          if (row === undefined) continue;
          buffers.finite[kv]++;
          for (let m = 0; shape.augmented && m < shape.subvectors; m++) {
            const group = kv * shape.subvectors + m;
            const norm = view.subvector(kv, row, m).reduce((sum, x) => sum + x * x, 0);
            buffers.extra[group * step.nNew + slot] = Math.sqrt(Math.max(buffers.phi[group] - norm, 0));
          }
        }
      }
    },
  };
}

/** The points that the start is drawn from. */
export function startPoints(options: TrainKernelOptions): Kernel {
  return {
    name: "start_points",
    wgsl: [...keyParts(options), "train/start.wgsl", "train/start_points.wgsl"],
    buffers: [reads(keysBuffer(options)), reads(sampled), reads(extra), writes(work)],
    plan: (shape) => ({
      overrides: { ...trainOverrides(shape, WG), MOST_START: mostStart(shape) },
      invocations: WG,
      workgroupBytes: 0,
    }),
    work(shape, step) {
      const values = nGroups(shape) * nStart(shape, step) * (centroidWidth(shape) + 1);
      return perElement(values, WG, 8 * values);
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers, options);
      const n = nStart(shape, step), width = centroidWidth(shape);
      for (let group = 0; group < nGroups(shape); group++) {
        for (let t = 0; t < n; t++) {
          const point = view.point(group, beginOf(t, step.nNew, n));
          const column = [...point ?? new Array(width).fill(0), point ? LARGEST : -1];
          column.forEach((value, j) => buffers.work[(group * (width + 1) + j) * n + t] = value);
        }
      }
    },
  };
}

/** The first centroids: k-means++. */
export function startCentroids(options: TrainKernelOptions): Kernel {
  const { startInvocations } = options;
  return {
    name: "start_centroids",
    wgsl: [
      "layer/layer.wgsl",
      "train/train.wgsl",
      "train/hash.wgsl",
      "train/start.wgsl",
      "train/half_norms.wgsl",
      "train/start_centroids.wgsl",
    ],
    buffers: [writes(work), reads(state), writes(model)],
    plan: (shape) => ({
      overrides: { ...trainOverrides(shape, startInvocations), MOST_START: mostStart(shape) },
      invocations: startInvocations,
      workgroupBytes: 4 * (centroidWidth(shape) + 1) + 8,
    }),
    work(shape, step) {
      const each = nStart(shape, step) * (centroidWidth(shape) + 2);
      const workgroups = step.nNew > 0 ? nGroups(shape) : 0;
      return { workgroups, bytesMoved: 4 * nGroups(shape) * shape.centroids * each };
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers);
      const n = nStart(shape, step), width = centroidWidth(shape), { centroids } = shape;
      for (let group = 0; group < nGroups(shape); group++) {
        const at = (j: number, t: number) => (group * (width + 1) + j) * n + t;
        const point = (t: number) => Array.from({ length: width }, (_, j) => buffers.work[at(j, t)]);
        const seed = hash((buffers.state[group * STATE_WORDS + STATE.seed] ^ 0x9e3779b9) >>> 0);
        const some = Math.min(n, 64);
        const first = Array.from({ length: some }, (_, s) => beginOf(s, n, some))
          .filter((t) => buffers.work[at(width, t)] > 0).map(point);
        const origin = Array.from(
          { length: width },
          (_, j) => first.reduce((sum, values) => sum + values[j], 0) / Math.max(first.length, 1),
        );
        buffers.model.set([...origin, 0], view.modelRow(group, centroids));
        for (let c = 0; c < centroids; c++) {
          let pick = 0, earliest = Infinity;
          for (let t = 0; t < n; t++) {
            const distance = buffers.work[at(width, t)];
            if (distance < 0) continue;
            const bits = hash((seed + Math.imul(c, 0x85ebca6b) + t) >>> 0);
            const wait = -Math.log(((bits >>> 9) + 0.5) / 2 ** 23);
            const time = c === 0 ? wait : distance > 0 ? Math.min(wait / distance, 3.4e38) : LARGEST;
            if (time < earliest) {
              earliest = time;
              pick = t;
            }
          }
          const centre = point(pick);
          buffers.model.set(centre.map((x, j) => x - origin[j]), view.modelRow(group, c));
          for (let t = 0; t < n; t++) {
            const before = buffers.work[at(width, t)];
            if (before <= 0) continue;
            const distance = centre.reduce((sum, x, j) => sum + (buffers.work[at(j, t)] - x) ** 2, 0);
            buffers.work[at(width, t)] = Math.min(before, distance);
          }
        }
        view.writeHalfNorms(group);
      }
    },
  };
}
