/**
 * cpu: the step on typed arrays, for machines without a GPU. One pass over the codes adds up table entries and
 * gathers what beats the K best so far; lists are shared out among threads over shared memory. Tables and scores are
 * f64, so lists are the oracle's but for rounding; outside of the byte claim of the GPU pipelines.
 *
 * @module
 */

import { CODE_KEYS, type CpuBuffers, type JobKind, MAKE_LIST, STEP_FIELDS } from "./jobs.ts";
import { Pool, sharedPool, WorkerError } from "./pool.ts";
import { centroidWidth, MAX_ROWS, ROW_FIELDS, rowField, subWidth } from "../../../kernels/shape.ts";
import { type Capacity, poolsScores, type ResolvedConfig, shortlistConfig, summedConfig } from "../../config.ts";
import type { Codebook } from "../../reference.ts";
import { Selection, type SelectionData } from "../../selection.ts";
import { hostArray, type Layer, type LayerContext, type LayerStep, type Pipeline } from "../pipeline.ts";
import { e00 } from "../e00_reference.ts";
import { RefinedLayer } from "./refined.ts";
import { SummedLayer } from "./summed.ts";

/** Options of {@linkcode cpuPipeline}. */
export interface CpuOptions {
  /** Threads, the caller's included. Default: one per core, eight at most, one where workers cannot start. */
  readonly threads?: number;
}

const MOST_THREADS = 8;

/**
 * The step on the CPU.
 *
 * @throws {WorkerError} from `create`, within a second, if `threads` is given and a worker does not start
 */
export function cpuPipeline(options: CpuOptions = {}): Pipeline {
  return {
    id: "cpu",
    title: "threads",
    change: "typed arrays on the CPU: lookup fused with the selection, lists shared out among threads",
    runsOn: "cpu",
    kernels: [],
    kernelsFor: () => [],
    create: async (context: LayerContext) => {
      const { config, weights } = context, pool = await poolFor(options.threads);
      if (poolsScores(config)) return e00.create(context); // no fast path: the reference's
      if (config.pooling === "groupSum") {
        return new SummedLayer(await cpuPipeline(options).create({ ...context, config: summedConfig(config) }), config);
      }
      if (config.refine === 1) return new CpuLayer(context, pool);
      const short = new CpuLayer({ ...context, config: shortlistConfig(config), weights: false }, pool);
      return new RefinedLayer(short, config, weights);
    },
  };
}

/** The step on all cores. */
export const cpu: Pipeline = cpuPipeline();

async function poolFor(threads: number | undefined): Promise<Pool> {
  if (threads !== undefined) {
    if (!Number.isInteger(threads) || threads < 1 || threads > 256) {
      throw new RangeError(`Cannot create a layer as threads must be an integer 1 to 256: threads is ${threads}`);
    }
    return await sharedPool(threads);
  }
  const cores = globalThis.navigator?.hardwareConcurrency ?? 1;
  return await sharedPool(Math.min(MOST_THREADS, cores)).catch((error) => {
    if (error instanceof WorkerError) return Pool.single();
    throw error;
  });
}

class CpuLayer implements Layer {
  readonly operations = ["code", "list"];
  readonly maxKeyBytes = 64 * 2 ** 20;
  readonly #config: ResolvedConfig;
  readonly #weights: boolean;
  readonly #pool: Pool;
  /** Number of the announcement of the buffers. */
  #number = 0;
  #buffers: CpuBuffers;
  #capacity: Capacity | undefined;
  /** Lists and weights of steps that agree in this lie in the same places. */
  #listed = "";
  #generation = 0;
  #isDestroyed = false;

  constructor({ config, weights }: LayerContext, pool: Pool) {
    this.#config = config;
    this.#weights = weights;
    this.#pool = pool;
    const { shape } = config;
    const groups = shape.batch * shape.kvHeads * shape.subvectors;
    this.#buffers = {
      shape: this.#ints([
        shape.batch,
        shape.heads,
        shape.kvHeads,
        shape.subvectors,
        shape.centroids,
        subWidth(shape),
        centroidWidth(shape),
      ]),
      step: this.#ints(new Array(STEP_FIELDS.length + MAX_ROWS * ROW_FIELDS.length).fill(0)),
      centroids: this.#floats(groups * shape.centroids * centroidWidth(shape)),
      phi: this.#floats(shape.augmented ? groups : 0),
      codes: this.#bytes(0),
      query: this.#floats(0),
      newKeys: this.#floats(0),
      indices: this.#uints(0),
      lengths: this.#uints(0),
      weights: this.#floats(0),
    };
  }

  #floats(count: number): Float32Array {
    return new Float32Array(this.#pool.take(4 * count), 0, count);
  }

  /** All 0, as lists are returned with what lies behind their ends. All else is written before it is read. */
  #uints(count: number): Uint32Array {
    return new Uint32Array(this.#pool.take(4 * count), 0, count).fill(0);
  }

  #bytes(count: number): Uint8Array {
    return new Uint8Array(this.#pool.take(count), 0, count);
  }

  #ints(values: readonly number[]): Int32Array {
    const ints = new Int32Array(this.#pool.take(4 * values.length), 0, values.length);
    ints.set(values);
    return ints;
  }

  reserve(capacity: Capacity, nCoded: number): Promise<void> {
    const { shape } = this.#config;
    const groups = shape.batch * shape.kvHeads * shape.subvectors;
    const lists = shape.batch * shape.heads * capacity.rows;
    const stride = Math.max(1, capacity.list);
    try {
      const codes = this.#bytes(groups * capacity.tokens);
      const had = this.#capacity?.tokens ?? 0;
      for (let group = 0; group < groups && nCoded > 0; group++) {
        codes.set(this.#buffers.codes.subarray(group * had, group * had + nCoded), group * capacity.tokens);
      }
      this.#replace({
        codes,
        query: this.#floats(lists * shape.headWidth),
        indices: this.#uints(lists * stride),
        lengths: this.#uints(lists),
        weights: this.#floats(this.#weights ? lists * capacity.tokens : 0),
      });
    } catch (error) {
      const most = Math.max(groups * capacity.tokens, this.#weights ? 4 * lists * capacity.tokens : 0);
      return Promise.reject(
        new RangeError(
          `Cannot reserve ${capacity.tokens} tokens as this runtime must allocate ${most} bytes at once: ${error}`,
        ),
      );
    }
    this.#capacity = capacity;
    this.#listed = "";
    this.#generation++;
    return this.#pool.deliver();
  }

  #replace(some: Partial<CpuBuffers>): void {
    for (const name of Object.keys(some)) this.#pool.giveBack(this.#buffers[name as keyof CpuBuffers].buffer);
    this.#buffers = { ...this.#buffers, ...some };
    this.#number = this.#pool.announce(this.#number, this.#number === 0 ? this.#buffers : some);
  }

  setCodebook(codebook: Codebook): void {
    this.#buffers.centroids.set(codebook.centroids);
    if (codebook.phi) this.#buffers.phi.set(codebook.phi);
  }

  importCodes(codes: Uint8Array, n: number): void {
    const stride = this.#capacity!.tokens;
    for (let at = 0, group = 0; at < codes.length; at += n, group++) {
      this.#buffers.codes.set(codes.subarray(at, at + n), group * stride);
    }
  }

  exportCodes(n: number): Promise<Uint8Array> {
    const { shape } = this.#config;
    const groups = shape.batch * shape.kvHeads * shape.subvectors, stride = this.#capacity!.tokens;
    const codes = new Uint8Array(groups * n);
    for (let group = 0; group < groups; group++) {
      codes.set(this.#buffers.codes.subarray(group * stride, group * stride + n), group * n);
    }
    return Promise.resolve(codes);
  }

  check(step: LayerStep): void {
    if (step.out) throw new TypeError("Cannot write to GPU buffers as pipeline cpu runs on the CPU: leave out `out`");
  }

  settle(): void {}

  async run(step: LayerStep): Promise<Selection | undefined> {
    this.check(step);
    const { shape } = this.#config;
    const generation = ++this.#generation;
    const strides = { listStride: Math.max(1, this.#capacity!.list), weightStride: this.#capacity!.tokens };
    const layout = `${step.rows.length} ${strides.listStride} ${strides.weightStride}`;
    const fields = {
      ...step,
      ...strides,
      codedStride: this.#capacity!.tokens,
      nRows: step.rows.length,
      clearsPrevious: Number(this.#listed === layout),
      writesWeights: Number(this.#weights),
    };
    STEP_FIELDS.forEach((field, ix) => this.#buffers.step[ix] = fields[field]);
    step.rows.forEach((row, r) => {
      const at = STEP_FIELDS.length + r * ROW_FIELDS.length;
      ROW_FIELDS.forEach((field, ix) => this.#buffers.step[at + ix] = rowField(row, field));
    });
    if (step.nNew > 0) {
      const keys = hostArray("cpu", "new keys", step.newKeys);
      if (this.#buffers.newKeys.length < keys.length) {
        this.#replace({ newKeys: this.#floats(keys.length) });
        await this.#pool.deliver();
      }
      this.#buffers.newKeys.set(keys);
      this.#do(CODE_KEYS, shape.batch * shape.kvHeads * shape.subvectors);
    }
    if (step.rows.length === 0) return undefined;
    this.#buffers.query.set(hostArray("cpu", "query", step.query));
    this.#listed = "";
    this.#do(MAKE_LIST, shape.batch * shape.heads * step.rows.length);
    this.#listed = layout;
    const lists = shape.batch * shape.heads * step.rows.length;
    return new Selection(shape, step.rows.length, strides, undefined, () => {
      if (generation !== this.#generation) {
        return Promise.reject(
          new RangeError(
            "Cannot read this selection as a selection is valid until the index's next call: the index was called since",
          ),
        );
      }
      const { indices, lengths, weights } = this.#buffers;
      const data: SelectionData = {
        indices: new Uint32Array(indices.subarray(0, lists * strides.listStride)),
        lengths: new Uint32Array(lengths.subarray(0, lists)),
        weights: this.#weights ? new Float32Array(weights.subarray(0, lists * strides.weightStride)) : undefined,
        ...strides,
      };
      return Promise.resolve(data);
    });
  }

  #do(kind: JobKind, count: number): void {
    this.#pool.run(this.#number, this.#buffers, kind, count);
  }

  record(): never {
    throw new TypeError("Cannot record into a GPU pass as pipeline cpu runs on the CPU: use step()");
  }

  dispatches(): number {
    return 0;
  }

  bytesMoved(): number {
    return 0;
  }

  destroy(): void {
    if (this.#isDestroyed) return;
    this.#isDestroyed = true;
    this.#generation++;
    this.#pool.announce(this.#number, undefined);
    for (const { buffer } of Object.values(this.#buffers)) this.#pool.giveBack(buffer);
  }
}
