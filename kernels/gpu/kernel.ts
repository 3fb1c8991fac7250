/**
 * The one way to describe, compile, bind and dispatch a kernel.
 *
 * @module
 */

import type { Gpu } from "./device.ts";
import { foldWorkgroups } from "./dispatch.ts";
import { GpuShaderError, GpuValidationError } from "./errors.ts";
import { isDeno } from "./host.ts";
import { composeWgsl } from "./wgsl.ts";
import type { ResolvedInput } from "./buffers.ts";
import { type LayerShape, PARAMS_BYTES, type StepShape } from "../shape.ts";

/** Element type of a storage buffer. */
export type ElementType = "f32" | "u32";

/** Typed array of an element type. */
export type ElementArray = Float32Array | Uint32Array;

/** A storage buffer of a step. Buffers are known by name: whoever writes and reads the same one shares it. */
export interface BufferDef {
  /** Name: the WGSL variable in camelCase. */
  readonly name: string;
  /** Element type. */
  readonly type: ElementType;
  /** Elements that a step touches, strides (capacities) included. */
  elements(shape: LayerShape, step: StepShape): number;
}

/** How a kernel uses a buffer. */
export interface BufferUse extends BufferDef {
  /** "read", or "read_write" where the kernel writes. */
  readonly access: "read" | "read_write";
  /** Binding; default: its position in the kernel's list, from 1 on. */
  readonly binding?: number;
}

/** The kernel reads this buffer. */
export function reads(buffer: BufferDef): BufferUse {
  return { ...buffer, access: "read" };
}

/** The kernel writes this buffer, and may read it. */
export function writes(buffer: BufferDef): BufferUse {
  return { ...buffer, access: "read_write" };
}

/** What of a kernel depends on the layer's shape alone: compiled once. */
export interface KernelPlan {
  /** Values of the WGSL `override`s. */
  readonly overrides: Readonly<Record<string, number>>;
  /** Invocations per workgroup. */
  readonly invocations: number;
  /** Workgroup memory in bytes; Deno does not check it, so we do. */
  readonly workgroupBytes: number;
}

/** What of a kernel depends on the step. */
export interface KernelWork {
  /** Workgroups in one line; 0 means no dispatch. */
  readonly workgroups: number;
  /** Bytes that the dispatch reads and writes, each access counted once. */
  readonly bytesMoved: number;
}

/** Buffers of a kernel on the host, by name. */
export type HostBuffers = Readonly<Record<string, ElementArray>>;

/** A kernel: plain data and pure functions. Nothing here touches a GPU. */
export interface Kernel {
  /** Name of the operation, of the WGSL entry point (snake_case) and of the file. */
  readonly name: string;
  /** WGSL parts in order, the kernel's own file last. */
  readonly wgsl: readonly string[];
  /** Storage buffers; binding 0 is `Params`. */
  readonly buffers: readonly BufferUse[];
  /** Pure plan for a layer. */
  plan(shape: LayerShape): KernelPlan;
  /** Pure plan for a step. */
  work(shape: LayerShape, step: StepShape): KernelWork;
  /** The same operation in plain TypeScript, on the same buffers: for tests and bisecting. */
  twin(shape: LayerShape, step: StepShape, buffers: HostBuffers): void;
  /** How it sees the layer's steps, where that is not as they are: its `Params` are those of the step that it sees. */
  readonly view?: KernelView;
}

/** How a kernel sees a layer and its steps. */
export interface KernelView {
  /** The layer. */
  readonly shape?: (shape: LayerShape) => LayerShape;
  /** The step. */
  readonly step?: (step: StepShape) => StepShape;
  /** Buffers that have other names in the layer than in the kernel, by the latter. */
  readonly names?: Readonly<Record<string, string>>;
}

/** A kernel that works on another view of a layer: a part of a larger step. */
export function viewed(kernel: Kernel, view: KernelView): Kernel {
  const { shape: shapeOf = (shape) => shape, step: stepOf = (step) => step, names = {} } = view;
  const inner = kernel.view?.step;
  return {
    ...kernel,
    view: { ...view, step: inner && view.step ? (step) => inner(stepOf(step)) : inner ?? view.step },
    buffers: kernel.buffers.map((use, ix) => ({
      ...use,
      name: names[use.name] ?? use.name,
      binding: use.binding ?? ix + 1,
      elements: (shape, step) => use.elements(shapeOf(shape), stepOf(step)),
    })),
    plan: (shape) => kernel.plan(shapeOf(shape)),
    work: (shape, step) => kernel.work(shapeOf(shape), stepOf(step)),
    twin: (shape, step, buffers) => {
      const own = kernel.buffers.map(({ name }) => [name, buffers[names[name] ?? name]]);
      kernel.twin(shapeOf(shape), stepOf(step), Object.fromEntries(own));
    },
  };
}

/** The overrides that `layer/layer.wgsl` declares. */
export function layerOverrides(shape: LayerShape): Record<string, number> {
  const width = shape.headWidth / shape.subvectors;
  return {
    BATCH: shape.batch,
    HEADS: shape.heads,
    KV_HEADS: shape.kvHeads,
    SUBVECTORS: shape.subvectors,
    CENTROIDS: shape.centroids,
    SUB_WIDTH: width,
    CENTROID_WIDTH: width + (shape.augmented ? 1 : 0),
  };
}

/** The plan of a kernel with `invocations` per workgroup, no workgroup memory and no overrides of its own. */
export function plainPlan(shape: LayerShape, invocations = 256): KernelPlan {
  return { overrides: { ...layerOverrides(shape), WG: invocations }, invocations, workgroupBytes: 0 };
}

/** Work of one invocation per element. */
export function perElement(elements: number, invocations: number, bytesMoved: number): KernelWork {
  return { workgroups: Math.ceil(elements / invocations), bytesMoved };
}

/** Bind groups kept per kernel: enough for a ring of caller buffers, few enough to forget dead ones. */
const MAX_BIND_GROUPS = 128;

const bufferIds = new WeakMap<GPUBuffer, number>();
let nextBufferId = 0;

function bufferId(buffer: GPUBuffer): number {
  let id = bufferIds.get(buffer);
  if (id === undefined) bufferIds.set(buffer, id = nextBufferId++);
  return id;
}

interface Compiled {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/**
 * A kernel compiled for a layer's shape. Pipelines are shared by every layer of the device that
 * has the same shape; bind groups are this object's own.
 */
export class CompiledKernel {
  /** The description that it was compiled from. */
  readonly kernel: Kernel;
  /** The layer's shape. */
  readonly shape: LayerShape;
  readonly #gpu: Gpu;
  readonly #compiled: Compiled;
  readonly #bindGroups = new Map<string, GPUBindGroup>();
  /** The bind group of the step before, which most steps need again. */
  #last: { params: GPUBuffer; ranges: readonly ResolvedInput[]; group: GPUBindGroup } | undefined;

  private constructor(gpu: Gpu, kernel: Kernel, shape: LayerShape, compiled: Compiled) {
    this.#gpu = gpu;
    this.kernel = kernel;
    this.shape = shape;
    this.#compiled = compiled;
  }

  /**
   * Compiles a kernel asynchronously, or takes it from the device's cache.
   *
   * @param files WGSL texts by path, to compile an edited kernel; default: the project's own
   * @throws {RangeError} if the plan exceeds the device's limits
   * @throws {GpuShaderError} with file and line, if the WGSL is wrong
   */
  static async create(
    gpu: Gpu,
    kernel: Kernel,
    shape: LayerShape,
    files?: Readonly<Record<string, string>>,
  ): Promise<CompiledKernel> {
    gpu.assertAlive();
    const plan = kernel.plan(shape);
    checkPlan(kernel, plan, gpu.limits);
    const composed = composeWgsl(kernel.wgsl, { files, omitEnables: isDeno() ? ["subgroups"] : [] });
    const key = `${kernel.name}\n${JSON.stringify(plan.overrides)}\n${composed.code}`;
    let compiling = gpu.compiled.get(key) as Promise<Compiled> | undefined;
    if (!compiling) {
      compiling = compile(gpu, kernel, plan, composed);
      gpu.compiled.set(key, compiling);
      compiling.catch(() => gpu.compiled.delete(key));
    }
    return new CompiledKernel(gpu, kernel, shape, await compiling);
  }

  /**
   * Encodes one dispatch. Nothing is submitted, and nothing is allocated when the buffers were
   * seen before.
   *
   * @param params the ring of `Params` and the byte offset of this step's
   * @param buffer looks a buffer up by its name
   * @returns whether anything was dispatched (zero work is not)
   */
  record(
    pass: GPUComputePassEncoder,
    step: StepShape,
    params: { readonly buffer: GPUBuffer; readonly offset: number },
    buffer: (name: string) => ResolvedInput,
  ): boolean {
    const { workgroups } = this.kernel.work(this.shape, step);
    if (workgroups === 0) return false;
    pass.setPipeline(this.#compiled.pipeline);
    pass.setBindGroup(0, this.#bindGroup(params.buffer, buffer), [params.offset]);
    const [x, y] = foldWorkgroups(workgroups, this.#gpu.limits.maxComputeWorkgroupsPerDimension);
    pass.dispatchWorkgroups(x, y);
    return true;
  }

  /** Forgets its bind groups, after buffers were replaced. */
  forgetBuffers(): void {
    this.#bindGroups.clear();
    this.#last = undefined;
  }

  #bindGroup(params: GPUBuffer, buffer: (name: string) => ResolvedInput): GPUBindGroup {
    const ranges = this.kernel.buffers.map((use) => buffer(use.name));
    const last = this.#last;
    const isSame = last?.params === params && ranges.every((range, ix) => {
      const other = last.ranges[ix];
      return range.buffer === other.buffer && range.offset === other.offset && range.size === other.size;
    });
    if (isSame) return last.group;
    let key = `${bufferId(params)}`;
    for (const range of ranges) key += `,${bufferId(range.buffer)}:${range.offset}:${range.size}`;
    let group = this.#bindGroups.get(key);
    if (!group) {
      if (this.#bindGroups.size >= MAX_BIND_GROUPS) {
        this.#bindGroups.delete(this.#bindGroups.keys().next().value!);
      }
      group = this.#gpu.device.createBindGroup({
        label: this.kernel.name,
        layout: this.#compiled.layout,
        entries: [
          { binding: 0, resource: { buffer: params, size: PARAMS_BYTES } },
          ...ranges.map((range, ix) => ({ binding: this.kernel.buffers[ix].binding ?? ix + 1, resource: range })),
        ],
      });
      this.#bindGroups.set(key, group);
    }
    this.#last = { params, ranges, group };
    return group;
  }
}

function checkPlan(kernel: Kernel, plan: KernelPlan, limits: GPUSupportedLimits): void {
  const rules: [string, number, number][] = [
    ["invocations per workgroup", plan.invocations, limits.maxComputeInvocationsPerWorkgroup],
    ["invocations along x", plan.invocations, limits.maxComputeWorkgroupSizeX],
    ["workgroup memory in bytes", plan.workgroupBytes, limits.maxComputeWorkgroupStorageSize],
    ["storage buffers", kernel.buffers.length, limits.maxStorageBuffersPerShaderStage],
  ];
  for (const [what, asked, allowed] of rules) {
    if (asked > allowed) {
      throw new RangeError(`Cannot plan ${kernel.name} as this device allows ${allowed} ${what}: it needs ${asked}`);
    }
  }
}

async function compile(
  gpu: Gpu,
  kernel: Kernel,
  plan: KernelPlan,
  composed: ReturnType<typeof composeWgsl>,
): Promise<Compiled> {
  const { device } = gpu;
  const own = kernel.wgsl[kernel.wgsl.length - 1];
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ label: kernel.name, code: composed.code });
  const broken = await device.popErrorScope();
  const { messages } = await module.getCompilationInfo();
  const first = messages.find((message) => message.type === "error");
  if (first) {
    const { file, line } = composed.locate(first.lineNum);
    throw new GpuShaderError(file, line, first.linePos, shortMessage(first.message));
  }
  if (broken) throw new GpuShaderError(own, 0, 0, broken.message);

  const layout = device.createBindGroupLayout({
    label: kernel.name,
    entries: [
      {
        binding: 0,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: PARAMS_BYTES },
      },
      ...kernel.buffers.map((use, ix): GPUBindGroupLayoutEntry => ({
        binding: use.binding ?? ix + 1,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: use.access === "read" ? "read-only-storage" : "storage" },
      })),
    ],
  });
  try {
    const pipeline = await device.createComputePipelineAsync({
      label: kernel.name,
      layout: device.createPipelineLayout({ label: kernel.name, bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: kernel.name, constants: { ...plan.overrides } },
    });
    gpu.assertAlive();
    return { pipeline, layout };
  } catch (error) {
    gpu.assertAlive();
    if ((error as { reason?: string }).reason === "validation") {
      throw new GpuShaderError(own, 0, 0, (error as Error).message);
    }
    throw new GpuValidationError(`Cannot compile ${own}: ${(error as Error).message}`);
  }
}

/** Naga draws the source with line numbers of the joined text: keeps the first line and the notes ("= …"). */
function shortMessage(message: string): string {
  const [first = message, ...rest] = message.split("\n").filter((text) => text.trim() !== "");
  const notes = rest.map((text) => text.trim()).filter((text) => text.startsWith("= "));
  return [first.replace(/^Shader '[^']*' parsing error: /, ""), ...notes].join(" ");
}
