/**
 * Decode attention over a selection, or over all cached tokens, on the GPU: softmax(q·k / √D) and the sum of the values
 * under it.
 *
 * @module
 */

import {
  type GpuInput,
  isGpuInput,
  type OwnedBuffer,
  type ResolvedInput,
  resolveInput,
} from "../kernels/gpu/buffers.ts";
import { Gpu } from "../kernels/gpu/device.ts";
import { CompiledKernel, type Kernel } from "../kernels/gpu/kernel.ts";
import { attendMerge, type AttendOptions, attendParts, output, partial } from "../kernels/attend/attend.ts";
import { query as QUERY } from "../kernels/layer/buffers.ts";
import { type LayerShape, MAX_ROWS, nLists, PARAMS_BYTES, type RowShape, type StepShape } from "../kernels/shape.ts";
import { knowOptions, refuse, show } from "./config.ts";
import { PARAM_SLOTS, ParamsRing } from "./pipelines/params_ring.ts";
import type { Selection } from "./selection.ts";

/** Options of {@linkcode Attention.create}. */
export interface AttentionOptions {
  /** B. Default 1. */
  readonly batch?: number;
  /** H: query heads. */
  readonly heads: number;
  /** Hkv: KV heads; divides H. Default H. */
  readonly kvHeads?: number;
  /** D: a multiple of 8, at most 256. */
  readonly headWidth: number;
  /** How keys and values are kept. Default "f32". */
  readonly elements?: "f32" | "f16";
  /** Whether a selection's dense weights multiply: as log-weights, 0 excludes. Default false: all that is listed counts alike. */
  readonly weights?: boolean;
  /**
   * Lists per batch and row of its selections: `heads` (the default), or `kvHeads` for an index that pools, whose lists all
   * heads of a KV head attend to.
   */
  readonly listHeads?: number;
  /** The caller's device. Default: the library's own. */
  readonly device?: GPUDevice;
}

/** What to attend to. */
export interface AttentionStep {
  /** f32 `[B, H, rows, D]`. */
  readonly query: GpuInput | Float32Array;
  /** `[B, Hkv, stride, D]`, f32 or f16 as created. */
  readonly keys: GpuInput;
  /** The same of values. */
  readonly values: GpuInput;
  /** Tokens from one (batch, KV head) to the next in `keys` and `values`. */
  readonly stride: number;
  /**
   * N: cached tokens; without a selection the last query row sees all of them, row r of sq all but sq − 1 − r. With one it is
   * the N of its index at that step.
   */
  readonly tokens: number;
  /** Which tokens; default: all, dense attention. Its batch and heads must be those of the attention. */
  readonly selection?: Selection;
  /** Query rows. Default: the selection's, or 1. */
  readonly rows?: number;
}

/** A result of attention; valid until the next call. */
export interface AttentionResult {
  /** f32 `[B, H, rows, D]` on the GPU. */
  readonly buffer: ResolvedInput;
  /** Copies it to the host; waits for the GPU. */
  read(): Promise<Float32Array>;
}

const ACTION = "attend";

/** Invocations per workgroup, the best first: a part of a list is one round of them, one of all tokens some rounds. */
const SIZES: Readonly<Record<AttendOptions["tokens"], readonly number[]>> = {
  listed: [512, 256, 128],
  all: [256, 128],
};

/** Rounds of a workgroup that attends to all tokens, at most. */
const MOST_ROUNDS = 6;

/** As many workgroups as rounds are to leave: some for every multiprocessor of a large GPU. */
const WORKGROUPS = 256;

const CREATE_OPTIONS: readonly (keyof AttentionOptions)[] = [
  "batch",
  "heads",
  "kvHeads",
  "headWidth",
  "elements",
  "weights",
  "listHeads",
  "device",
];

const STEP_OPTIONS: readonly (keyof AttentionStep)[] = [
  "query",
  "keys",
  "values",
  "stride",
  "tokens",
  "selection",
  "rows",
];

/** Attention of one layer's shape. It owns its buffers: call `destroy()`, or use `using`. */
export class Attention {
  /** Its shape. */
  readonly shape: LayerShape;
  readonly #gpu: Gpu;
  readonly #options: Readonly<Record<AttendOptions["tokens"], AttendOptions>>;
  readonly #kernels: Record<AttendOptions["tokens"], readonly CompiledKernel[]>;
  readonly #params: OwnedBuffer;
  readonly #ring: ParamsRing;
  readonly #owned = new Map<string, OwnedBuffer>();
  #waiting = 0;
  #generation = 0;
  #last: Promise<unknown> = Promise.resolve();
  #isDestroyed = false;

  private constructor(
    gpu: Gpu,
    shape: LayerShape,
    options: Readonly<Record<AttendOptions["tokens"], AttendOptions>>,
    kernels: Record<AttendOptions["tokens"], readonly CompiledKernel[]>,
    params: OwnedBuffer,
    slotBytes: number,
  ) {
    this.#gpu = gpu;
    this.shape = shape;
    this.#options = options;
    this.#kernels = kernels;
    this.#params = params;
    this.#ring = new ParamsRing(gpu.device.queue, params.buffer, slotBytes);
  }

  /**
   * Compiles the kernels for a shape.
   *
   * @example
   * ```ts
   * import { Attention, Gpu } from "@sparse-attention/pq-indexer";
   *
   * if (await Gpu.shared().catch(() => undefined)) {
   *   using attention = await Attention.create({ heads: 2, headWidth: 8 });
   *   const gpu = await Gpu.shared();
   *   using keys = await gpu.upload("keys", new Float32Array(2 * 16 * 8));
   *   using values = await gpu.upload("values", new Float32Array(2 * 16 * 8).fill(3));
   *   const step = { query: new Float32Array(16).fill(1), keys: keys.buffer, values: values.buffer, stride: 16, tokens: 10 };
   *   const output = await (await attention.attend(step)).read(); // f32 [1, 2, 1, 8]
   *   console.assert(output.every((x) => Math.abs(x - 3) < 1e-5));
   * }
   * ```
   *
   * @throws {RangeError} for a shape that the kernels cannot have
   * @throws {GpuUnavailableError} without a GPU
   */
  static async create(options: AttentionOptions): Promise<Attention> {
    knowOptions("create attention", options, CREATE_OPTIONS);
    const { batch = 1, heads, kvHeads = heads, headWidth, elements = "f32", weights = false, device } = options;
    const { listHeads = heads } = options;
    const action = "create attention";
    for (const [name, value] of Object.entries({ batch, heads, kvHeads, headWidth })) {
      if (!Number.isInteger(value) || value < 1) {
        refuse(action, `${name} must be an integer ≥ 1`, `${name} is ${value}`);
      }
    }
    if (heads % kvHeads !== 0) {
      refuse(action, "kvHeads must divide heads", `heads is ${heads}, kvHeads is ${kvHeads}`);
    }
    if (listHeads !== heads && listHeads !== kvHeads) {
      refuse(action, "listHeads must be heads or kvHeads", `listHeads is ${show(listHeads)}`);
    }
    if (headWidth % 8 !== 0 || headWidth > 256) {
      refuse(action, "headWidth must be a multiple of 8, at most 256", `headWidth is ${headWidth}`);
    }
    if (elements !== "f32" && elements !== "f16") {
      refuse(action, 'elements must be "f32" or "f16"', `elements is ${JSON.stringify(elements)}`);
    }
    const gpu = device ? await Gpu.of(device) : await Gpu.shared();
    const shape: LayerShape = { batch, heads, kvHeads, headWidth, subvectors: 1, centroids: 1, augmented: false };
    const { limits, subgroupSize } = gpu;
    const most = Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX);
    const at = (tokens: AttendOptions["tokens"], invocations: number): AttendOptions => {
      const own = { elements, weights: weights && tokens === "listed", listHeads, invocations, subgroupSize };
      // A list is one round; where all tokens are read, more of them share what a workgroup begins and ends with.
      return { ...own, tokens, mostRounds: tokens === "all" ? MOST_ROUNDS : 1, workgroups: WORKGROUPS };
    };
    const fits = (own: AttendOptions) =>
      own.invocations <= most &&
      attendParts(own).plan(shape).workgroupBytes <= limits.maxComputeWorkgroupStorageSize;
    const chosen = (tokens: AttendOptions["tokens"]) =>
      SIZES[tokens].map((invocations) => at(tokens, invocations)).find(fits) ?? at(tokens, 64);
    const sizes = { listed: chosen("listed"), all: chosen("all") };
    const compile = (own: AttendOptions) => {
      const kernels: Kernel[] = [attendParts(own), attendMerge(own)];
      return Promise.all(kernels.map((kernel) => CompiledKernel.create(gpu, kernel, shape)));
    };
    const [listed, all] = await Promise.all([compile(sizes.listed), compile(sizes.all)]);
    const alignment = limits.minUniformBufferOffsetAlignment;
    const slotBytes = Math.ceil(PARAMS_BYTES / alignment) * alignment;
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    const params = await gpu.allocate("attention params", slotBytes * PARAM_SLOTS, usage);
    return new Attention(gpu, shape, sizes, { listed, all }, params, slotBytes);
  }

  /**
   * Makes room for steps of up to `rows` query rows that attend to up to `tokens` tokens each, and tells that all recorded
   * steps were submitted. A result whose buffer it replaces is no longer valid.
   */
  reserve(tokens: number, rows = 1): Promise<void> {
    return this.#exclusive(() => {
      this.#waiting = 0;
      return this.#makeRoom(tokens, rows);
    });
  }

  async #makeRoom(tokens: number, rows: number): Promise<void> {
    const step = this.#stepShape(rows, tokens, { tokens, stride: tokens });
    for (const def of [output, partial(this.#options.listed), partial(this.#options.all)]) {
      await this.#own(def.name, 4 * Math.max(4, def.elements(this.shape, step)));
    }
  }

  /** An own buffer of at least so many bytes. */
  async #own(name: string, bytes: number): Promise<OwnedBuffer> {
    const old = this.#owned.get(name);
    if (old && old.bytes >= bytes) return old;
    const grown = await this.#gpu.allocate(name, bytes);
    this.#owned.set(name, grown);
    old?.destroy();
    this.#generation++;
    for (const kernel of [...this.#kernels.all, ...this.#kernels.listed]) kernel.forgetBuffers();
    return grown;
  }

  /** One call after the other. */
  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    this.#assertAlive();
    const result = this.#last.then(() => {
      this.#assertAlive();
      return work();
    });
    this.#last = result.catch(() => {});
    return result;
  }

  #assertAlive(): void {
    if (this.#isDestroyed) throw new TypeError("Cannot use this attention as it was destroyed: create another");
    this.#gpu.assertAlive();
  }

  /**
   * Attends. A list that is empty gives zeros. A typed query is copied before the call returns.
   *
   * @throws {RangeError | TypeError} for buffers that are too small, a query that is not finite, a selection of another shape
   * or one that a later call of its index has replaced
   */
  attend(step: AttentionStep): Promise<AttentionResult> {
    const given = step.query;
    const query = given instanceof Float32Array ? given.slice() : given;
    return this.#exclusive(async () => {
      const rows = this.#check(step);
      const bytes = 4 * this.shape.batch * this.shape.heads * rows * this.shape.headWidth;
      if (query instanceof Float32Array) {
        if (query.byteLength !== bytes) {
          refuse(ACTION, `query must be f32 [B, H, rows, D], ${bytes / 4} values`, `length is ${query.length}`);
        }
        const at = query.findIndex((value) => !Number.isFinite(value));
        if (at >= 0) refuse(ACTION, "query must be finite", `value ${at} is ${query[at]}`);
      }
      await this.#makeRoom(this.#attended(step), rows);
      let input = query;
      if (input instanceof Float32Array) {
        const { buffer } = await this.#own(QUERY.name, bytes);
        this.#gpu.device.queue.writeBuffer(buffer, 0, input as Float32Array<ArrayBuffer>);
        input = { buffer, size: bytes };
      }
      return await this.#gpu.submit("attend", (encoder) => {
        const pass = encoder.beginComputePass({ label: "attend" });
        const result = this.record(pass, { ...step, query: input });
        this.#waiting--; // it is submitted at once
        pass.end();
        return result;
      });
    });
  }

  /**
   * Encodes a step into the caller's pass; needs the room that {@linkcode Attention.reserve} makes. At most 64 recorded steps
   * may wait for their submit; `reserve` tells that they were submitted.
   *
   * @throws {RangeError | TypeError} as {@linkcode Attention.attend}, and without room
   */
  record(pass: GPUComputePassEncoder, step: AttentionStep): AttentionResult {
    this.#assertAlive();
    const rows = this.#check(step);
    if (!isGpuInput(step.query)) {
      throw new TypeError(
        "Cannot attend as a recorded step takes its query from a GPU buffer: pass one, or call attend()",
      );
    }
    if (this.#waiting >= PARAM_SLOTS) {
      refuse(
        ACTION,
        `at most ${PARAM_SLOTS} recorded steps may wait for their submit`,
        `${this.#waiting} were recorded`,
      );
    }
    const kernels = this.#kernels[step.selection ? "listed" : "all"];
    const shape = this.#stepShape(rows, this.#attended(step), step);
    const buffers = new Map<string, ResolvedInput>();
    const { limits } = this.#gpu;
    const selected = step.selection?.buffers;
    const given: Record<string, GpuInput | undefined> = {
      query: step.query,
      keys: step.keys,
      values: step.values,
      indices: selected?.indices,
      lengths: selected?.lengths,
      weights: selected?.weights,
    };
    for (const use of kernels.flatMap(({ kernel }) => kernel.buffers)) {
      const bytes = 4 * use.elements(this.shape, shape);
      const input = given[use.name];
      if (input) {
        buffers.set(use.name, resolveInput(use.name, input, bytes, limits));
      } else {
        const own = this.#owned.get(use.name);
        if (!own || own.bytes < bytes) {
          refuse(ACTION, "there must be room: call reserve() first", `${use.name} needs ${bytes} bytes`);
        }
        buffers.set(use.name, { buffer: own.buffer, offset: 0, size: own.bytes });
      }
    }
    const offset = this.#ring.place(shape, PARAM_SLOTS - this.#waiting);
    this.#waiting++;
    const generation = ++this.#generation;
    for (const kernel of kernels) {
      kernel.record(pass, shape, { buffer: this.#params.buffer, offset }, (name) => buffers.get(name)!);
    }
    const buffer = buffers.get(output.name)!;
    const read = async () => {
      if (generation !== this.#generation) {
        refuse("read this attention", "a result is valid until the next call", "there was one since");
      }
      const [bytes] = await this.#gpu.read([{
        ...buffer,
        bytes: 4 * nLists(this.shape, shape) * this.shape.headWidth,
      }]);
      return new Float32Array(bytes);
    };
    return { buffer, read };
  }

  /** The most tokens that a list of this step may have. */
  #attended({ selection, tokens }: AttentionStep): number {
    return Math.max(1, selection ? selection.listStride : tokens);
  }

  #stepShape(
    rows: number,
    attended: number,
    { stride, tokens, selection }: Pick<AttentionStep, "stride" | "tokens" | "selection">,
  ): StepShape {
    const row = (r: number): RowShape => ({
      nTokens: Math.max(0, tokens - rows + 1 + r),
      nSink: 0,
      nHeavy: 0,
      windowBegin: 0,
      candBegin: 0,
      candEnd: 0,
      listLength: 0,
    });
    return {
      nCoded: 0,
      nNew: 0,
      firstNewKey: 0,
      nNewKeys: 0,
      initOffset: 0,
      codedStride: 0,
      heavyStride: 0,
      listStride: selection?.listStride ?? 0,
      weightStride: selection?.weightStride ?? 0,
      keyStride: stride,
      attended,
      rows: Array.from({ length: rows }, (_, r) => row(r)),
    };
  }

  /** Checks what can be checked without a buffer's content; the number of query rows. */
  #check(step: AttentionStep): number {
    knowOptions(ACTION, step, STEP_OPTIONS);
    const { stride, tokens, selection, keys, values } = step;
    const { batch } = this.shape, heads = this.#options.listed.listHeads!;
    const rows = selection?.rows ?? step.rows ?? 1;
    if (step.rows !== undefined && step.rows !== rows) {
      refuse(ACTION, "rows must be the selection's", `rows is ${step.rows}, the selection has ${rows}`);
    }
    if (!Number.isInteger(rows) || rows < 1 || rows > MAX_ROWS) {
      refuse(ACTION, `rows must be an integer 1 to ${MAX_ROWS}`, `rows is ${rows}`);
    }
    if (!Number.isSafeInteger(tokens) || tokens < 0) {
      refuse(ACTION, "tokens must be an integer ≥ 0", `tokens is ${tokens}`);
    }
    if (selection?.tokens !== undefined && selection.tokens !== tokens) {
      const why = tokens < selection.tokens
        ? "count the keys that its step appended, and write them to the cache"
        : "its step was not given the newest keys: pass them as newKeys";
      refuse(
        ACTION,
        "tokens must be the N of the selection's index",
        `tokens is ${tokens}, the index had ${selection.tokens}; ${why}`,
      );
    }
    if (!Number.isSafeInteger(stride) || stride < Math.max(1, tokens)) {
      refuse(ACTION, "stride must be an integer that holds all tokens", `stride is ${stride}, tokens is ${tokens}`);
    }
    if (rows > Math.max(1, tokens)) {
      refuse(ACTION, "every query row must be the row of a cached token", `rows is ${rows}, tokens is ${tokens}`);
    }
    if (!isGpuInput(keys) || !isGpuInput(values)) {
      throw new TypeError("Cannot attend as keys and values must be GPU buffers: upload them once, they do not change");
    }
    if (!selection) return rows;
    selection.assertCurrent();
    if (selection.batch !== batch || selection.heads !== heads) {
      refuse(
        ACTION,
        `the selection must have ${batch} x ${heads} lists per row (see listHeads)`,
        `it has ${selection.batch} x ${selection.heads}`,
      );
    }
    if (!selection.buffers) {
      throw new TypeError("Cannot attend as the selection must lie on the GPU: its pipeline runs on the CPU");
    }
    if (this.#options.listed.weights && !selection.buffers.weights) {
      throw new TypeError("Cannot attend with weights as the selection has none: create the index with weights: true");
    }
    return rows;
  }

  /** Frees its buffers; safe more than once. */
  destroy(): void {
    this.#isDestroyed = true;
    this.#generation++;
    this.#params.destroy();
    for (const buffer of this.#owned.values()) buffer.destroy();
    this.#owned.clear();
  }

  /** Same as {@linkcode Attention.destroy}, for `using`. */
  [Symbol.dispose](): void {
    this.destroy();
  }
}
