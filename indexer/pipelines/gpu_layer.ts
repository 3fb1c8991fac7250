/**
 * Runs any pipeline that is a list of kernels: owns the buffers that the kernels name, uploads
 * inputs, writes the step's `Params` and records the dispatches in order.
 *
 * @module
 */

import { type GpuInput, type OwnedBuffer, type ResolvedInput, resolveInput } from "../../kernels/gpu/buffers.ts";
import type { Gpu } from "../../kernels/gpu/device.ts";
import { type BufferDef, CompiledKernel, type Kernel, viewed } from "../../kernels/gpu/kernel.ts";
import { zeros } from "../../kernels/list/zeros.ts";
import { cache } from "../../kernels/attend/attend.ts";
import * as io from "../../kernels/layer/buffers.ts";
import type { CodesFormat } from "../../kernels/quantize/codes.ts";
import { POOLED, poolMax, poolSoftmax, SUMMED, sumQueries } from "../../kernels/pool/pool.ts";
import { postedIn } from "../../kernels/postings/postings.ts";
import { forShortlist, MOST_SHORT, refineList } from "../../kernels/refine/refine_list.ts";
import { mask } from "../../kernels/topk/mask.ts";
import { nLists, PARAMS_BYTES, type Posted, type RowShape, type StepShape } from "../../kernels/shape.ts";
import { type Capacity, poolsScores, refuse, type ResolvedConfig, shortlistConfig, summedConfig } from "../config.ts";
import type { Codebook } from "../reference.ts";
import { PARAM_SLOTS, ParamsRing } from "./params_ring.ts";
import { INPUTS, stridesOf } from "./plan.ts";
import { Selection, type SelectionBuffers, type SelectionData } from "../selection.ts";
import type { Layer, LayerContext, LayerStep, PassTarget, Pipeline, PlanContext } from "./pipeline.ts";

/** A pipeline as plain data. */
export interface GpuPipelineDef {
  /** See {@linkcode Pipeline.id}. */
  readonly id: string;
  /** See {@linkcode Pipeline.title}. */
  readonly title: string;
  /** See {@linkcode Pipeline.change}. */
  readonly change: string;
  /** See {@linkcode Pipeline.halfTables}. */
  readonly halfTables?: boolean;
  /** How codes lie in memory. */
  readonly codes: CodesFormat;
  /** Kernels of a step, in order; those that code keys find no work in a step without new ones. */
  readonly kernels: readonly Kernel[];
  /** The kernels for a config on a device, where not every shape can have `kernels`. Pure. */
  readonly kernelsFor?: (context: PlanContext) => readonly Kernel[];
  /** Whether the kernels for a config re-rank by themselves; default: never, others follow them then. Pure. */
  readonly reRanks?: (context: PlanContext) => boolean;
  /** Kernels that follow if weights are written. */
  readonly weightKernels: readonly Kernel[];
  /** WGSL texts by path, to run edited kernels; default: the project's own. */
  readonly wgslFiles?: Readonly<Record<string, string>>;
}

/** The kernels of a step with neither pooling nor re-ranking, in order; with pooled scores those that store them. Pure. */
export function plainKernelsOf(def: GpuPipelineDef, context: PlanContext): readonly Kernel[] {
  const kernels = def.kernelsFor?.(context) ?? def.kernels;
  return context.weights ? [...kernels, ...def.weightKernels] : kernels;
}

/** The kernels of a step, in order. Pure. */
export function kernelsOf(def: GpuPipelineDef, context: PlanContext): readonly Kernel[] {
  if (context.config.pooling === "groupSum") {
    const summed = kernelsOf(def, { ...context, config: summedConfig(context.config) });
    return [sumQueries, ...summed.map((kernel) => viewed(kernel, SUMMED))];
  }
  if (poolsScores(context.config)) {
    const kernels = plainKernelsOf(def, context), scored = kernels.findIndex(({ name }) => name === mask.name);
    const pool = context.config.pooling === "groupMax" ? poolMax : poolSoftmax;
    return [...kernels.slice(0, scored), pool, ...kernels.slice(scored).map((kernel) => viewed(kernel, POOLED))];
  }
  if (context.config.refine > 1 && !def.reRanks?.(context)) {
    const short = { ...context, config: shortlistConfig(context.config), weights: false };
    const refine = refineFor(context);
    return [...plainKernelsOf(def, short).map(forShortlist), ...(context.weights ? [zerosUnlessListed] : []), refine];
  }
  return plainKernelsOf(def, context);
}

/** Clears all weights where the lists before cannot tell what to clear. */
export const zerosUnlessListed: Kernel = {
  ...zeros,
  work: (shape, step) => step.clearsPrevious ? { workgroups: 0, bytesMoved: 0 } : zeros.work(shape, step),
};

/** Re-ranking by the largest workgroups that the device has; smaller ones in software. */
function refineFor({ config, device, weights }: PlanContext): Kernel {
  const { shape, heavySize, refine, refineElements: elements } = config, { limits, subgroupSize } = device;
  const lengths = typeof heavySize === "number" ? [Math.max(4, refine * heavySize)] : [MOST_SHORT, 2048, 1024];
  const most = Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX);
  const fits = (kernel: Kernel) => {
    const { invocations, workgroupBytes } = kernel.plan(shape);
    return invocations <= most && workgroupBytes <= limits.maxComputeWorkgroupStorageSize;
  };
  const sizes = device.info.isSoftware ? [256, 128, 64] : [1024, 512, 256, 128, 64];
  const all = lengths.flatMap((mostShort) =>
    sizes.map((invocations) => refineList({ invocations, subgroupSize, elements, mostShort, weights }))
  );
  const kernel = all.find(fits);
  if (!kernel) {
    const bytes = limits.maxComputeWorkgroupStorageSize;
    refuse(
      "plan re-ranking",
      `a shortlist must fit the device's ${bytes} bytes of workgroup memory`,
      `refine x heavySize is ${lengths[0]}`,
    );
  }
  return kernel;
}

/** Makes a pipeline of a list of kernels. */
export function gpuPipeline(def: GpuPipelineDef): Pipeline {
  return {
    id: def.id,
    title: def.title,
    change: def.change,
    halfTables: def.halfTables,
    runsOn: "gpu",
    kernels: [...def.kernels, ...def.weightKernels],
    kernelsFor: (context) => kernelsOf(def, context),
    create: (context) => GpuLayer.create(def, context),
  };
}

/** Bytes of keys that one upload brings at most; a long prompt is coded in several dispatches. */
const MAX_KEY_BYTES = 32 * 2 ** 20;

/** What holds for a step that goes on from the one before it. */
const GOES_ON = { clearsPrevious: true, posts: false };

/** How some of the kernels see a step; undefined where they see it as it is. */
type StepView = ((step: StepShape) => StepShape) | undefined;

/** A step with its inputs and outputs resolved to buffers. */
interface BoundStep {
  readonly shape: StepShape;
  /** Where the `Params` of each of the views of the step are. */
  readonly params: readonly { readonly buffer: GPUBuffer; readonly offset: number }[];
  readonly buffer: (name: string) => ResolvedInput;
}

/** One layer on the GPU. */
export class GpuLayer implements Layer {
  readonly operations: readonly string[];
  readonly maxKeyBytes: number;
  readonly #gpu: Gpu;
  readonly #config: ResolvedConfig;
  readonly #def: GpuPipelineDef;
  readonly #kernels: readonly CompiledKernel[];
  /** Which of `#params` each kernel reads. */
  readonly #views: readonly number[];
  readonly #writesWeights: boolean;
  /** The `Params` of steps as they are, then as each of the kernels' views sees them. */
  readonly #params: readonly {
    readonly view: StepView;
    readonly owned: OwnedBuffer;
    readonly ring: ParamsRing;
  }[];
  /** Bound in place of an input that a step comes without. */
  readonly #nothing: OwnedBuffer;
  /** Steps recorded since the caller last told, by any other call, that all were submitted. */
  #waiting = 0;
  #owned = new Map<string, OwnedBuffer>();
  #uploads = new Map<string, OwnedBuffer>();
  #capacity: Capacity | undefined;
  /** How the own weights lie that hold exactly the lists in the own buffers; undefined if they may not. */
  #listed: string | undefined;
  /** Which codes the postings hold; undefined if none that can be trusted. */
  #posted: Posted | undefined;
  /** Counts what invalidates earlier results. */
  #generation = 0;

  private constructor(
    def: GpuPipelineDef,
    context: LayerContext,
    gpu: Gpu,
    kernels: readonly CompiledKernel[],
    params: readonly (readonly [StepView, OwnedBuffer])[],
    slotBytes: number,
    nothing: OwnedBuffer,
  ) {
    this.#nothing = nothing;
    this.#def = def;
    this.#gpu = gpu;
    this.#config = context.config;
    this.#writesWeights = context.weights;
    this.#kernels = kernels;
    this.#views = kernels.map(({ kernel }) => params.findIndex(([view]) => view === kernel.view?.step));
    this.#params = params.map(([view, owned]) => ({
      view,
      owned,
      ring: new ParamsRing(gpu.device.queue, owned.buffer, slotBytes),
    }));
    this.operations = kernels.map(({ kernel }) => kernel.name);
    this.maxKeyBytes = Math.min(MAX_KEY_BYTES, gpu.limits.maxStorageBufferBindingSize);
  }

  /** Compiles the pipeline's kernels for this layer's shape (or finds them compiled). */
  static async create(def: GpuPipelineDef, context: LayerContext): Promise<GpuLayer> {
    const gpu = context.gpu!;
    const list = kernelsOf(def, { config: context.config, device: gpu, weights: context.weights });
    const kernels = await Promise.all(
      list.map((kernel) => CompiledKernel.create(gpu, kernel, context.config.shape, def.wgslFiles)),
    );
    const alignment = gpu.limits.minUniformBufferOffsetAlignment;
    const slotBytes = Math.ceil(PARAMS_BYTES / alignment) * alignment;
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    const views = new Set(list.map(({ view }): StepView => view?.step));
    const params = await Promise.all(
      [...views].map(async (view) => [view, await gpu.allocate("params", slotBytes * PARAM_SLOTS, usage)] as const),
    );
    return new GpuLayer(def, context, gpu, kernels, params, slotBytes, await gpu.allocate("nothing", 16));
  }

  async reserve(capacity: Capacity, nCoded: number): Promise<void> {
    const sizes = this.#sizes(capacity);
    const fresh = new Map<string, OwnedBuffer>();
    const restride = capacity.tokens !== this.#capacity?.tokens;
    try {
      for (const [name, bytes] of sizes) {
        const old = this.#owned.get(name);
        if (!old || old.bytes < bytes || (name === io.codes.name && restride)) {
          fresh.set(name, await this.#gpu.allocate(name, bytes));
        }
      }
      const codes = fresh.get(io.codes.name), old = this.#owned.get(io.codes.name);
      if (codes && old && nCoded > 0) await this.#copyCodes(old, this.#capacity!, codes, capacity, nCoded);
    } catch (error) {
      for (const buffer of fresh.values()) buffer.destroy();
      throw error;
    }
    for (const [name, buffer] of fresh) {
      this.#owned.get(name)?.destroy();
      this.#owned.set(name, buffer);
    }
    this.#capacity = capacity;
    this.#listed = undefined;
    this.#posted = undefined;
    this.#generation++;
    for (const kernel of this.#kernels) kernel.forgetBuffers();
  }

  /** An output at the shape that lists have. */
  #output(def: BufferDef): BufferDef {
    return { ...def, elements: (_, step) => def.elements(this.#config.listShape, step) };
  }

  /** Bytes of every buffer at a capacity, by name. */
  #sizes(capacity: Capacity): Map<string, number> {
    for (const { kernel } of this.#kernels) {
      const { SHORT = Infinity } = kernel.plan(this.#config.shape).overrides;
      if (capacity.short > SHORT) {
        const { refine } = this.#config;
        refuse(
          `make room for ${capacity.tokens} tokens`,
          `refine x K must be at most ${SHORT} on this device`,
          `they are ${refine} x ${capacity.heavy}`,
        );
      }
    }
    const full = this.#stepAt(capacity);
    const limit = this.#gpu.limits.maxStorageBufferBindingSize;
    const sizes = new Map<string, number>();
    const outputs = [io.indices, io.lengths, ...(this.#writesWeights ? [io.weights] : [])];
    const always = [io.centroids, io.phi, ...outputs.map((def) => this.#output(def))];
    for (const def of [...always, ...this.#kernels.flatMap(({ kernel }) => kernel.buffers)]) {
      if (INPUTS.has(def.name)) continue;
      const bytes = 4 * Math.max(4, def.elements(this.#config.shape, full)); // never less than one vec4
      if (bytes > limit) {
        refuse(
          `reserve ${capacity.tokens} tokens`,
          `one binding of this device holds at most ${limit} bytes`,
          `pipeline ${this.#def.id} needs ${bytes} for ${def.name} (${capacity.rows} query rows)`,
        );
      }
      sizes.set(def.name, Math.max(bytes, sizes.get(def.name) ?? 0));
    }
    return sizes;
  }

  /** A step as large as the capacity allows; what it holds besides strides and rows does not matter. */
  #stepAt(capacity: Capacity): StepShape {
    const row: RowShape = {
      nTokens: capacity.tokens,
      nSink: 0,
      nHeavy: capacity.heavy,
      windowBegin: capacity.tokens,
      candBegin: 0,
      candEnd: capacity.tokens,
      listLength: capacity.list,
      nShort: capacity.short,
    };
    return {
      nCoded: capacity.tokens,
      nNew: 0,
      firstNewKey: 0,
      nNewKeys: 0,
      initOffset: 0,
      ...stridesOf(capacity),
      rows: new Array<RowShape>(capacity.rows).fill(row),
    };
  }

  get #nCodeRows(): number {
    const { batch, kvHeads, subvectors } = this.#config.shape;
    return batch * kvHeads * subvectors;
  }

  async #copyCodes(from: OwnedBuffer, had: Capacity, to: OwnedBuffer, has: Capacity, nCoded: number): Promise<void> {
    const { rowWords } = this.#def.codes;
    await this.#gpu.submit("grow codes", (encoder) => {
      for (let row = 0; row < this.#nCodeRows; row++) {
        const source = row * rowWords(had.tokens) * 4, target = row * rowWords(has.tokens) * 4;
        encoder.copyBufferToBuffer(from.buffer, source, to.buffer, target, rowWords(nCoded) * 4);
      }
    });
  }

  setCodebook(codebook: Codebook): void {
    const { queue } = this.#gpu.device;
    const write = (name: string, data: Float32Array) =>
      queue.writeBuffer(this.#owned.get(name)!.buffer, 0, data as Float32Array<ArrayBuffer>);
    write(io.centroids.name, codebook.centroids);
    if (codebook.phi) write(io.phi.name, codebook.phi);
  }

  importCodes(codes: Uint8Array, n: number): void {
    this.#posted = undefined;
    const { rowWords, pack } = this.#def.codes;
    const words = new Uint32Array(rowWords(n));
    const stride = rowWords(this.#capacity!.tokens) * 4;
    const { buffer } = this.#owned.get(io.codes.name)!;
    for (let row = 0; row < this.#nCodeRows; row++) {
      pack(codes.subarray(row * n, (row + 1) * n), words);
      this.#gpu.device.queue.writeBuffer(buffer, row * stride, words);
    }
  }

  async exportCodes(n: number): Promise<Uint8Array> {
    const { rowWords, unpack } = this.#def.codes;
    const codes = new Uint8Array(this.#nCodeRows * n);
    if (n === 0) return codes;
    const stride = rowWords(this.#capacity!.tokens) * 4;
    const { buffer } = this.#owned.get(io.codes.name)!;
    const rows = await this.#gpu.read(
      Array.from({ length: this.#nCodeRows }, (_, row) => ({ buffer, offset: row * stride, bytes: rowWords(n) * 4 })),
    );
    rows.forEach((bytes, row) => unpack(new Uint32Array(bytes), codes.subarray(row * n, (row + 1) * n)));
    return codes;
  }

  settle(): void {
    this.#waiting = 0;
  }

  check(step: LayerStep): void {
    this.#resolve(step, this.#stepShape(step));
  }

  async run(step: LayerStep): Promise<Selection | undefined> {
    this.settle();
    const query = await this.#upload(io.query.name, step.query);
    const newKeys = await this.#upload(io.newKeys.name, step.newKeys);
    const uploaded = { ...step, query, newKeys };
    try {
      return await this.#gpu.submit("step", (encoder) => {
        const pass = encoder.beginComputePass({ label: "step" });
        const selection = this.#encode(pass, uploaded);
        pass.end();
        return selection;
      });
    } catch (error) {
      this.#distrust();
      throw error;
    }
  }

  /** A step may not have run: what it would have left in the buffers is made anew. */
  #distrust(): void {
    this.#listed = undefined;
    this.#posted = undefined;
  }

  /** Copies a typed array into a buffer that is kept for the next step; GPU buffers pass. */
  async #upload(name: string, input: Float32Array | GpuInput | undefined): Promise<GpuInput | undefined> {
    if (!(input instanceof Float32Array)) return input;
    let target = this.#uploads.get(name);
    if (!target || target.bytes < input.byteLength) {
      const grown = await this.#gpu.allocate(name, input.byteLength);
      target?.destroy();
      this.#uploads.set(name, target = grown);
    }
    if (input.byteLength > 0) {
      this.#gpu.device.queue.writeBuffer(target.buffer, 0, input as Float32Array<ArrayBuffer>);
    }
    return target.buffer;
  }

  record(target: PassTarget, step: LayerStep): Selection | undefined {
    if (this.#waiting >= PARAM_SLOTS) {
      refuse(
        "record a step",
        `at most ${PARAM_SLOTS} recorded steps of an index may wait for their submit`,
        `${this.#waiting} were recorded in a row; after submitting them, await reserve() or any other call`,
      );
    }
    try {
      const selection = this.#encode(target, step);
      this.#waiting++;
      return selection;
    } catch (error) {
      this.#distrust();
      throw error;
    }
  }

  #encode(target: PassTarget, step: LayerStep): Selection | undefined {
    const bound = this.#bind(step);
    for (const [ix, kernel] of this.#kernels.entries()) {
      const params = bound.params[this.#views[ix]];
      if (typeof target !== "function") {
        kernel.record(target, bound.shape, params, bound.buffer);
      } else if (kernel.kernel.work(kernel.shape, bound.shape).workgroups > 0) {
        const pass = target(kernel.kernel.name);
        kernel.record(pass, bound.shape, params, bound.buffer);
        pass.end();
      }
    }
    return this.#selection(bound, step);
  }

  /**
   * Runs a step one operation at a time, some of them as their TypeScript twins on the CPU: to find
   * which kernel of a wrong step is at fault.
   *
   * @param onCpu names out of {@linkcode GpuLayer.operations}
   */
  async bisect(step: LayerStep, onCpu: ReadonlySet<string>): Promise<Selection | undefined> {
    this.settle();
    const query = await this.#upload(io.query.name, step.query);
    const newKeys = await this.#upload(io.newKeys.name, step.newKeys);
    const bound = this.#bind({ ...step, query, newKeys });
    this.#distrust(); // until the next step, as this one may fail half way
    for (const [ix, compiled] of this.#kernels.entries()) {
      const { kernel, shape } = compiled;
      if (kernel.work(shape, bound.shape).workgroups === 0) continue;
      if (!onCpu.has(kernel.name)) {
        await this.#gpu.submit(kernel.name, (encoder) => {
          const pass = encoder.beginComputePass({ label: kernel.name });
          compiled.record(pass, bound.shape, bound.params[this.#views[ix]], bound.buffer);
          pass.end();
        });
        continue;
      }
      const ranges = kernel.buffers.map((use) => ({
        ...bound.buffer(use.name),
        bytes: 4 * use.elements(shape, bound.shape),
      }));
      const parts = await this.#gpu.read(ranges);
      const arrays = kernel.buffers.map((use, ix) =>
        use.type === "f32" ? new Float32Array(parts[ix]) : new Uint32Array(parts[ix])
      );
      kernel.twin(shape, bound.shape, Object.fromEntries(kernel.buffers.map((use, ix) => [use.name, arrays[ix]])));
      kernel.buffers.forEach((use, ix) => {
        if (use.access === "read") return;
        this.#gpu.device.queue.writeBuffer(ranges[ix].buffer, ranges[ix].offset, parts[ix]);
      });
    }
    return this.#selection(bound, step);
  }

  dispatches(step: LayerStep): number {
    const shape = { ...this.#stepShape(step), ...GOES_ON };
    return this.#kernels.filter(({ kernel }) => kernel.work(this.#config.shape, shape).workgroups > 0).length;
  }

  bytesMoved(step: LayerStep): number {
    const shape = { ...this.#stepShape(step), ...GOES_ON };
    return this.#kernels.reduce((sum, { kernel }) => sum + kernel.work(this.#config.shape, shape).bytesMoved, 0);
  }

  #stepShape(step: LayerStep): StepShape {
    const { nCoded, nNew, firstNewKey, nNewKeys, initOffset, rows, out, keyStride } = step;
    const strides = stridesOf(this.#capacity!);
    if (out) {
      strides.listStride = out.listStride;
      strides.weightStride = out.weightStride ?? strides.weightStride;
    }
    const clearsPrevious = !out && this.#listed === layoutOf(rows.length, strides);
    const posting = postedIn(step, this.#posted);
    const coding = { nCoded, nNew, firstNewKey, nNewKeys, initOffset };
    return { ...coding, rows, clearsPrevious, keyStride: keyStride ?? 0, ...posting, ...strides };
  }

  /** The caller's buffers of a step, checked; typed arrays are not among them. */
  #resolve(step: LayerStep, shape: StepShape): Map<string, ResolvedInput> {
    const { limits } = this.#gpu;
    const given = new Map<string, ResolvedInput>();
    const take = (def: BufferDef, input: Float32Array | GpuInput | undefined) => {
      if (input === undefined || input instanceof Float32Array) return;
      given.set(def.name, resolveInput(def.name, input, 4 * def.elements(this.#config.shape, shape), limits));
    };
    take(io.query, step.query);
    take(io.newKeys, step.newKeys);
    if (step.keys) take(cache("keys", { elements: this.#config.refineElements }), step.keys);
    if (step.out) {
      this.#checkOutput(step, shape);
      take(this.#output(io.indices), step.out.indices);
      take(this.#output(io.lengths), step.out.lengths);
      if (this.#writesWeights) take(this.#output(io.weights), step.out.weights);
      refuseOverlaps(given);
    }
    return given;
  }

  /** Resolves every buffer of a step and writes its `Params`. */
  #bind(step: LayerStep): BoundStep {
    const shape = this.#stepShape(step);
    const given = this.#resolve(step, shape);
    this.#generation++;
    this.#posted = shape.posted;
    if (!step.out && step.rows.length > 0) this.#listed = layoutOf(step.rows.length, shape);
    return {
      shape,
      params: this.#params.map(({ view, owned: { buffer }, ring }) => ({
        buffer,
        offset: ring.place(view?.(shape) ?? shape, PARAM_SLOTS - this.#waiting),
      })),
      buffer: (name) => {
        const input = given.get(name);
        if (input) return input;
        // A kernel that does two things is bound to the inputs of both.
        const { buffer, bytes } = this.#owned.get(name) ?? this.#nothing;
        return { buffer, offset: 0, size: bytes };
      },
    };
  }

  #checkOutput(step: LayerStep, shape: StepShape): void {
    const longest = Math.max(...step.rows.map((row) => row.listLength));
    const tokens = Math.max(...step.rows.map((row) => row.nTokens));
    const holds = (name: string, stride: number, least: number, what: string) => {
      if (!(Number.isInteger(stride) && stride >= least && stride < 2 ** 31)) {
        refuse("write the selection", `${name} must be an integer that holds ${what}`, `${stride} for ${least} tokens`);
      }
    };
    holds("listStride", shape.listStride, Math.max(1, longest), "the longest list");
    if (!this.#writesWeights) return;
    if (!step.out!.weights || step.out!.weightStride === undefined) {
      throw new TypeError(
        "Cannot write the selection as this index writes weights: give out.weights and out.weightStride",
      );
    }
    holds("weightStride", shape.weightStride, tokens, "every token");
  }

  #selection(bound: BoundStep, step: LayerStep): Selection | undefined {
    if (step.rows.length === 0) return undefined;
    const { listStride, weightStride } = bound.shape;
    const { listShape } = this.#config, lists = nLists(listShape, bound.shape);
    const buffers: SelectionBuffers = {
      indices: bound.buffer(io.indices.name),
      lengths: bound.buffer(io.lengths.name),
      ...(this.#writesWeights ? { weights: bound.buffer(io.weights.name) } : {}),
    };
    const generation = this.#generation;
    const assertCurrent = () => {
      if (!step.out && generation !== this.#generation) {
        refuse("read this selection", "a selection is valid until the index's next call", "the index was called since");
      }
    };
    const read = async (): Promise<SelectionData> => {
      assertCurrent();
      const [indices, lengths, weights] = await this.#gpu.read([
        { ...buffers.indices, bytes: lists * listStride * 4 },
        { ...buffers.lengths, bytes: lists * 4 },
        ...(buffers.weights ? [{ ...buffers.weights, bytes: lists * weightStride * 4 }] : []),
      ], assertCurrent);
      return {
        indices: new Uint32Array(indices),
        lengths: new Uint32Array(lengths),
        weights: weights ? new Float32Array(weights) : undefined,
        listStride,
        weightStride,
      };
    };
    return new Selection(listShape, step.rows.length, bound.shape, buffers, read, assertCurrent);
  }

  destroy(): void {
    this.#generation++;
    for (const { owned } of this.#params) owned.destroy();
    this.#nothing.destroy();
    for (const buffer of [...this.#owned.values(), ...this.#uploads.values()]) buffer.destroy();
    this.#owned.clear();
    this.#uploads.clear();
  }
}

/** Lists and weights of steps that agree in this lie in the same places. */
function layoutOf(rows: number, strides: { readonly listStride: number; readonly weightStride: number }): string {
  return `${rows} ${strides.listStride} ${strides.weightStride}`;
}

/** Outputs may not share bytes with each other or with inputs: the result would depend on chance. */
function refuseOverlaps(given: ReadonlyMap<string, ResolvedInput>): void {
  const ranges = [...given];
  for (const [ix, [name, a]] of ranges.entries()) {
    for (const [other, b] of ranges.slice(0, ix)) {
      const overlap = a.buffer === b.buffer && a.offset < b.offset + b.size && b.offset < a.offset + a.size;
      if (overlap && !(INPUTS.has(name) && INPUTS.has(other))) {
        refuse("write the selection", "its buffers must not overlap", `${name} and ${other} share bytes of one buffer`);
      }
    }
  }
}
