/**
 * One iteration of k-means (Lloyd): five kernels. See `assign_sample.wgsl`, `assign_close.wgsl`, `sum_clusters.wgsl`, `move_centroids.wgsl` and
 * `fill_empty.wgsl`.
 *
 * @module
 */

import { type HostBuffers, type Kernel, perElement, reads, writes } from "../gpu/kernel.ts";
import { centroids } from "../layer/buffers.ts";
import { centroidWidth, elementBytes, type LayerShape, type StepShape } from "../shape.ts";
import {
  counts,
  extra,
  keyParts,
  keysBuffer,
  model,
  nGroups,
  nParts,
  nTiles,
  owners,
  PART,
  sampled,
  STATE,
  state,
  STATE_WORDS,
  TILE,
  tileStats,
  type TrainKernelOptions,
  trainOverrides,
  TrainView,
  work,
} from "./train.ts";

const WG = 256;

/** Bytes of workgroup memory that sums may take: what every device has. */
const SUM_BYTES = 16384;

/** Columns that one workgroup sums up. */
function sumColumns(shape: LayerShape): number {
  let columns = 64;
  while (4 * columns * shape.centroids > SUM_BYTES) columns /= 2;
  return columns;
}

function bytesOfSample(options: TrainKernelOptions, shape: LayerShape, step: StepShape): number {
  const slots = sampled.elements(shape, step);
  return slots * (shape.headWidth * elementBytes(options.elements) + 4 * shape.subvectors) +
    4 * extra.elements(shape, step);
}

/** The nearest centroid of every slot. */
export function assignSample(options: TrainKernelOptions): Kernel {
  return {
    name: "assign_sample",
    wgsl: [...keyParts(options), "train/points.wgsl", "train/tile_stats.wgsl", "train/assign_sample.wgsl"],
    buffers: [
      reads(keysBuffer(options)),
      reads(sampled),
      reads(extra),
      reads(model),
      reads(state),
      writes(owners),
      writes(counts),
      writes(tileStats),
    ],
    plan: (shape) => ({ overrides: trainOverrides(shape, WG), invocations: WG, workgroupBytes: 15488 }),
    work(shape, step) {
      const tiles = nGroups(shape) * nTiles(step);
      const blocks = Math.ceil(shape.centroids / 64);
      const perTile = shape.centroids * (centroidWidth(shape) + 1) * 4 + TILE + 16;
      return { workgroups: tiles, bytesMoved: blocks * bytesOfSample(options, shape, step) + tiles * perTile };
    },
    twin: (shape, step, buffers) => assignTiles(shape, step, buffers, options, false),
  };
}

/** A tile whose squared distances add up to less than this share of its |x|² is close, see `assign_sample.wgsl`. */
const CLOSE_SHARE = 2 ** -10;

/** The nearest centroid of every slot of a close tile, by differences. */
export function assignClose(options: TrainKernelOptions): Kernel {
  const { buffers } = assignSample(options);
  return {
    name: "assign_close",
    wgsl: [...keyParts(options), "train/points.wgsl", "train/tile_stats.wgsl", "train/assign_close.wgsl"],
    buffers,
    plan: (shape) => ({ overrides: trainOverrides(shape, TILE), invocations: TILE, workgroupBytes: 2576 }),
    // What most steps find: nothing but a look at the statistics.
    work: (shape, step) => ({
      workgroups: nGroups(shape) * nTiles(step),
      bytesMoved: 16 * nGroups(shape) * nTiles(step),
    }),
    twin: (shape, step, buffers) => assignTiles(shape, step, buffers, options, true),
  };
}

/**
 * Assigns the keys of tiles, exactly.
 *
 * @param again only those of close tiles, whose keys were assigned and counted before
 */
function assignTiles(
  shape: LayerShape,
  step: StepShape,
  buffers: HostBuffers,
  options: TrainKernelOptions,
  again: boolean,
): void {
  const view = new TrainView(shape, step, buffers, options), owners = new Uint8Array(buffers.owners.buffer);
  for (let group = 0; group < nGroups(shape); group++) {
    if (view.isDone(group)) continue;
    const rows = Array.from({ length: shape.centroids }, (_, c) => view.modelValues(group, c));
    for (let tile = 0; tile < nTiles(step); tile++) {
      const at = group * nTiles(step) + tile;
      if (again && buffers.tileStats[4 * at + 3] === 0) continue;
      const stats = [0, 0, tile * TILE, 0];
      let size = 0;
      for (let i = 0; i < TILE; i++) {
        const slot = tile * TILE + i, point = slot < step.nNew ? view.relative(group, slot) : undefined;
        let best = 0, nearest = Infinity;
        if (point) {
          rows.forEach((row, c) => {
            const distance = row.reduce((sum, x, j) => sum + (point[j] - x) ** 2, 0);
            if (distance < nearest) {
              nearest = distance;
              best = c;
            }
          });
          if (again) buffers.counts[group * shape.centroids + owners[at * TILE + i]]--;
          buffers.counts[group * shape.centroids + best]++;
          stats[0] += nearest;
          if (nearest > stats[1]) stats.splice(1, 2, nearest, slot);
          size += point.reduce((sum, x) => sum + x * x, 0);
        }
        owners[at * TILE + i] = best;
      }
      stats[3] = Number(!again && stats[0] < CLOSE_SHARE * size);
      buffers.tileStats.set(stats, 4 * at);
    }
  }
}

/** Sums of the keys of every centroid, by parts of the sample. */
export function sumClusters(options: TrainKernelOptions): Kernel {
  return {
    name: "sum_clusters",
    wgsl: [...keyParts(options), "train/points.wgsl", "train/sum_clusters.wgsl"],
    buffers: [
      reads(keysBuffer(options)),
      reads(sampled),
      reads(extra),
      reads(model),
      reads(state),
      reads(owners),
      writes(work),
    ],
    plan(shape) {
      const columns = sumColumns(shape);
      return {
        overrides: { ...trainOverrides(shape, columns), PART },
        invocations: columns,
        workgroupBytes: 4 * columns * shape.centroids,
      };
    },
    work(shape, step) {
      const columns = sumColumns(shape), width = centroidWidth(shape), parts = nGroups(shape) * nParts(step);
      const sums = parts * shape.centroids * width;
      return {
        workgroups: parts * Math.ceil(width / columns),
        bytesMoved: bytesOfSample(options, shape, step) + 4 * (owners.elements(shape, step) + sums),
      };
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers, options), width = centroidWidth(shape);
      for (let group = 0; group < nGroups(shape); group++) {
        if (view.isDone(group)) continue;
        for (let part = 0; part < nParts(step); part++) {
          const sums = new Float64Array(shape.centroids * width);
          for (let slot = part * PART; slot < Math.min((part + 1) * PART, step.nNew); slot++) {
            const word = buffers.owners[group * nTiles(step) * TILE / 4 + (slot >> 2)];
            const c = word >>> (slot & 3) * 8 & 0xff;
            view.relative(group, slot)?.forEach((x, j) => sums[c * width + j] += x);
          }
          buffers.work.set(sums, (group * nParts(step) + part) * shape.centroids * width);
        }
      }
    },
  };
}

/** Centroids become the means of their keys. */
export function moveCentroids(): Kernel {
  return {
    name: "move_centroids",
    wgsl: ["layer/layer.wgsl", "train/train.wgsl", "train/move_centroids.wgsl"],
    buffers: [reads(work), reads(counts), reads(state), writes(model)],
    plan: (shape) => ({ overrides: { ...trainOverrides(shape, WG), PART }, invocations: WG, workgroupBytes: 0 }),
    work(shape, step) {
      const values = step.nNew > 0 ? nGroups(shape) * shape.centroids * centroidWidth(shape) : 0;
      return perElement(values, WG, 4 * values * (nParts(step) + 1));
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers), width = centroidWidth(shape);
      const values = shape.centroids * width;
      for (let group = 0; group < nGroups(shape); group++) {
        if (view.isDone(group)) continue;
        for (let value = 0; value < values; value++) {
          const c = Math.floor(value / width), count = buffers.counts[group * shape.centroids + c];
          if (count === 0) continue;
          let sum = 0;
          for (let part = 0; part < nParts(step); part++) {
            sum += buffers.work[(group * nParts(step) + part) * values + value];
          }
          buffers.model[view.modelRow(group, c) + value % width] = sum / count;
        }
      }
    },
  };
}

/** Empty clusters are re-seeded; half norms; the result; whether groups are done. */
export function fillEmpty(options: TrainKernelOptions): Kernel {
  return {
    name: "fill_empty",
    wgsl: [...keyParts(options), "train/points.wgsl", "train/half_norms.wgsl", "train/fill_empty.wgsl"],
    buffers: [
      reads(keysBuffer(options)),
      reads(sampled),
      reads(extra),
      writes(model),
      writes(state),
      writes(counts),
      writes(tileStats),
      writes(centroids),
    ],
    plan: (shape) => ({
      overrides: { ...trainOverrides(shape, WG), TOLERANCE: options.tolerance },
      invocations: WG,
      workgroupBytes: 4 * WG + 12 + 1024,
    }),
    work(shape, step) {
      const bytes = 4 * (2 * model.elements(shape, step) + 2 * counts.elements(shape, step) +
        tileStats.elements(shape, step) + centroids.elements(shape, step));
      return { workgroups: step.nNew > 0 ? nGroups(shape) : 0, bytesMoved: bytes };
    },
    twin(shape, step, buffers) {
      const view = new TrainView(shape, step, buffers, options), width = centroidWidth(shape);
      for (let group = 0; group < nGroups(shape); group++) {
        if (view.isDone(group)) continue;
        const stats = (tile: number) => (group * nTiles(step) + tile) * 4;
        const tiles = Array.from({ length: nTiles(step) }, (_, tile) => tile);
        const distortion = tiles.reduce((sum, tile) => sum + buffers.tileStats[stats(tile)], 0);
        let filled = 0;
        for (let c = 0; c < shape.centroids; c++) {
          if (buffers.counts[group * shape.centroids + c] > 0) continue;
          const far = tiles.reduce((a, b) => buffers.tileStats[stats(b) + 1] > buffers.tileStats[stats(a) + 1] ? b : a);
          if (!(buffers.tileStats[stats(far) + 1] > 0)) break;
          buffers.model.set(view.relative(group, buffers.tileStats[stats(far) + 2])!, view.modelRow(group, c));
          buffers.tileStats[stats(far) + 1] = 0;
          filled++;
        }
        buffers.counts.fill(0, group * shape.centroids, (group + 1) * shape.centroids);
        view.writeHalfNorms(group);
        const origin = view.modelValues(group, shape.centroids);
        for (let c = 0; c < shape.centroids; c++) {
          const values = view.modelValues(group, c).map((x, j) => x + origin[j]);
          buffers.centroids.set(values, (group * shape.centroids + c) * width);
        }
        const at = group * STATE_WORDS;
        const before = new Float32Array(new Uint32Array([buffers.state[at + STATE.distortion]]).buffer)[0];
        const made = buffers.state[at + STATE.iterations];
        buffers.state[at + STATE.distortion] = new Uint32Array(Float32Array.of(distortion).buffer)[0];
        buffers.state[at + STATE.iterations] = made + 1;
        const isStill = made > 0 && before - distortion <= options.tolerance * before;
        buffers.state[at + STATE.done] = Number(isStill && filled === 0);
      }
    },
  };
}
