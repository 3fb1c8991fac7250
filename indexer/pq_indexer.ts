/**
 * The index of one layer: the public face of everything else.
 *
 * @module
 */

import { type GpuInput, isGpuInput, type OwnedBuffer, resolveInput } from "../kernels/gpu/buffers.ts";
import { Gpu } from "../kernels/gpu/device.ts";
import { GpuOutOfMemoryError, GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { centroidWidth, elementBytes, MAX_ROWS } from "../kernels/shape.ts";
import {
  capacityFor,
  CONFIG_OPTIONS,
  initOffsetAt,
  isShort,
  knowOptions,
  type PqConfig,
  refuse,
  resolveConfig,
  type ResolvedConfig,
  resolveRows,
  show,
} from "./config.ts";
import { gatherParts, type KeyElements, type KeyPart, KeyWidener, readParts } from "./key_parts.ts";
import { checkTraining, trainCentroids } from "./kmeans.ts";
import { CPU_PIPELINE, DEFAULT_PIPELINE, pipelineById } from "./pipelines/mod.ts";
import type { Layer, LayerStep, PassTarget, Pipeline } from "./pipelines/pipeline.ts";
import type { Codebook } from "./reference.ts";
import { Selection, type SelectionOutput } from "./selection.ts";
import { decodeState, encodeState } from "./state.ts";
import { trainOnGpu } from "./trainer.ts";
import { type Tuning, type TuningFile, tuningFor } from "./tuning.ts";

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
  /** N, all cached tokens. Default: 0 without codes, else initOffset + n. */
  readonly tokens?: number;
}

/** Options of {@linkcode PqIndexer.create}. */
export interface PqIndexerOptions extends PqConfig {
  /**
   * Iteration to run, by id ("e01") or as an object of your own. Default: the last one on the GPU, or "cpu" where
   * there is no GPU.
   */
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
  /**
   * Share of its distortion by which a group of (batch, KV head, subvector) must improve to go on. Default 0: training goes on
   * while it improves.
   */
  readonly tolerance?: number;
  /**
   * Where codebooks are trained: "gpu" needs a pipeline that runs there. Both are k-means on a seeded sample; each gives the
   * same bytes run after run ("cpu" on every machine), but not the bytes of the other. Default: "gpu" where the pipeline runs
   * on hardware, else "cpu", which is as fast as a software device.
   */
  readonly trainOn?: "gpu" | "cpu";
  /**
   * What `deno task tune` wrote, or the path of that file. Where it knows this adapter, driver and class of shape, a
   * pipeline that is tuned takes its sizes from there, else from its defaults; also where this device cannot have them.
   * Results are the same. The driver is told by a program (nvidia-smi, dpkg-query): without permission to run it, in Node
   * and in browsers any driver's sizes are taken.
   */
  readonly tuning?: string | URL | TuningFile;
  /** Called during training: on the GPU after every iteration, on the CPU after every group of (batch, KV head, subvector). */
  readonly onTrainProgress?: (done: number, total: number) => void;
}

/** The cached keys as attention has them. */
export interface CachedKeys {
  /**
   * `[B, Hkv, stride, D]`: a GPU buffer, f32 or f16 as `refineElements` says (not inspected; it needs STORAGE), or on the CPU a
   * Float32Array (finite, else refused). Of its tokens those between sink and window are read, when the call runs, not copied.
   */
  readonly keys: GpuInput | Float32Array;
  /** Tokens from one (batch, KV head) to the next. */
  readonly stride: number;
}

/** What goes with a query. */
export interface SelectOptions {
  /** The cached keys, for an index that re-ranks (see `refine`). */
  readonly cached?: CachedKeys;
  /** Query rows of a GPU buffer; needed if it is larger than one row (typed arrays tell by their length). */
  readonly rows?: number;
  /** Buffers of the caller's for the result. Default: the index's own. */
  readonly out?: SelectionOutput;
}

/** What goes with new keys. */
export interface AppendOptions {
  /**
   * Tokens that a GPU buffer holds per (batch, KV head); needed if it is larger than one token (typed
   * arrays tell by their length).
   */
  readonly tokens?: number;
}

/** What goes with keys to train on. */
export interface TrainKeysOptions extends AppendOptions {
  /** How a GPU buffer keeps them: f16 takes two bytes per value. Default "f32". A Float16Array needs no telling. */
  readonly elements?: KeyElements;
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

const CREATE_OPTIONS = [
  ...CONFIG_OPTIONS,
  "pipeline",
  "device",
  "weights",
  "codebook",
  "capacity",
  "seed",
  "iterations",
  "tolerance",
  "trainOn",
  "tuning",
  "onTrainProgress",
] as const satisfies readonly (keyof PqIndexerOptions)[];
const SELECT_OPTIONS = ["rows", "out", "cached"] as const;
const APPEND_OPTIONS = ["tokens"] as const;
const TRAIN_OPTIONS = ["tokens", "elements"] as const;
const RECORD_OPTIONS = ["query", "newKeys", "rows", "out", "tokens", "cached"] as const;

/** Keys that wait for a codebook: an array of our own, or a range of the pending buffer. */
interface PendingKeys extends Pick<KeyPart, "tokens" | "stride"> {
  readonly keys: Float32Array | { readonly offset: number; readonly bytes: number };
}

/** Options that lists depend on, and codes do not. */
const LIST_OPTIONS: ReadonlySet<string> = new Set([
  "sinkSize",
  "windowSize",
  "heavySize",
  "pooling",
  "refine",
  "refineElements",
]);

/** Bytes that every device's storage bindings may begin at multiples of. */
const KEY_ALIGNMENT = 256;

/** What a call may change and a failed call must restore. */
interface State {
  readonly tokens: number;
  readonly pending: readonly PendingKeys[];
  readonly pendingBytes: number;
  readonly codebook: Codebook | undefined;
  readonly initOffset: number | undefined;
}

/**
 * An index over the keys of one attention layer.
 *
 * Calls are queued: one that was not awaited is finished before the next begins. Typed arrays are copied
 * before a call returns, so the caller may reuse them at once; GPU buffers are read when the call runs, so
 * await it before writing to them. A call that throws leaves the index as it was.
 *
 * While a row sees N ≤ K + initOffset + rows + C or N ≤ S + K + W tokens, its list is all of them. The first
 * step beyond that trains the codebook on the keys so far, if there is none, and that codebook stays until
 * {@linkcode PqIndexer.retrain}: for a cache that starts short and grows long, bring a codebook, give `train` a longer
 * text, or train again.
 *
 * Scores are Σ_m q_m · centroid(code_m), without 1/√D; metric "ip" changes which centroid codes a key, not
 * how it is scored. Finite keys beyond about 1e18 overflow f32 distances and are coded as 0.
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
  #pending: readonly PendingKeys[] = [];
  #pendingBuffer: OwnedBuffer | undefined;
  #pendingBytes = 0;
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
   * @throws {GpuUnavailableError} if a pipeline was named that needs a GPU and there is none; says what to install
   */
  static create(options: PqIndexerOptions): Promise<PqIndexer> {
    return PqIndexer.#open(options, false);
  }

  /** @param isSaved whether the codebook is a saved one, which holds what training made of keys that were not inspected */
  static async #open(options: PqIndexerOptions, isSaved: boolean): Promise<PqIndexer> {
    knowOptions("create an index", options, CREATE_OPTIONS);
    const config = resolveConfig(options);
    const { device } = options;
    if (device !== undefined && typeof device?.createBuffer !== "function") {
      throw new TypeError(`Cannot create an index as device must be a GPUDevice: it is ${show(device)}`);
    }
    const named = typeof options.pipeline === "string" ? pipelineById(options.pipeline) : options.pipeline;
    const capacity = options.capacity ?? 1024;
    const integer = (name: string, value: number, least: number) => {
      if (!Number.isSafeInteger(value) || value < least) {
        refuse("create an index", `${name} must be an integer ≥ ${least}`, `${name} is ${value}`);
      }
    };
    integer("capacity", capacity, 0);
    integer("seed", options.seed ?? 0, 0);
    integer("iterations", options.iterations ?? 10, 1);
    const { tolerance = 0, trainOn } = options;
    if (!(tolerance >= 0 && tolerance < 1)) {
      refuse("create an index", "tolerance must be a share, 0 or more and less than 1", `tolerance is ${tolerance}`);
    }
    if (trainOn !== undefined && trainOn !== "gpu" && trainOn !== "cpu") {
      refuse("create an index", 'trainOn must be "gpu" or "cpu"', `it is ${show(trainOn)}`);
    }
    const given = options.codebook && readCodebook(config, options.codebook, isSaved);
    const gpu = named?.runsOn === "cpu" ? undefined : await gpuFor(options, named !== undefined);
    const untuned = named ?? (gpu ? DEFAULT_PIPELINE : CPU_PIPELINE);
    const tuning = options.tuning === undefined
      ? undefined
      : await tuningFor(options.tuning, gpu?.info, config, options.weights ?? false);
    const pipeline = tuning && gpu ? tunedOr(untuned, tuning, config, gpu, options.weights ?? false) : untuned;
    if (trainOn === "gpu" && !gpu) {
      refuse("create an index", "training on the GPU needs a pipeline that runs there", `pipeline is ${pipeline.id}`);
    }
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
   * record and its submit. Cheap where there is room already: call it once per decode step.
   *
   * @throws {RangeError} beyond the device's limits
   * @throws {GpuOutOfMemoryError} the index stays as it was
   */
  reserve(tokens: number, rows = 1): Promise<void> {
    return this.#exclusive(() => this.#makeRoom(tokens, rows, this.codedTokens, false));
  }

  /**
   * Trains the codebook on all keys so far, then codes them and drops them. Keys that are given lie where they are meanwhile:
   * nothing is copied where they are all there is.
   *
   * @param keys `[B, Hkv, n, D]` to append first, f32 or f16; a typed array (finite, else refused) or a GPU buffer (not
   * inspected; it needs STORAGE and COPY_SRC; training leaves out keys with NaN or ±inf). f16 keys in a GPU buffer must be
   * all there are.
   * @throws {RangeError} if there is a codebook already, or if fewer keys than centroids remain after initOffset, or fewer
   * without NaN and ±inf of those that training looks at
   */
  train(keys?: Float32Array | Float16Array | GpuInput, options: TrainKeysOptions = {}): Promise<void> {
    const own = ownCopy(widened(keys)), action = "train a codebook";
    return this.#exclusive(async () => {
      knowOptions("train", options, TRAIN_OPTIONS);
      if (this.#codebook) {
        refuse(action, "there must be none yet; to replace it, call retrain()", `${this.codedTokens} tokens are coded`);
      }
      if (own === undefined && options.tokens !== undefined) {
        refuse(action, "tokens go with keys", `tokens is ${options.tokens}, keys are not given`);
      }
      const given = own === undefined ? [] : [this.#keyPart(action, own, options)];
      if (given[0]?.elements === "f16" && this.#pending.length > 0) {
        refuse(action, "f16 keys must be all there are", `${this.#tokens} tokens have f32 keys`);
      }
      await this.#transaction(async () => {
        const parts = [...this.#pendingParts(), ...given].filter(({ tokens }) => tokens > 0);
        this.#tokens += given[0]?.tokens ?? 0;
        await this.#trainOn(parts);
      });
      this.#dropPending();
    });
  }

  /**
   * Appends keys: codes them, or keeps them until there is a codebook.
   *
   * @param keys f32 `[B, Hkv, t, D]`, t ≥ 0; a typed array (finite, else refused) or a GPU buffer (not
   * inspected; it needs STORAGE, and until there is a codebook COPY_SRC)
   * @throws {RangeError | TypeError} for a wrong length, NaN or ±inf, or tokens beyond the device's limits
   */
  append(keys: Float32Array | GpuInput, options: AppendOptions = {}): Promise<void> {
    const own = ownCopy(keys);
    return this.#exclusive(async () => {
      knowOptions("append", options, APPEND_OPTIONS);
      const t = this.#countKeys("append", own, options.tokens);
      if (!this.#codebook) return await this.#withPending(own, t, () => Promise.resolve());
      await this.#makeRoom(this.#tokens + t, this.#roomRows, this.codedTokens);
      await this.#code(own, t, this.#tokens);
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
    const own = ownCopy(query);
    return this.#exclusive(() => this.#step(own, undefined, options));
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
    const ownQuery = ownCopy(query), ownKeys = ownCopy(newKeys);
    return this.#exclusive(() => this.#step(ownQuery, ownKeys, options));
  }

  /**
   * Encodes a step into the caller's compute pass, so that many layers go into one submit. The
   * index counts the new keys as appended from here on: submit the pass before any other call of this
   * index. A pass that is dropped leaves an index that cannot be trusted: create another, or `load` a saved one. Allocates
   * nothing. At most 64 steps of one index may be recorded in a row; any awaited call
   * after the submit ({@linkcode PqIndexer.reserve}, say) begins a new row. Read the selection only after
   * the submit: before, its buffers hold what was there.
   *
   * @param target a compute pass, or a function that begins one per operation (ended here), to time each
   * @throws {RangeError} without room (see {@linkcode PqIndexer.reserve}) or without a codebook (see {@linkcode PqIndexer.train})
   */
  record(target: PassTarget, options: RecordOptions): Selection {
    this.#assertUsable();
    knowOptions("record a step", options, RECORD_OPTIONS);
    if (this.#queue) refuse("record a step", "earlier calls must have finished", "one is running: await it first");
    const { query, newKeys } = options;
    for (const [name, input] of Object.entries({ query, newKeys }) as [string, unknown][]) {
      if (input instanceof Float32Array) {
        throw new TypeError(
          `Cannot record a step as its ${name} must be a GPU buffer: it is a Float32Array; use step()`,
        );
      }
    }
    const t = newKeys === undefined ? 0 : this.#countKeys("record a step", newKeys, options.tokens);
    const rows = this.#countRows("record a step", query, options.rows);
    const total = this.#tokens + t;
    if (!this.#codebook) refuse("record a step", "there must be a codebook", "none yet: call train() or step() first");
    if (total > this.#roomTokens || rows > this.#roomRows) {
      refuse(
        "record a step",
        "there must be room for it",
        `${total} tokens and ${rows} rows in an index for ${this.#roomTokens} and ${this.#roomRows}: call reserve() first`,
      );
    }
    const step = this.#layerStep(query, newKeys, t, rows, options);
    this.#checkCached("record a step", step);
    const selection = this.#layer.record(target, step)!;
    this.#tokens = total;
    return this.#inTurn(selection, step);
  }

  /** Dispatches that a step with t new keys would take now. */
  dispatchesPerStep(newTokens = 1, rows = 1): number {
    return this.#layer.dispatches(this.#layerStep(undefined, undefined, newTokens, rows));
  }

  /** Bytes that the kernels of such a step read and write, each access counted once; 0 on the CPU. */
  bytesPerStep(newTokens = 1, rows = 1): number {
    return this.#layer.bytesMoved(this.#layerStep(undefined, undefined, newTokens, rows));
  }

  /**
   * Trains a new codebook on what is cached and codes it anew: for a cache whose keys have drifted away from those that
   * the codebook was trained on. Codebook and codes change together; a failure leaves the old ones.
   *
   * @param keys `[B, Hkv, N, D]`, all of the cached keys again and nothing else, f32 or f16, a typed array or a GPU buffer with
   * STORAGE and COPY_SRC; of a larger buffer give `{ buffer, offset, size }`
   * @throws {RangeError} if there is no codebook yet, for another number of tokens than N, NaN or ±inf in a typed array, or
   * fewer keys than centroids from initOffset on
   */
  retrain(keys: Float32Array | Float16Array | GpuInput, options: TrainKeysOptions = {}): Promise<void> {
    const own = ownCopy(widened(keys)), action = "retrain";
    return this.#exclusive(async () => {
      knowOptions(action, options, TRAIN_OPTIONS);
      const codebook = this.#codebook, n = this.#tokens;
      if (!codebook) refuse(action, "there must be a codebook", "none yet: call train() first");
      const part = this.#keyPart(action, own, isGpuInput(own) ? { tokens: n, ...options } : options);
      if (part.tokens !== n) {
        refuse(action, "keys must be those of all cached tokens", `${part.tokens} were given, N is ${n}`);
      }
      if (isGpuInput(own)) {
        const has = "buffer" in own ? own.size ?? own.buffer.size - (own.offset ?? 0) : own.size;
        const bytes = this.#keyBytes(n, part.elements);
        if (has !== bytes) {
          refuse(action, `keys must be those of all ${n} cached tokens, ${bytes} bytes`, `the buffer has ${has}`);
        }
      }
      await this.#trained([part], this.#initOffset!, async (fresh, part) => {
        const codes = await this.#layer.exportCodes(this.codedTokens);
        try {
          this.#useCodebook(fresh);
          await this.#codePart(part);
        } catch (error) {
          try {
            this.#useCodebook(codebook);
            if (codes.length > 0) this.#layer.importCodes(codes, this.codedTokens);
          } catch {
            // What failed first says more: a lost device fails here as well.
          }
          throw error;
        }
      });
    });
  }

  /**
   * Keeps the first tokens and forgets the newest, such as speculated ones that were rejected: the next key that is
   * appended becomes token `tokens`. Copies nothing and keeps the room; the codebook stays as it is.
   *
   * @param tokens how many to keep, N at most
   * @throws {RangeError} for more than there are
   */
  truncate(tokens: number): Promise<void> {
    return this.#exclusive(() => {
      if (!Number.isSafeInteger(tokens) || tokens < 0 || tokens > this.#tokens) {
        refuse("truncate", `tokens must be an integer 0 to N, ${this.#tokens}`, `tokens is ${tokens}`);
      }
      const kept: PendingKeys[] = [];
      let before = 0;
      for (const part of this.#pending) {
        if (before < tokens) kept.push({ ...part, tokens: Math.min(part.tokens, tokens - before) });
        else if (!(part.keys instanceof Float32Array)) {
          this.#pendingBytes = Math.min(this.#pendingBytes, part.keys.offset);
        }
        before += part.tokens;
      }
      this.#pending = kept;
      this.#tokens = tokens;
      return Promise.resolve();
    });
  }

  /**
   * The state as the bytes of a safetensors file: centroids, phi and codes, or the keys so far where there is no
   * codebook yet. {@linkcode PqIndexer.load} makes an index of it that goes on to the bit.
   */
  save(): Promise<Uint8Array> {
    return this.#exclusive(async () => {
      const { centroids, phi } = this.#codebook ?? {};
      return encodeState(this.#config, {
        tokens: this.#tokens,
        initOffset: this.#initOffset,
        seed: this.#options.seed ?? 0,
        iterations: this.#options.iterations ?? 10,
        tolerance: this.#options.tolerance ?? 0,
        ...(centroids
          ? { centroids, phi, codes: await this.#layer.exportCodes(this.codedTokens) }
          : { keys: await readParts(this.#gpu, this.#config.shape, this.#pendingParts()) }),
      });
    });
  }

  /**
   * An index in a state that was saved, or in one of the PyTorch original: centroids f32 `[b, h_kv, M, C, d]` (d + 1 with
   * `phi`), codes i64 `[b, n, h_kv, M]`; without `phi` they are taken for Euclidean ones. Options that the file does not
   * have (heads and sizes of the original; pipeline, device, weights, capacity, trainOn) are given here. What lists depend on
   * (their sizes, pooling, refine) and is given here wins over the state's; options that codes depend on must be the state's.
   *
   * @throws {SafetensorsError} for bytes that are no safetensors file
   * @throws {RangeError | TypeError} for a state of another shape or dtype, one that does not fit the options, or options
   * out of range
   */
  static async load(bytes: Uint8Array, options: Partial<PqIndexerOptions> = {}): Promise<PqIndexer> {
    const action = "load an index";
    if (!(bytes instanceof Uint8Array)) {
      throw new TypeError(`Cannot ${action} as its state must be a Uint8Array: it is ${show(bytes)}`);
    }
    knowOptions(action, options, CREATE_OPTIONS);
    if (options.codebook) refuse(action, "the state has the codebook", "options have one, too");
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    const state = decodeState(bytes);
    const { seed, iterations, tolerance } = state;
    for (const [name, value] of Object.entries({ ...state.config, initOffset: state.initOffset })) {
      const other = Object.hasOwn(given, name) && value !== undefined &&
        JSON.stringify(given[name]) !== JSON.stringify(value);
      if (other && !LIST_OPTIONS.has(name)) { // lists may change, codes may not
        refuse(action, `${name} is ${JSON.stringify(value)} in its state`, `options say ${show(given[name])}`);
      }
    }
    const config = {
      heads: state.config.kvHeads,
      seed,
      iterations,
      tolerance,
      ...state.config,
      ...given,
    } as PqIndexerOptions;
    const isOriginal = state.codesLayout === "bnhm";
    const sink = config.sinkSize ?? 128;
    const initOffset = state.initOffset ?? config.initOffset ??
      (isOriginal && typeof sink === "number" ? sink : undefined);
    const { centroids, phi, codes, codesLayout } = state;
    const tokens = isOriginal && state.tokens > 0 ? state.tokens + (initOffset ?? 0) : state.tokens;
    const index = await PqIndexer.#open({
      ...config,
      initOffset,
      capacity: Math.max(config.capacity ?? 1024, tokens),
      ...(centroids ? { codebook: { centroids, phi, codes, codesLayout, tokens } } : {}),
    }, !isOriginal);
    const { keys } = state;
    if (keys && keys.length > 0) {
      try {
        // Not by append, which refuses NaN and ±inf: keys of a GPU buffer were not inspected when they were saved.
        await index.#exclusive(() => index.#withPending(keys, tokens, () => Promise.resolve()));
      } catch (error) {
        index.destroy();
        throw error;
      }
    }
    return index;
  }

  /** The codes so far, u8 `[B, Hkv, M, n]` of tokens initOffset …; waits for the GPU. */
  readCodes(): Promise<Uint8Array> {
    return this.#exclusive(() => this.#layer.exportCodes(this.codedTokens));
  }

  /** Frees the layer's buffers, after calls that still run. The device stays. */
  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    const free = () => {
      this.#layer.destroy();
      this.#pendingBuffer?.destroy();
      this.#pending = [];
    };
    if (this.#queue) this.#queue.then(free, free);
    else free();
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
    this.#assertUsable();
    const run = async () => {
      if (before) await before.catch(() => {});
      this.#layer.settle();
      this.#gpu?.assertAlive();
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
    knowOptions(action, options, newKeys === undefined ? SELECT_OPTIONS : [...SELECT_OPTIONS, ...APPEND_OPTIONS]);
    const rows = this.#countRows(action, query, options.rows);
    const t = newKeys === undefined ? 0 : this.#countKeys(action, newKeys, options.tokens);
    // Resolves the rows and the buffers, and so refuses what is wrong with them before anything changes.
    const step = this.#layerStep(query, newKeys, t, rows, options);
    this.#checkCached(action, step);
    this.#layer.check(step);
    if (!this.#codebook) {
      return await this.#withPending(newKeys, t, async () => {
        const wanted = resolveRows(this.#config, initOffsetAt(this.#config, this.#tokens), this.#tokens, rows);
        if (!wanted.every(isShort)) await this.#trainOn(this.#pendingParts());
        await this.#makeRoom(this.#tokens, rows, this.codedTokens);
        return await this.#run(this.#layerStep(query, undefined, 0, rows, options));
      });
    }
    return await this.#transaction(async () => {
      await this.#makeRoom(this.#tokens + t, rows, this.codedTokens);
      if (newKeys === undefined || this.#fitsOneUpload(newKeys)) {
        const selection = await this.#run(step);
        this.#tokens += t;
        return selection;
      }
      await this.#code(newKeys, t, this.#tokens);
      this.#tokens += t;
      return await this.#run(this.#layerStep(query, undefined, 0, rows, options));
    });
  }

  /** Runs a step that selects. Its result is read in turn with the index's calls. */
  async #run(step: LayerStep): Promise<Selection> {
    const selection = (await this.#layer.run(step))!;
    return this.#inTurn(selection, step);
  }

  #inTurn(selection: Selection, { rows }: LayerStep): Selection {
    const read = () => this.#exclusive(() => selection.read());
    const assertCurrent = () => selection.assertCurrent();
    const { listStride, weightStride } = selection, tokens = rows.at(-1)!.nTokens; // the last row sees all
    const strides = { listStride, weightStride, tokens };
    return new Selection(this.#config.listShape, selection.rows, strides, selection.buffers, read, assertCurrent);
  }

  /** Runs `work`, and restores what it changed if it throws. */
  async #transaction<T>(work: () => Promise<T>): Promise<T> {
    const before: State = {
      tokens: this.#tokens,
      pending: this.#pending,
      pendingBytes: this.#pendingBytes,
      codebook: this.#codebook,
      initOffset: this.#initOffset,
    };
    try {
      return await work();
    } catch (error) {
      this.#tokens = before.tokens;
      this.#pending = before.pending;
      this.#pendingBytes = before.pendingBytes;
      this.#codebook = before.codebook;
      this.#initOffset = before.initOffset;
      throw error;
    }
  }

  /** The step that brings the index from its tokens to t more. */
  #layerStep(
    query: Float32Array | GpuInput | undefined,
    newKeys: Float32Array | GpuInput | undefined,
    t: number,
    rows: number,
    { out, cached }: SelectOptions = {},
  ): LayerStep {
    const total = this.#tokens + t;
    const initOffset = this.#initOffset ?? initOffsetAt(this.#config, total);
    return {
      ...this.#coding(this.#tokens, t, initOffset),
      rows: resolveRows(this.#config, initOffset, total, rows),
      query,
      newKeys,
      ...(cached ? { keys: cached.keys, keyStride: cached.stride } : {}),
      out,
    };
  }

  /** Refuses cached keys that a step cannot use, and a step that lacks them. */
  #checkCached(action: string, { keys, keyStride, rows }: LayerStep): void {
    const { refine, shape } = this.#config;
    if (refine === 1) {
      if (keys) throw new TypeError(`Cannot ${action} as cached keys are for re-ranking: create the index with refine`);
      return;
    }
    if (!keys) {
      if (rows.every(isShort)) return;
      throw new TypeError(
        `Cannot ${action} as this index re-ranks (refine ${refine}): give the cached keys as \`cached\``,
      );
    }
    const least = Math.max(1, ...rows.map((row) => isShort(row) ? 0 : row.windowBegin));
    if (!Number.isSafeInteger(keyStride) || keyStride! < least) {
      refuse(
        action,
        `cached.stride must be an integer ≥ ${least}, so that it holds every candidate`,
        `it is ${keyStride}`,
      );
    }
    if (this.#gpu) {
      if (!isGpuInput(keys)) {
        throw new TypeError(
          `Cannot ${action} as cached keys must be a GPU buffer: upload them once, they do not change`,
        );
      }
      return;
    }
    if (!(keys instanceof Float32Array)) {
      throw new TypeError(`Cannot ${action} as cached keys must be a Float32Array on the CPU: they are ${show(keys)}`);
    }
    const wanted = shape.batch * shape.kvHeads * keyStride! * shape.headWidth;
    if (keys.length < wanted) {
      refuse(action, `cached keys must be f32 [B, Hkv, stride, D], ${wanted} values`, `length is ${keys.length}`);
    }
    const at = firstNonFinite(keys);
    if (at >= 0) refuse(action, "cached keys must be finite", `value ${at} is ${keys[at]}`);
  }

  /** Which of t keys at tokens from … are coded, and where; `stride` keys lie there per (batch, KV head). */
  #coding(from: number, t: number, initOffset: number, stride = t) {
    const firstNewKey = this.#codebook ? Math.min(t, Math.max(0, initOffset - from)) : t;
    return {
      nCoded: this.#codebook ? Math.max(0, from + t - initOffset) : 0,
      nNew: t - firstNewKey,
      firstNewKey,
      nNewKeys: stride,
      initOffset,
    };
  }

  #fitsOneUpload(keys: Float32Array | GpuInput): boolean {
    return isGpuInput(keys) || keys.byteLength <= this.#layer.maxKeyBytes;
  }

  /** Codes t keys that become tokens from …; there is room. Long prompts go in slices. */
  async #code(keys: Float32Array | GpuInput, t: number, from: number, stride = t): Promise<void> {
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
      const coding = this.#coding(from + at, count, this.#initOffset!, count < t ? count : stride);
      const step = { ...coding, rows: [], newKeys: part };
      if (step.nNew > 0) await this.#layer.run(step);
    }
  }

  /** Adds keys to the pending ones, then runs `work`; both or neither. Drops pending keys once they are coded. */
  async #withPending<T>(keys: Float32Array | GpuInput | undefined, t: number, work: () => Promise<T>): Promise<T> {
    const result = await this.#transaction(async () => {
      if (keys !== undefined && t > 0) {
        await this.#makeRoom(this.#tokens + t, this.#roomRows, 0);
        this.#pending = [...this.#pending, { tokens: t, stride: t, keys: await this.#keep(keys, t) }];
        this.#tokens += t;
      }
      return await work();
    });
    if (this.#codebook) this.#dropPending();
    return result;
  }

  #dropPending(): void {
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#pendingBuffer?.destroy();
    this.#pendingBuffer = undefined;
  }

  /** The pending keys where they lie now. */
  #pendingParts(): KeyPart[] {
    return this.#pending.map(({ keys, tokens, stride }) => ({
      tokens,
      stride,
      elements: "f32",
      keys: keys instanceof Float32Array
        ? keys
        : { buffer: this.#pendingBuffer!.buffer, offset: keys.offset, size: keys.bytes },
    }));
  }

  /** Keys that a caller gave, checked. */
  #keyPart(action: string, keys: Float32Array | GpuInput, { tokens, elements = "f32" }: TrainKeysOptions): KeyPart {
    if (elements !== "f32" && elements !== "f16") {
      refuse(action, 'elements must be "f32" or "f16"', `it is ${show(elements)}`);
    }
    if (!isGpuInput(keys)) {
      if (elements !== "f32") {
        refuse(
          action,
          "elements go with a GPU buffer; for f16 in memory give a Float16Array",
          `elements is ${elements}`,
        );
      }
      const t = this.#countKeys(action, keys, tokens);
      return { tokens: t, stride: t, keys, elements };
    }
    const t = this.#countKeys(action, keys, tokens, elements);
    const range = { ...this.#gpu!.limits, maxStorageBufferBindingSize: Infinity };
    return {
      tokens: t,
      stride: t,
      keys: resolveInput("keys", keys, this.#keyBytes(t, elements), range, true),
      elements,
    };
  }

  /** Keys that outlive the call: the array, which is our own already, or a copy in the pending buffer. */
  async #keep(keys: Float32Array | GpuInput, t: number): Promise<PendingKeys["keys"]> {
    if (keys instanceof Float32Array) return keys;
    const gpu = this.#gpu!;
    // Where a binding may begin.
    const offset = Math.ceil(this.#pendingBytes / KEY_ALIGNMENT) * KEY_ALIGNMENT;
    const range = { offset, bytes: this.#keyBytes(t) };
    const source = resolveInput("new keys", keys, range.bytes, gpu.limits, true);
    const end = range.offset + range.bytes;
    const old = this.#pendingBuffer;
    if (!old || old.bytes < end) {
      const room = Math.max(end, Math.min(2 * (old?.bytes ?? 0), gpu.limits.maxBufferSize));
      const grown = await gpu.allocate("pending keys", room);
      if (old) {
        await gpu.submit("grow pending keys", (encoder) => {
          encoder.copyBufferToBuffer(old.buffer, 0, grown.buffer, 0, this.#pendingBytes);
        });
        old.destroy();
      }
      this.#pendingBuffer = grown;
    }
    const target = this.#pendingBuffer!.buffer;
    await gpu.submit("keep keys", (encoder) => {
      encoder.copyBufferToBuffer(source.buffer, source.offset, target, range.offset, range.bytes);
    });
    this.#pendingBytes = end;
    return range;
  }

  #keyBytes(t: number, elements: KeyElements = "f32"): number {
    const { batch, kvHeads, headWidth } = this.#config.shape;
    return Math.ceil(elementBytes(elements) * batch * kvHeads * t * headWidth / 4) * 4;
  }

  /** Trains on keys of all tokens and codes them; inside a transaction. */
  async #trainOn(parts: readonly KeyPart[]): Promise<void> {
    const n = this.#tokens;
    // What the device cannot hold is refused before time is spent on training.
    await this.#makeRoom(n, this.#roomRows, 0);
    const initOffset = initOffsetAt(this.#config, n);
    await this.#trained(parts, initOffset, (codebook, part) => {
      this.#initOffset = initOffset;
      this.#useCodebook(codebook);
      return this.#codePart(part);
    });
  }

  /** Trains a codebook on keys of all tokens, then has it used on the same keys, joined to one part. */
  async #trained(
    parts: readonly KeyPart[],
    initOffset: number,
    use: (codebook: Codebook, part: KeyPart) => Promise<void>,
  ): Promise<void> {
    const { shape } = this.#config, gpu = this.#gpu, tokens = this.#tokens;
    const { seed, iterations, tolerance, onTrainProgress } = this.#options;
    const options = { seed, iterations, tolerance, initOffset, onProgress: onTrainProgress };
    checkTraining(shape, tokens, options);
    const where = this.#options.trainOn ?? (gpu && !gpu.info.isSoftware ? "gpu" : "cpu");
    if (where === "cpu" || !gpu) {
      const all = await readParts(gpu, shape, parts);
      const codebook = trainCentroids(shape, all, options);
      return await use(
        codebook,
        parts.length === 1 ? parts[0] : { tokens, stride: tokens, keys: all, elements: "f32" },
      );
    }
    const bytes = this.#keyBytes(tokens);
    if ((parts.length > 1 || parts[0].keys instanceof Float32Array) && bytes > gpu.limits.maxBufferSize) {
      refuse(
        "train a codebook",
        `keys that are not in one buffer must fit into one, at most ${gpu.limits.maxBufferSize} bytes`,
        `they take ${bytes}; with trainOn: "cpu" they need none`,
      );
    }
    const { copy, ...keys } = await gatherParts(gpu, shape, parts);
    try {
      const { centroids, phi } = await trainOnGpu(gpu, shape, { ...keys, tokens }, options);
      await use(phi ? { centroids, phi } : { centroids }, { ...keys, tokens });
    } finally {
      copy?.destroy();
    }
  }

  /** Codes the keys of all tokens. */
  async #codePart(part: KeyPart): Promise<void> {
    const { shape } = this.#config, { keys, tokens, stride, elements } = part;
    const bytes = this.#keyBytes(stride, elements);
    if (keys instanceof Float32Array || bytes > this.#gpu!.limits.maxStorageBufferBindingSize) {
      return await this.#code(await readParts(this.#gpu, shape, [part]), tokens, 0);
    }
    if (elements === "f32") return await this.#code({ ...keys, size: bytes }, tokens, 0, stride);
    const most = Math.min(tokens, Math.max(1, Math.floor(this.#layer.maxKeyBytes / this.#keyBytes(1))));
    using widener = await KeyWidener.create(this.#gpu!, shape, most);
    for (let at = 0; at < tokens; at += most) {
      const count = Math.min(most, tokens - at);
      await this.#code(await widener.widen(part, at, count), count, at);
    }
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
    if (!Number.isSafeInteger(tokens) || tokens < 0) {
      refuse("reserve", "tokens must be an integer ≥ 0", `tokens is ${tokens}`);
    }
    if (!Number.isInteger(rows) || rows < 1 || rows > MAX_ROWS) {
      refuse("reserve", `rows must be an integer 1 to ${MAX_ROWS}`, `rows is ${rows}`);
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

  #countRows(action: string, query: Float32Array | GpuInput, rows: number | undefined): number {
    const { batch, heads, headWidth } = this.#config.shape;
    return this.#countVectors(action, "query", "[B, H, rows, D]", query, batch * heads * headWidth, rows);
  }

  #countKeys(
    action: string,
    keys: Float32Array | GpuInput,
    tokens: number | undefined,
    elements?: KeyElements, // of keys that no single binding must hold
  ): number {
    const { batch, kvHeads, headWidth } = this.#config.shape;
    const each = batch * kvHeads * headWidth;
    const t = this.#countVectors(action, "keys", "[B, Hkv, t, D]", keys, each, tokens, elements);
    // Before anything is counted as appended: the buffer must hold what it is said to hold.
    if (isGpuInput(keys) && this.#gpu && !elements) {
      resolveInput("new keys", keys, this.#keyBytes(t), this.#gpu.limits);
    }
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
    elements: KeyElements = "f32",
  ): number {
    if (isGpuInput(input)) {
      if (!this.#gpu) {
        throw new TypeError(
          `Cannot ${action} as pipeline ${this.#pipeline.id} runs on the CPU: ${name} is a GPU buffer`,
        );
      }
      const buffer = "buffer" in input ? input.buffer as GPUBuffer : input;
      const bytes = "buffer" in input ? input.size ?? buffer.size - (input.offset ?? 0) : buffer.size;
      const eachBytes = each * elementBytes(elements);
      if (given === undefined && bytes > eachBytes) {
        const option = name === "query" ? "rows" : "tokens";
        refuse(
          action,
          `a GPU buffer larger than one needs option ${option}`,
          `${name} has ${bytes} bytes, one is ${eachBytes}`,
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
        `Cannot ${action} as ${name} must be a Float32Array or a GPU buffer: it is ${show(input)}`,
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

/** A pipeline with sizes, or as it is where nothing in it is tuned or this device or shape cannot have them. */
function tunedOr(pipeline: Pipeline, tuning: Tuning, config: ResolvedConfig, device: Gpu, weights: boolean): Pipeline {
  const tuned = pipeline.tuned?.(tuning);
  try {
    tuned?.kernelsFor({ config, device, weights });
    return tuned ?? pipeline;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return pipeline;
  }
}

/** The GPU to run on; undefined where none is needed and there is none. */
async function gpuFor({ device }: PqIndexerOptions, isNeeded: boolean): Promise<Gpu | undefined> {
  if (device) return Gpu.of(device);
  return await Gpu.shared().catch((error) => {
    if (isNeeded || !(error instanceof GpuUnavailableError)) throw error;
    return undefined;
  });
}

/** Typed arrays are copied, so that the caller may reuse them before a queued call runs. */
function ownCopy<T extends Float32Array | GpuInput | undefined>(input: T): T {
  return input instanceof Float32Array ? input.slice() as T : input;
}

/** f16 values as f32. */
function widened<T extends Float32Array | GpuInput | undefined>(input: T | Float16Array): T | Float32Array {
  return input instanceof Float16Array ? Float32Array.from(input) : input;
}

/** Position of the first NaN or ±inf, or −1. The common case is one pass of multiplications. */
function firstNonFinite(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * 0;
  return sum === 0 ? -1 : values.findIndex((value) => !Number.isFinite(value));
}

/** Validates a codebook given by the caller and copies it into our layout. */
function readCodebook(config: ResolvedConfig, input: CodebookInput, isSaved: boolean) {
  const action = "use this codebook";
  knowOptions(action, input, ["centroids", "phi", "codes", "codesLayout", "tokens"]);
  const { shape } = config;
  const nGroups = shape.batch * shape.kvHeads * shape.subvectors;
  const check = (name: string, values: unknown, length: number): Float32Array => {
    if (!(values instanceof Float32Array)) {
      throw new TypeError(`Cannot ${action} as ${name} must be a Float32Array: it is ${show(values)}`);
    }
    if (values.length !== length) refuse(action, `${name} must hold ${length} values`, `it holds ${values.length}`);
    const at = isSaved ? -1 : firstNonFinite(values);
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
  const tokens = input.tokens ?? (n === 0 ? 0 : initOffset + n);
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
  const codebook: Codebook = phi ? { centroids, phi } : { centroids };
  return { codebook, codes, tokens, initOffset };
}
