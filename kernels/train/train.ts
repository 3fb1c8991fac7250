/**
 * What the kernels of the training share: sizes, buffers and the shape of a run. See `train.wgsl`.
 *
 * @module
 */

import { type BufferDef, type HostBuffers, layerOverrides } from "../gpu/kernel.ts";
import { centroidWidth, type LayerShape, type StepShape, subWidth } from "../shape.ts";

/** What can be chosen for the training. */
export interface TrainKernelOptions {
  /** How keys are kept. */
  readonly elements: "f32" | "f16";
  /** Share of a group's distortion: a group is done once it falls by no more. */
  readonly tolerance: number;
  /** Invocations of the kernel of the start: a power of two. */
  readonly startInvocations: number;
}

/** A slot of the sample without a key; twin of NO_KEY. */
export const NO_KEY = 0xffffffff;

/** Slots per workgroup of an assignment; twin of TILE. */
export const TILE = 128;

/** Slots that one workgroup sums up. */
export const PART = 1024;

/** Words of a group's state; twin of STATE_WORDS. */
export const STATE_WORDS = 4;

/** Words of a group's state: whether it is done, the distortion (f32), iterations, seed. */
export const STATE = { done: 0, distortion: 1, iterations: 2, seed: 3 } as const;

/** Points of a group that the start is drawn from at most; twin of MOST_START. */
export function mostStart({ centroids }: LayerShape): number {
  return Math.max(1024, 16 * centroids);
}

/** Points of a group that the start is drawn from. */
export function nStart(shape: LayerShape, { nNew }: StepShape): number {
  return Math.min(nNew, mostStart(shape));
}

/** (batch, KV head, subvector)s. */
export function nGroups(shape: LayerShape): number {
  return shape.batch * shape.kvHeads * shape.subvectors;
}

/** Tiles of a group. */
export function nTiles({ nNew }: StepShape): number {
  return Math.ceil(nNew / TILE);
}

/** Parts of a group's sample. */
export function nParts({ nNew }: StepShape): number {
  return Math.ceil(nNew / PART);
}

/**
 * The shape of a training run.
 *
 * @param keyStride tokens from one (batch, KV head) to the next in the keys
 * @param initOffset tokens before the first key
 * @param n keys per (batch, KV head) to train on
 * @param sampled how many of them the training looks at
 */
export function trainShape(keyStride: number, initOffset: number, n: number, sampled: number): StepShape {
  return {
    nCoded: n,
    nNew: sampled,
    firstNewKey: 0,
    nNewKeys: 0,
    initOffset,
    codedStride: 0,
    heavyStride: 0,
    listStride: 0,
    weightStride: 0,
    keyStride,
    rows: [],
  };
}

/** The first of the members of part `ix` of n members in `parts` parts; twin of `begin_of`. */
export function beginOf(ix: number, n: number, parts: number): number {
  return ix * Math.floor(n / parts) + Math.min(ix, n % parts);
}

/** Twin of `hash`. */
export function hash(x: number): number {
  const s = (Math.imul(x, 747796405) + 2891336453) >>> 0;
  const word = Math.imul((s >>> ((s >>> 28) + 4)) ^ s, 277803737) >>> 0;
  return ((word >>> 22) ^ word) >>> 0;
}

/** Keys `[B, Hkv, keyStride, D]`; the end of the last row is not touched. */
export function keysBuffer({ elements }: TrainKernelOptions): BufferDef {
  return {
    name: "keys",
    type: elements === "f32" ? "f32" : "u32",
    elements: (shape, { keyStride, initOffset, nCoded }) => {
      const values = ((shape.batch * shape.kvHeads - 1) * keyStride! + initOffset + nCoded) * shape.headWidth;
      return elements === "f32" ? values : Math.ceil(values / 2);
    },
  };
}

/** u32 `[B, Hkv, sampled]`: which key a slot looks at */
export const sampled: BufferDef = {
  name: "sampled",
  type: "u32",
  elements: (shape, { nNew }) => shape.batch * shape.kvHeads * nNew,
};

/** f32 `[B, Hkv, M, sampled]` with metric "ip", else empty: the augmented column */
export const extra: BufferDef = {
  name: "extra",
  type: "f32",
  elements: (shape, { nNew }) => shape.augmented ? nGroups(shape) * nNew : 0,
};

/** u32 `[B, Hkv]`: slots that have a key */
export const finite: BufferDef = {
  name: "finite",
  type: "u32",
  elements: (shape) => shape.batch * shape.kvHeads,
};

/** u32 `[groups, 4]`: see {@linkcode STATE} */
export const state: BufferDef = {
  name: "state",
  type: "u32",
  elements: (shape) => nGroups(shape) * STATE_WORDS,
};

/** f32 `[groups, C + 1, width + 1]`: see `train.wgsl` */
export const model: BufferDef = {
  name: "model",
  type: "f32",
  elements: (shape) => nGroups(shape) * (shape.centroids + 1) * (centroidWidth(shape) + 1),
};

/** u32 `[groups, tiles, 32]`: codes of the sample, four per word */
export const owners: BufferDef = {
  name: "owners",
  type: "u32",
  elements: (shape, step) => nGroups(shape) * nTiles(step) * TILE / 4,
};

/** u32 `[groups, C]`: keys per centroid */
export const counts: BufferDef = {
  name: "counts",
  type: "u32",
  elements: (shape) => nGroups(shape) * shape.centroids,
};

/** f32 `[groups, tiles, 4]`: sum of squared distances, the largest, its slot, 1 if the tile is close */
export const tileStats: BufferDef = {
  name: "tileStats",
  type: "f32",
  elements: (shape, step) => nGroups(shape) * nTiles(step) * 4,
};

/** f32: first the points of the start `[groups, width + 1, nStart]`, then the sums `[groups, parts, C, width]` */
export const work: BufferDef = {
  name: "work",
  type: "f32",
  elements: (shape, step) => {
    const width = centroidWidth(shape);
    return nGroups(shape) * Math.max((width + 1) * nStart(shape, step), nParts(step) * shape.centroids * width);
  },
};

/** The overrides of every kernel here. */
export function trainOverrides(shape: LayerShape, invocations: number): Record<string, number> {
  return { ...layerOverrides(shape), WG: invocations };
}

/** WGSL parts of a kernel that reads keys. */
export function keyParts({ elements }: TrainKernelOptions): string[] {
  return ["layer/layer.wgsl", "train/train.wgsl", `train/key_${elements}.wgsl`];
}

/** How a twin sees the buffers of a run. */
export class TrainView {
  readonly #shape: LayerShape;
  readonly #step: StepShape;
  readonly #buffers: HostBuffers;
  readonly #keys: ArrayLike<number>;

  /** Buffers by name; keys are unpacked if they are f16. */
  constructor(shape: LayerShape, step: StepShape, buffers: HostBuffers, options?: TrainKernelOptions) {
    this.#shape = shape;
    this.#step = step;
    this.#buffers = buffers;
    const { keys } = buffers;
    this.#keys = keys && options?.elements === "f16" ? new Float16Array(keys.slice().buffer) : keys;
  }

  /** Values of a key of a (batch, KV head). */
  key(kv: number, row: number): number[] {
    const { headWidth } = this.#shape, { keyStride, initOffset } = this.#step;
    const at = (kv * keyStride! + initOffset + row) * headWidth;
    return Array.from({ length: headWidth }, (_, j) => this.#keys[at + j]);
  }

  /** Values of a key's subvector. */
  subvector(kv: number, row: number, m: number): number[] {
    const d = subWidth(this.#shape);
    return this.key(kv, row).slice(m * d, (m + 1) * d);
  }

  /** The key that a slot looks at; undefined for none. */
  rowOf(group: number, slot: number): number | undefined {
    const row = this.#buffers.sampled[Math.floor(group / this.#shape.subvectors) * this.#step.nNew + slot];
    return row === NO_KEY ? undefined : row;
  }

  /** A slot's point, its augmented column included; undefined without a key. */
  point(group: number, slot: number): number[] | undefined {
    const row = this.rowOf(group, slot), { subvectors, augmented } = this.#shape;
    if (row === undefined) return undefined;
    const values = this.subvector(Math.floor(group / subvectors), row, group % subvectors);
    return augmented ? [...values, this.#buffers.extra[group * this.#step.nNew + slot]] : values;
  }

  /** Where row c of a group's model begins; row C is the origin. */
  modelRow(group: number, c: number): number {
    return (group * (this.#shape.centroids + 1) + c) * (centroidWidth(this.#shape) + 1);
  }

  /** Row c of a group's model without its half norm. */
  modelValues(group: number, c: number): number[] {
    const at = this.modelRow(group, c);
    return Array.from(this.#buffers.model.subarray(at, at + centroidWidth(this.#shape)));
  }

  /** A slot's point relative to the origin. */
  relative(group: number, slot: number): number[] | undefined {
    const origin = this.modelValues(group, this.#shape.centroids);
    return this.point(group, slot)?.map((x, j) => x - origin[j]);
  }

  /** Writes the half norms of a group's centroids. */
  writeHalfNorms(group: number): void {
    for (let c = 0; c < this.#shape.centroids; c++) {
      const values = this.modelValues(group, c);
      this.#buffers.model[this.modelRow(group, c) + values.length] = values.reduce((sum, x) => sum + x * x, 0) / 2;
    }
  }

  /** Whether a group is done. */
  isDone(group: number): boolean {
    return this.#buffers.state[group * STATE_WORDS + STATE.done] !== 0;
  }
}
