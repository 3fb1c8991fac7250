/**
 * One GPU device with what the kernels need around it: its limits and features, a cache of
 * compiled kernels, buffers, submits whose errors are typed, a fence and a readback.
 *
 * @module
 */

import {
  GpuDeviceLostError,
  type GpuError,
  GpuOutOfMemoryError,
  GpuUnavailableError,
  GpuValidationError,
} from "./errors.ts";
import { gpuInstallHint, hostGpu, hostRequestAdapter, isDeno } from "./host.ts";
import { type GpuRange, OwnedBuffer } from "./buffers.ts";
import { Readback } from "./readback.ts";

/**
 * Features asked for where the adapter can do them. Deno lists only the standard names in
 * `adapter.features` but grants the others too, so each unlisted one is tried.
 */
const WANTED_FEATURES = [
  "timestamp-query",
  "shader-f16",
  "subgroups",
  "wgpu-subgroup-barrier",
  "wgpu-timestamp-query-inside-passes",
] as const;

/** What is known of an adapter, for provenance; empty strings where the runtime does not say. */
export interface GpuInfo {
  /** Vendor, as the runtime names it: a name, or a PCI number in digits. */
  readonly vendor: string;
  /** Architecture or family. */
  readonly architecture: string;
  /** Device name or number. */
  readonly device: string;
  /** Human-readable name: "NVIDIA H200", "llvmpipe (LLVM 15.0.6, 256 bits)". */
  readonly description: string;
  /** True for a software rasterizer, whose times say nothing about a GPU. */
  readonly isSoftware: boolean;
}

/** What a plan may depend on. A {@linkcode Gpu} is one; a plain object serves to plan for another device. */
export interface DeviceFacts {
  /** The device's limits; plans read these. */
  readonly limits: Pick<
    GPUSupportedLimits,
    | "maxComputeInvocationsPerWorkgroup"
    | "maxComputeWorkgroupSizeX"
    | "maxComputeWorkgroupStorageSize"
    | "maxStorageBufferBindingSize"
    | "maxStorageBuffersPerShaderStage"
  >;
  /** Invocations per subgroup; 0 where subgroups cannot be used or their size varies. */
  readonly subgroupSize: number;
  /** Features by their WebGPU names. */
  readonly features: Pick<ReadonlySet<string>, "has">;
  /** The adapter. */
  readonly info: Pick<GpuInfo, "isSoftware">;
}

/** Options of {@linkcode Gpu.create}. */
export interface GpuOptions {
  /** Which adapter to prefer on machines with several. Default "high-performance". */
  readonly powerPreference?: GPUPowerPreference;
}

const known = new WeakMap<GPUDevice, Gpu>();
let sharedGpu: Promise<Gpu> | undefined;

/**
 * A WebGPU device and its caches. Several indexers (one per layer) share one `Gpu`.
 *
 * Ownership: {@linkcode Gpu.create} owns its device and `destroy()` destroys it; with
 * {@linkcode Gpu.of} the device stays the caller's, and `destroy()` frees only our own buffers.
 */
export class Gpu implements DeviceFacts {
  /** The WebGPU device. */
  readonly device: GPUDevice;
  /** The adapter's description. */
  readonly info: GpuInfo;
  /** Features that the device was created with. */
  readonly features: ReadonlySet<string>;
  /** Invocations per subgroup; 0 where the device has no subgroups or their size varies. */
  readonly subgroupSize: number;
  /** The device's limits: a plain copy, as reading them off the device takes a microsecond each time. */
  readonly limits: GPUSupportedLimits;
  /** Compiled kernels by source and overrides (see `kernel.ts`). */
  readonly compiled: Map<string, Promise<unknown>> = new Map();
  readonly #readback: Readback;
  readonly #ownsDevice: boolean;
  #lost: GpuDeviceLostError | undefined;

  private constructor(device: GPUDevice, adapterInfo: GPUAdapterInfo | undefined, ownsDevice: boolean) {
    this.device = device;
    this.info = describe(adapterInfo);
    this.features = new Set(device.features as unknown as Iterable<string>);
    this.subgroupSize = this.features.has("subgroups") ? fixedSubgroupSize(adapterInfo) : 0;
    this.limits = copyLimits(device.limits);
    this.#ownsDevice = ownsDevice;
    this.#readback = new Readback(this);
    // `lost` resolves only in a later turn of the event loop, and until then submits to a destroyed device
    // succeed silently. A loss that JavaScript causes is therefore noted as it happens; one that the
    // driver causes is seen by the next call, or by the read of a result.
    const destroy = device.destroy.bind(device);
    device.destroy = () => {
      this.#lost ??= new GpuDeviceLostError("Cannot use the GPU as its device was destroyed: create a new one");
      destroy();
    };
    device.lost.then((reason) => {
      this.#lost ??= new GpuDeviceLostError(
        `Cannot use the GPU as its device is lost (${reason.reason}: ${
          reason.message || "no message"
        }): create a new one`,
      );
    });
  }

  /**
   * Requests an adapter and a device with all of the adapter's limits and every useful feature.
   *
   * @throws {GpuUnavailableError} if there is no WebGPU or no adapter; says what to install
   */
  static async create(options: GpuOptions = {}): Promise<Gpu> {
    const api = hostGpu();
    if (!api) throw new GpuUnavailableError(`Cannot find WebGPU in this runtime: ${gpuInstallHint("other")}`);
    const request = { powerPreference: options.powerPreference ?? "high-performance" } as const;
    const adapter = await hostRequestAdapter(api, request);
    if (!adapter) throw new GpuUnavailableError(`Cannot find a WebGPU adapter: ${gpuInstallHint()}`);
    const requiredLimits = copyLimits(adapter.limits) as unknown as Record<string, number>;
    const device = await requestRichest(api, request, adapter, requiredLimits);
    const gpu = new Gpu(device, adapter.info, true);
    known.set(device, gpu);
    return gpu;
  }

  /** The one device that indexers share when the caller names none; created at the first call. */
  static shared(): Promise<Gpu> {
    if (!sharedGpu) {
      const creating = Gpu.create();
      sharedGpu = creating;
      creating.catch(() => sharedGpu = undefined);
    }
    return sharedGpu.then((gpu) => {
      if (!gpu.isLost) return gpu;
      sharedGpu = undefined;
      return Gpu.shared();
    });
  }

  /** The `Gpu` of a caller's device: the same object for the same device, so that caches are shared. */
  static of(device: GPUDevice): Gpu {
    let gpu = known.get(device);
    if (!gpu) {
      const info = (device as unknown as { adapterInfo?: GPUAdapterInfo }).adapterInfo;
      gpu = new Gpu(device, info, false);
      known.set(device, gpu);
    }
    return gpu;
  }

  /** True once the device was lost or destroyed. */
  get isLost(): boolean {
    return this.#lost !== undefined;
  }

  /**
   * Throws if the device is gone. After a loss, submits neither throw nor raise errors, so
   * everything that submits asks here first.
   *
   * @throws {GpuDeviceLostError}
   */
  assertAlive(): void {
    if (this.#lost) throw this.#lost;
  }

  /**
   * Runs `work` inside error scopes, and turns what they caught into a typed error.
   *
   * @throws {GpuOutOfMemoryError | GpuValidationError | GpuDeviceLostError}
   */
  async checked<T>(what: string, work: () => T): Promise<T> {
    this.assertAlive();
    const { device } = this;
    device.pushErrorScope("internal");
    device.pushErrorScope("out-of-memory");
    device.pushErrorScope("validation");
    let result: T | undefined, thrown: unknown, didThrow = false;
    try {
      result = work();
    } catch (error) {
      thrown = error;
      didThrow = true;
    }
    const popped = [device.popErrorScope(), device.popErrorScope(), device.popErrorScope()];
    const [validation, memory, internal] = await Promise.all(popped);
    if (didThrow) throw thrown;
    if (memory) throw new GpuOutOfMemoryError(`Cannot ${what} as the GPU is out of memory: ${memory.message}`);
    const broken = validation ?? internal;
    if (broken) throw new GpuValidationError(`Cannot ${what} as WebGPU refused it: ${broken.message}`);
    this.assertAlive();
    return result as T;
  }

  /**
   * Allocates a buffer that the caller owns. Zero bytes still get 4, so that it can be bound.
   *
   * @param label shown in errors and traces
   * @param bytes size; rounded up to a multiple of 4
   * @param usage default: storage, copied from and to
   * @throws {RangeError} above the device's `maxBufferSize`
   * @throws {GpuOutOfMemoryError}
   */
  allocate(
    label: string,
    bytes: number,
    usage: number = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
  ): Promise<OwnedBuffer> {
    const size = Math.max(4, Math.ceil(bytes / 4) * 4);
    if (size > this.limits.maxBufferSize) {
      throw new RangeError(
        `Cannot allocate ${label} as a buffer must be at most ${this.limits.maxBufferSize} bytes: it needs ${size}`,
      );
    }
    return this.checked(
      `allocate ${size} bytes for ${label}`,
      () => new OwnedBuffer(this.device.createBuffer({ label, size, usage })),
    );
  }

  /** A storage buffer that holds `data`; the caller owns it. */
  async upload(label: string, data: Float32Array | Uint32Array): Promise<OwnedBuffer> {
    const owned = await this.allocate(label, data.byteLength);
    if (data.byteLength > 0) this.device.queue.writeBuffer(owned.buffer, 0, data as Float32Array<ArrayBuffer>);
    return owned;
  }

  /**
   * Encodes and submits one command buffer.
   *
   * @throws typed errors of the GPU layer, never a silent failure
   */
  submit<T>(what: string, encode: (encoder: GPUCommandEncoder) => T): Promise<T> {
    return this.checked(what, () => {
      const encoder = this.device.createCommandEncoder({ label: what });
      const result = encode(encoder);
      this.device.queue.submit([encoder.finish()]);
      return result;
    });
  }

  /**
   * Waits until the queue is idle. In Deno the call itself blocks until then, so nothing is
   * awaited (the promise would come 10 ms late); elsewhere it is awaited.
   */
  async fence(): Promise<void> {
    const blocks = await this.#readback.isSynchronous();
    const done = this.device.queue.onSubmittedWorkDone();
    if (blocks) done.catch(() => {});
    else await done;
  }

  /** Probes the runtime once; after that {@linkcode Gpu.fenceNow} may be used where it returns true. */
  canFenceNow(): Promise<boolean> {
    return this.#readback.isSynchronous();
  }

  /** The blocking fence alone, for timing loops; only after {@linkcode Gpu.canFenceNow} said true. */
  fenceNow(): void {
    this.device.queue.onSubmittedWorkDone().catch(() => {});
  }

  /**
   * Copies ranges of buffers to the host: one submit, one map.
   *
   * @param beforeCopy runs right before the copy is submitted, and stops it by throwing
   * @returns one `ArrayBuffer` per range, the caller's own
   * @throws {GpuDeviceLostError | GpuValidationError | GpuOutOfMemoryError}
   */
  read(ranges: readonly GpuRange[], beforeCopy?: () => void): Promise<ArrayBuffer[]> {
    return this.#readback.read(ranges, beforeCopy);
  }

  /** Frees staging buffers and, if this object made it, the device. */
  destroy(): void {
    this.#readback.destroy();
    this.compiled.clear();
    if (this.#ownsDevice) this.device.destroy();
  }

  /** Same as {@linkcode Gpu.destroy}, for `using`. */
  [Symbol.dispose](): void {
    this.destroy();
  }
}

function copyLimits(limits: GPUSupportedLimits): GPUSupportedLimits {
  const copy: Record<string, number> = {};
  const source = limits as unknown as Record<string, unknown>;
  for (const name in source) if (typeof source[name] === "number") copy[name] = source[name];
  return copy as unknown as GPUSupportedLimits;
}

/** Asks for every wanted feature at once, and one by one where that is refused. */
async function requestRichest(
  api: GPU,
  request: GPURequestAdapterOptions,
  first: GPUAdapter,
  requiredLimits: Record<string, number>,
): Promise<GPUDevice> {
  // Unlisted names are worth a try in Deno only: browsers list what they grant.
  const candidates = WANTED_FEATURES.filter((name) => isDeno() || first.features.has(name as GPUFeatureName));
  const attempt = async (adapter: GPUAdapter | null, features: string[]) => {
    if (!adapter) return undefined;
    const descriptor = { label: "pq-indexer", requiredLimits, requiredFeatures: features as GPUFeatureName[] };
    return await adapter.requestDevice(descriptor).catch((error) => ({ error }));
  };
  let answer = await attempt(first, candidates);
  if (answer instanceof GPUDevice) return answer;
  // An adapter gives one device, so every further attempt takes a fresh one.
  const granted: string[] = [];
  for (const name of candidates) {
    const trial = await attempt(await hostRequestAdapter(api, request), [...granted, name]);
    if (trial instanceof GPUDevice) {
      granted.push(name);
      trial.destroy();
    }
  }
  answer = await attempt(await hostRequestAdapter(api, request), granted);
  if (answer instanceof GPUDevice) return answer;
  throw new GpuUnavailableError(
    `Cannot create a WebGPU device on the adapter ${describe(first.info).description || "found"}: ${
      (answer as { error?: GpuError } | undefined)?.error?.message ?? "the adapter is gone"
    }. Update its driver, or ${gpuInstallHint()}`,
  );
}

/** The subgroup size where the adapter says that there is only one, else 0. */
function fixedSubgroupSize(info: GPUAdapterInfo | undefined): number {
  const { subgroupMinSize, subgroupMaxSize } = (info ?? {}) as { subgroupMinSize?: number; subgroupMaxSize?: number };
  return subgroupMinSize !== undefined && subgroupMinSize === subgroupMaxSize && subgroupMinSize > 1
    ? subgroupMinSize
    : 0;
}

function describe(info: GPUAdapterInfo | undefined): GpuInfo {
  const named = [info?.vendor, info?.architecture].filter(Boolean).join(" "); // all that browsers say
  const description = info?.description || info?.device || named || "unknown adapter";
  const fallback = (info as { isFallbackAdapter?: boolean } | undefined)?.isFallbackAdapter;
  return {
    vendor: info?.vendor ?? "",
    architecture: info?.architecture ?? "",
    device: info?.device ?? "",
    description,
    isSoftware: fallback ?? /llvmpipe|lavapipe|swiftshader|basic render/i.test(description),
  };
}
