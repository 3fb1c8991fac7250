/**
 * The index of one layer: the public face of everything else.
 *
 * @module
 */

import { type GpuInput, isGpuInput, type OwnedBuffer, resolveInput } from "../kernels/gpu/buffers.ts";
import { Gpu } from "../kernels/gpu/device.ts";
import { GpuOutOfMemoryError } from "../kernels/gpu/errors.ts";
import { centroidWidth } from "../kernels/shape.ts";
import {
  capacityFor,
  initOffsetAt,
  isShort,
  type PqConfig,
  refuse,
  resolveConfig,
  type ResolvedConfig,
  resolveRows,
} from "./config.ts";
import { trainCentroids } from "./kmeans.ts";
import { DEFAULT_PIPELINE, pipelineById } from "./pipelines/mod.ts";
import type { Layer, LayerStep, PassTarget, Pipeline } from "./pipelines/pipeline.ts";
import type { Codebook } from "./reference.ts";
import type { Selection, SelectionOutput } from "./selection.ts";

/** A codebook trained elsewhere, with the codes that go with it. */
export interface CodebookInput {
  /** f32 `[B, Hkv, M, C, d]`, with metric "ip" `[B, Hkv, M, C, d + 1]`: as the PyTorch original keeps them. */
  readonly centroids: Float32Array;
  /** f32 `[B, Hkv, M]`, metric "ip" only: largest squared subvector norm seen in training. */
  readonly phi?: Float32Array;
  /** Codes of tokens initOffset …: integers 0 … C − 1; default none. */
  readonly codes?: ArrayLike<number> | ArrayLike<bigint>;
  /** Order of `codes`: "bhmn" is `[B, Hkv, M, n]` (default), "bnhm" is PyTorch's `[B, n, Hkv, M]`. */
  readonly codesLayout?: "bhmn" | "bnhm";
  /** N, all cached tokens. Default: initOffset + n. */
  readonly tokens?: number;
}

/** Options of {@linkcode PqIndexer.create}. */
export interface PqIndexerOptions extends PqConfig {
  /** Iteration to run, by id ("e01") or as an object of your own. Default: the last one on the GPU. */
  readonly pipeline?: string | Pipeline;
  /** The caller's device, which stays the caller's. Default: one device that all indexes share. */
  readonly device?: GPUDevice;
  /** Whether every selection also writes dense weights. Default false. */
  readonly weights?: boolean;
  /** Start from this codebook instead of training one. */
  readonly codebook?: CodebookInput;
  /** Tokens to make room for at once; more are made room for as they come. Default 1024. */
  readonly capacity?: number;
  /** Seed of the training. Default 0. */
  readonly seed?: number;
  /** Most iterations of the training. Default 10. */
  readonly iterations?: number;
  /** Called during training, after every group of (batch, KV head, subvector). */
  readonly onTrainProgress?: (done: number, total: number) => void;
}

/** What goes with a query. */
export interface SelectOptions {
  /** Query rows of a GPU buffer (typed arrays tell by their length). Default 1. */
  readonly rows?: number;
  /** Buffers of the caller's for the result. Default: the index's own. */
  readonly out?: SelectionOutput;
}

/** What goes with new keys. */
export interface AppendOptions {
  /** Tokens that a GPU buffer holds per (batch, KV head) (typed arrays tell by their length). Default 1. */
  readonly tokens?: number;
}

/** What goes with a step. */
export interface StepOptions extends SelectOptions, AppendOptions {}

/** A step to encode: GPU buffers only. */
export interface RecordOptions extends StepOptions {
  /** f32 `[B, H, rows, D]` */
  readonly query: GpuInput;
  /** f32 `[B, Hkv, t, D]`; default: no new keys. */
  readonly newKeys?: GpuInput;
}

/** Keys that wait for a codebook. */
type PendingKeys = { readonly tokens: number; readonly keys: Float32Array | OwnedBuffer };

/**
 * An index over the keys of one attention layer.
 *
 * Calls are queued: one that was not awaited is finished before the next begins. A call that throws
 * leaves the index as it was.
 *
 * @example
 * ```ts
 * import { listOf, PqIndexer } from "@sparse-attention/pq-indexer";
 *
 * const index = await PqIndexer.create({
 *   pipeline: "e00", // the CPU reference; leave out to run on the GPU
 *   heads: 2, headWidth: 8, bits: 2, sinkSize: 2, windowSize: 4, heavySize: 3,
 * });
 * await index.append(Float32Array.from({ length: 2 * 40 * 8 }, (_, i) => Math.sin(i * i)));
 * const selection = await index.step(new Float32Array(2 * 8).fill(1), new Float32Array(2 * 8));
 * console.log(listOf(await selection.read(), 0)); // 2 sink, 3 heavy and 4 window tokens
 * index.destroy();
 * ```
 */
export class PqIndexer {
  readonly #config: ResolvedConfig;
  readonly #options: PqIndexerOptions;
  readonly #pipeline: Pipeline;
  readonly #layer: Layer;
  readonly #gpu: Gpu | undefined;
  #initOffset: number | undefined;
  #codebook: Codebook | undefined;
  #pending: PendingKeys[] = [];
  #tokens = 0;
  #roomTokens = 0;
  #roomRows = 1;
  #queue: Promise<unknown> | undefined;
  #destroyed = false;

  private constructor(
    config: ResolvedConfig,
    options: PqIndexerOptions,
    pipeline: Pipeline,
    layer: Layer,
    gpu: Gpu | undefined,
  ) {
    this.#config = config;
    this.#options = options;
    this.#pipeline = pipeline;
    this.#layer = layer;
    this.#gpu = gpu;
    this.#initOffset = config.initOffset;
  }

  /**
   * Creates an index: validates, compiles the pipeline's kernels, makes room.
   *
   * @throws {RangeError | TypeError} for options out of range, an unknown pipeline, a codebook of the wrong size
   * @throws {GpuUnavailableError} if the pipeline needs a GPU and there is none; says what to install
   */
  static async create(options: PqIndexerOptions): Promise<PqIndexer> {
    const config = resolveConfig(options);
    const pipeline = typeof options.pipeline === "object"
      ? options.pipeline
      : options.pipeline === undefined
      ? DEFAULT_PIPELINE
      : pipelineById(options.pipeline);
    const capacity = options.capacity ?? 1024;
    if (!Number.isInteger(capacity) || capacity < 0) {
      refuse("create an index", "capacity must be an integer ≥ 0", `capacity is ${capacity}`);
    }
    const given = options.codebook && readCodebook(config, options.codebook);
    const gpu = pipeline.runsOn === "cpu" ? undefined : options.device ? Gpu.of(options.device) : await Gpu.shared();
    const layer = await pipeline.create({ config, weights: options.weights ?? false, gpu });
    const index = new PqIndexer(config, options, pipeline, layer, gpu);
    try {
      await index.#makeRoom(Math.max(capacity, given?.tokens ?? 0), 1, 0, false);
      if (given) {
        index.#initOffset = given.initOffset;
        index.#tokens = given.tokens;
        index.#useCodebook(given.codebook);
        if (given.codes.length > 0) layer.importCodes(given.codes, index.codedTokens);
      }
    } catch (error) {
      layer.destroy();
      throw error;
    }
    return index;
  }

  /** N: cached tokens. */
  get tokens(): number {
    return this.#tokens;
  }

  /** n: tokens that have codes; 0 until there is a codebook. */
  get codedTokens(): number {
    return this.#codebook ? Math.max(0, this.#tokens - this.#initOffset!) : 0;
  }

  /** First token that is coded; undefined until it is known (at training, unless configured). */
  get initOffset(): number | undefined {
    return this.#initOffset;
  }

  /** The centroids in use; undefined until training. Not a copy: do not change them. */
  get codebook(): Codebook | undefined {
    return this.#codebook;
  }

  /** The validated config. */
  get config(): ResolvedConfig {
    return this.#config;
  }

  /** The iteration that this index runs. */
  get pipeline(): Pipeline {
    return this.#pipeline;
  }

  /** Operations of a step, in order: names in traces and per-operation timings. */
  get operations(): readonly string[] {
    return this.#layer.operations;
  }

  /**
   * Makes room for `tokens` tokens and `rows` query rows, so that no later call grows a buffer up to
   * there. Needed before {@linkcode PqIndexer.record}, which never allocates; never between a
   * record and its submit.
   *
   * @throws {RangeError} beyond the device's limits; {@linkcode GpuOutOfMemoryError}
   */
  reserve(tokens: number, rows = 1): Promise<void> {
    return this.#exclusive(() => this.#makeRoom(tokens, rows, this.codedTokens, false));
  }

  /**
   * Trains the codebook on all keys so far, then codes them and drops them.
   *
   * @param keys f32 `[B, Hkv, n, D]` to append first
   * @throws {RangeError} if there is a codebook already, or if fewer keys than centroids remain after initOffset
   */
  train(keys?: Float32Array | GpuInput, options: AppendOptions = {}): Promise<void> {
    return this.#exclusive(async () => {
      if (this.#codebook) {
        refuse("train a codebook", "an index is trained once", `this one has ${this.codedTokens} coded tokens`);
      }
      const t = keys === undefined ? 0 : this.#countKeys("train a codebook", keys, options.tokens);
      await this.#withPending(keys, t, () => this.#trainOnPending());
    });
  }

  /**
   * Appends keys: codes them, or keeps them until there is a codebook.
   *
   * @param keys f32 `[B, Hkv, t, D]`, t ≥ 0; a typed array (finite, else refused) or a GPU buffer (not inspected)
   * @throws {RangeError | TypeError} for a wrong length, NaN or ±inf, or tokens beyond the device's limits
   */
  append(keys: Float32Array | GpuInput, options: AppendOptions = {}): Promise<void> {
    return this.#exclusive(async () => {
      const t = this.#countKeys("append", keys, options.tokens);
      if (!this.#codebook) return await this.#withPending(keys, t, () => Promise.resolve());
      await this.#makeRoom(this.#tokens + t, this.#roomRows, this.codedTokens);
      await this.#code(keys, t, this.#tokens);
      this.#tokens += t;
    });
  }

  /**
   * Selects the tokens that each query row should attend to.
   *
   * @param query f32 `[B, H, rows, D]`; row r of sq sees N − sq + 1 + r tokens
   * @returns lists `[sink | heavy | window]`, ascending, ties at the last heavy rank to the lower token
   * @throws {RangeError | TypeError} for a wrong length, NaN or ±inf
   */
  select(query: Float32Array | GpuInput, options: SelectOptions = {}): Promise<Selection> {
    return this.#exclusive(() => this.#step(query, undefined, options));
  }

  /**
   * One decode step: appends the new keys, then selects for the queries that came with them. One submit.
   *
   * @param query f32 `[B, H, rows, D]`
   * @param newKeys f32 `[B, Hkv, t, D]`
   */
  step(
    query: Float32Array | GpuInput,
    newKeys: Float32Array | GpuInput,
    options: StepOptions = {},
  ): Promise<Selection> {
    return this.#exclusive(() => this.#step(query, newKeys, options));
  }

  /**
   * Encodes a step into the caller's compute pass, so that many layers go into one submit. The
   * index counts the new keys as appended from here on: submit the pass. Allocates nothing. At most 64
   * recorded steps of one index may wait for their submit.
   *
   * @param target a compute pass, or a function that begins one per operation (ended here), to time each
   * @throws {RangeError} without room (see {@linkcode PqIndexer.reserve}) or without a codebook (see {@linkcode PqIndexer.train})
   */
  record(target: PassTarget, options: RecordOptions): Selection {
    this.#assertUsable();
    if (this.#queue) refuse("record a step", "earlier calls must have finished", "one is running: await it first");
    const { query, newKeys } = options;
    const t = newKeys === undefined ? 0 : this.#countKeys("record a step", newKeys, options.tokens);
    const rows = this.#countRows(query, options.rows);
    const total = this.#tokens + t;
    if (!this.#codebook) refuse("record a step", "there must be a codebook", "none yet: call train() or step() first");
    if (total > this.#roomTokens || rows > this.#roomRows) {
      refuse(
        "record a step",
        "there must be room for it",
        `${total} tokens and ${rows} rows in an index for ${this.#roomTokens} and ${this.#roomRows}: call reserve() first`,
      );
    }
    const step = this.#layerStep(query, newKeys, t, rows, options.out);
    const selection = this.#layer.record(target, step)!;
    this.#tokens = total;
    return selection;
  }

  /** Dispatches that a step with t new keys would take now. */
  dispatchesPerStep(newTokens = 1, rows = 1): number {
    return this.#layer.dispatches(this.#layerStep(undefined, undefined, newTokens, rows));
  }

  /** The codes so far, u8 `[B, Hkv, M, n]` of tokens initOffset …; waits for the GPU. */
  readCodes(): Promise<Uint8Array> {
    return this.#exclusive(() => this.#layer.exportCodes(this.codedTokens));
  }

  /** Frees the layer's buffers. The device stays. */
  destroy(): void {
    this.#destroyed = true;
    this.#layer.destroy();
    for (const { keys } of this.#pending.splice(0)) if (!(keys instanceof Float32Array)) keys.destroy();
  }

  /** Same as {@linkcode PqIndexer.destroy}, for `using`. */
  [Symbol.dispose](): void {
    this.destroy();
  }

  #assertUsable(): void {
    if (this.#destroyed) throw new TypeError("Cannot use this index as it was destroyed: create a new one");
    this.#gpu?.assertAlive();
  }

  /** Runs a call after those before it; at once if there are none. */
  async #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const before = this.#queue;
    const run = async () => {
      await before?.catch(() => {});
      this.#assertUsable();
      return await work();
    };
    const running = run();
    this.#queue = running;
    try {
      return await running;
    } finally {
      if (this.#queue === running) this.#queue = undefined;
    }
  }

  async #step(
    query: Float32Array | GpuInput,
    newKeys: Float32Array | GpuInput | undefined,
    options: StepOptions,
  ): Promise<Selection> {
    const action = newKeys === undefined ? "select" : "step";
    const rows = this.#countRows(query, options.rows);
    const t = newKeys === undefined ? 0 : this.#countKeys(action, newKeys, options.tokens);
    const total = this.#tokens + t;
    // Resolves the rows, and so refuses what is wrong with them before anything grows.
    const step = this.#layerStep(query, newKeys, t, rows, options.out);
    if (this.#codebook) {
      await this.#makeRoom(total, rows, this.codedTokens);
      if (newKeys !== undefined && !this.#fitsOneUpload(newKeys)) {
        return await this.#codeThenSelect(query, newKeys, t, rows, options.out);
      }
      const selection = await this.#layer.run(step);
      this.#tokens = total;
      return selection!;
    }
    return await this.#withPending(newKeys, t, async () => {
      const wanted = resolveRows(this.#config, initOffsetAt(this.#config, this.#tokens), this.#tokens, rows);
      if (!wanted.every(isShort)) await this.#trainOnPending();
      await this.#makeRoom(this.#tokens, rows, this.codedTokens);
      return (await this.#layer.run(this.#layerStep(query, undefined, 0, rows, options.out)))!;
    });
  }

  /** A step whose keys are too many for one upload. */
  async #codeThenSelect(
    query: Float32Array | GpuInput,
    newKeys: Float32Array | GpuInput,
    t: number,
    rows: number,
    out: SelectionOutput | undefined,
  ): Promise<Selection> {
    const before = this.#tokens;
    await this.#code(newKeys, t, before);
    this.#tokens += t;
    try {
      return (await this.#layer.run(this.#layerStep(query, undefined, 0, rows, out)))!;
    } catch (error) {
      this.#tokens = before;
      throw error;
    }
  }

  /** The step that brings the index from its tokens to t more. */
  #layerStep(
    query: Float32Array | GpuInput | undefined,
    newKeys: Float32Array | GpuInput | undefined,
    t: number,
    rows: number,
    out?: SelectionOutput,
  ): LayerStep {
    const total = this.#tokens + t;
    const initOffset = this.#initOffset ?? initOffsetAt(this.#config, total);
    return {
      ...this.#coding(this.#tokens, t, initOffset),
      rows: resolveRows(this.#config, initOffset, total, rows),
      query,
      newKeys,
      out,
    };
  }

  /** Which of t keys at tokens from … are coded, and where. */
  #coding(from: number, t: number, initOffset: number) {
    const firstNewKey = this.#codebook ? Math.min(t, Math.max(0, initOffset - from)) : t;
    return {
      nCoded: this.#codebook ? Math.max(0, from + t - initOffset) : 0,
      nNew: t - firstNewKey,
      firstNewKey,
      nNewKeys: t,
      initOffset,
    };
  }

  #fitsOneUpload(keys: Float32Array | GpuInput): boolean {
    return isGpuInput(keys) || keys.byteLength <= this.#layer.maxKeyBytes;
  }

  /** Codes t keys that become tokens from …; there is room. Long prompts go in slices. */
  async #code(keys: Float32Array | GpuInput, t: number, from: number): Promise<void> {
    const { batch, kvHeads, headWidth } = this.#config.shape;
    const nKv = batch * kvHeads;
    const slice = this.#fitsOneUpload(keys)
      ? t
      : Math.max(1, Math.floor(this.#layer.maxKeyBytes / (4 * nKv * headWidth)));
    for (let at = 0; at < t; at += slice) {
      const count = Math.min(slice, t - at);
      let part = keys;
      if (count < t) {
        const some = new Float32Array(nKv * count * headWidth);
        for (let kv = 0; kv < nKv; kv++) {
          const begin = (kv * t + at) * headWidth;
          some.set((keys as Float32Array).subarray(begin, begin + count * headWidth), kv * count * headWidth);
        }
        part = some;
      }
      const step = { ...this.#coding(from + at, count, this.#initOffset!), rows: [], newKeys: part };
      if (step.nNew > 0) await this.#layer.run(step);
    }
  }

  /** Keeps keys as pending while `work` runs, and for good if it does not throw. */
  async #withPending<T>(keys: Float32Array | GpuInput | undefined, t: number, work: () => Promise<T>): Promise<T> {
    if (keys === undefined || t === 0) return await work();
    const kept = { tokens: t, keys: await this.#keep(keys, t) };
    this.#pending.push(kept);
    this.#tokens += t;
    try {
      return await work();
    } catch (error) {
      // Training takes all pending keys at once or none, so the ones added here are still last.
      if (this.#pending.at(-1) === kept) {
        this.#pending.pop();
        this.#tokens -= t;
        if (!(kept.keys instanceof Float32Array)) kept.keys.destroy();
      }
      throw error;
    }
  }

  /** A copy of the caller's keys that outlives the call. */
  async #keep(keys: Float32Array | GpuInput, t: number): Promise<Float32Array | OwnedBuffer> {
    if (keys instanceof Float32Array) return keys.slice();
    const gpu = this.#gpu!;
    const bytes = this.#keyBytes(t);
    const source = resolveInput("new keys", keys, bytes, gpu.limits);
    const copy = await gpu.allocate("pending keys", bytes);
    try {
      await gpu.submit("keep keys", (encoder) => {
        encoder.copyBufferToBuffer(source.buffer, source.offset, copy.buffer, 0, bytes);
      });
    } catch (error) {
      copy.destroy();
      throw error;
    }
    return copy;
  }

  #keyBytes(t: number): number {
    const { batch, kvHeads, headWidth } = this.#config.shape;
    return 4 * batch * kvHeads * t * headWidth;
  }

  /** Trains on the pending keys, codes them and drops them. All or nothing. */
  async #trainOnPending(): Promise<void> {
    const { shape } = this.#config;
    const nKv = shape.batch * shape.kvHeads, n = this.#tokens, D = shape.headWidth;
    const all = new Float32Array(nKv * n * D);
    let at = 0;
    for (const { keys, tokens } of this.#pending) {
      const part = keys instanceof Float32Array
        ? keys
        : new Float32Array((await this.#gpu!.read([{ buffer: keys.buffer, bytes: this.#keyBytes(tokens) }]))[0]);
      for (let kv = 0; kv < nKv; kv++) {
        all.set(part.subarray(kv * tokens * D, (kv + 1) * tokens * D), (kv * n + at) * D);
      }
      at += tokens;
    }
    const notFinite = firstNonFinite(all);
    if (notFinite >= 0) {
      refuse("train a codebook", "keys must be finite", `a key of a GPU buffer holds ${all[notFinite]}`);
    }
    const { seed, iterations, onTrainProgress } = this.#options;
    const initOffset = initOffsetAt(this.#config, n);
    const codebook = trainCentroids(shape, all, { seed, iterations, initOffset, onProgress: onTrainProgress });
    await this.#makeRoom(n, this.#roomRows, 0);
    const before = this.#initOffset;
    try {
      this.#initOffset = initOffset;
      this.#useCodebook(codebook);
      await this.#code(all, n, 0);
    } catch (error) {
      this.#codebook = undefined;
      this.#initOffset = before;
      throw error;
    }
    for (const { keys } of this.#pending.splice(0)) if (!(keys instanceof Float32Array)) keys.destroy();
  }

  #useCodebook(codebook: Codebook): void {
    this.#layer.setCodebook(codebook);
    this.#codebook = codebook;
  }

  /**
   * Grows the layer if it is too small, geometrically unless told otherwise or unless the device
   * cannot hold that much.
   */
  async #makeRoom(tokens: number, rows: number, nCoded: number, geometric = true): Promise<void> {
    if (!Number.isInteger(tokens) || tokens < 0) {
      refuse("make room", "tokens must be an integer ≥ 0", `tokens is ${tokens}`);
    }
    if (tokens <= this.#roomTokens && rows <= this.#roomRows && this.#roomTokens > 0) return;
    const least = Math.max(tokens, this.#roomTokens, 1), mostRows = Math.max(rows, this.#roomRows);
    const room = geometric && tokens > this.#roomTokens ? Math.max(least, 2 * this.#roomTokens) : least;
    const attempt = async (wanted: number) => {
      await this.#layer.reserve(capacityFor(this.#config, wanted, mostRows), nCoded);
      this.#roomTokens = wanted;
      this.#roomRows = mostRows;
    };
    try {
      await attempt(room);
    } catch (error) {
      if (room === least || !(error instanceof RangeError || error instanceof GpuOutOfMemoryError)) throw error;
      await attempt(least);
    }
  }

  #countRows(query: Float32Array | GpuInput, rows: number | undefined): number {
    const { batch, heads, headWidth } = this.#config.shape;
    return this.#countVectors("select", "query", "[B, H, rows, D]", query, batch * heads * headWidth, rows);
  }

  #countKeys(action: string, keys: Float32Array | GpuInput, tokens: number | undefined): number {
    const { batch, kvHeads, headWidth } = this.#config.shape;
    const t = this.#countVectors(action, "keys", "[B, Hkv, t, D]", keys, batch * kvHeads * headWidth, tokens);
    // Before anything is counted as appended: the buffer must hold what it is said to hold.
    if (isGpuInput(keys) && this.#gpu) resolveInput("new keys", keys, this.#keyBytes(t), this.#gpu.limits);
    return t;
  }

  /** How many vectors per head an input holds; refuses what it cannot be. */
  #countVectors(
    action: string,
    name: string,
    layout: string,
    input: Float32Array | GpuInput,
    each: number,
    given: number | undefined,
  ): number {
    if (isGpuInput(input)) {
      if (!this.#gpu) {
        throw new TypeError(
          `Cannot ${action} as pipeline ${this.#pipeline.id} runs on the CPU: ${name} is a GPU buffer`,
        );
      }
      const count = given ?? 1;
      if (!Number.isInteger(count) || count < 0) {
        refuse(action, `the count of ${name} must be an integer ≥ 0`, `it is ${count}`);
      }
      return count;
    }
    if (!(input instanceof Float32Array)) {
      throw new TypeError(
        `Cannot ${action} as ${name} must be a Float32Array or a GPU buffer: it is ${
          (input as object | null | undefined)?.constructor?.name ?? input
        }`,
      );
    }
    const count = input.length / each;
    if (!Number.isInteger(count) || (given !== undefined && given !== count)) {
      refuse(
        action,
        `${name} must be f32 ${layout}, a multiple of ${each} values${given === undefined ? "" : ` (${given} times)`}`,
        `length is ${input.length}`,
      );
    }
    const at = firstNonFinite(input);
    if (at >= 0) refuse(action, `${name} must be finite`, `value ${at} is ${input[at]}`);
    return count;
  }
}

/** Position of the first NaN or ±inf, or −1. The common case is one pass of multiplications. */
function firstNonFinite(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * 0;
  return sum === 0 ? -1 : values.findIndex((value) => !Number.isFinite(value));
}

/** Validates a codebook given by the caller and copies it into our layout. */
function readCodebook(config: ResolvedConfig, input: CodebookInput) {
  const action = "use this codebook";
  const { shape } = config;
  const nGroups = shape.batch * shape.kvHeads * shape.subvectors;
  const check = (name: string, values: unknown, length: number): Float32Array => {
    if (!(values instanceof Float32Array)) {
      throw new TypeError(`Cannot ${action} as ${name} must be a Float32Array: it is ${String(values)}`);
    }
    if (values.length !== length) refuse(action, `${name} must hold ${length} values`, `it holds ${values.length}`);
    const at = firstNonFinite(values);
    if (at >= 0) refuse(action, `${name} must be finite`, `value ${at} is ${values[at]}`);
    return values.slice();
  };
  const centroids = check("centroids", input.centroids, nGroups * shape.centroids * centroidWidth(shape));
  const phi = shape.augmented ? check("phi", input.phi, nGroups) : undefined;
  if (config.initOffset === undefined && typeof config.sinkSize !== "number") {
    refuse(action, "initOffset must be given where the sink size is a ratio", "initOffset is undefined");
  }
  const initOffset = config.initOffset ?? config.sinkSize as number;
  const given = input.codes ?? [];
  if (given.length % nGroups !== 0) {
    refuse(action, `codes must hold n values for each of ${nGroups} subvectors`, `they are ${given.length}`);
  }
  const n = given.length / nGroups;
  const tokens = input.tokens ?? initOffset + n;
  if (!Number.isInteger(tokens) || tokens < 0 || Math.max(0, tokens - initOffset) !== n) {
    refuse(
      action,
      "codes must cover tokens initOffset to N",
      `tokens is ${tokens}, initOffset ${initOffset}, codes ${n}`,
    );
  }
  const layout = input.codesLayout ?? "bhmn";
  if (layout !== "bhmn" && layout !== "bnhm") {
    refuse(action, `codesLayout must be "bhmn" or "bnhm"`, `it is ${JSON.stringify(layout)}`);
  }
  const codes = new Uint8Array(given.length);
  const perToken = shape.kvHeads * shape.subvectors;
  for (let at = 0; at < given.length; at++) {
    const code = Number(given[at]);
    if (!(Number.isInteger(code) && code >= 0 && code < shape.centroids)) {
      refuse(action, `codes must be integers below C, ${shape.centroids}`, `code ${at} is ${given[at]}`);
    }
    const b = Math.floor(at / (perToken * n)), i = Math.floor(at / perToken) % n, row = at % perToken;
    codes[layout === "bhmn" ? at : (b * perToken + row) * n + i] = code;
  }
  return { codebook: { centroids, phi } as Codebook, codes, tokens, initOffset };
}
