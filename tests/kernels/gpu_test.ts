import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { isGpuInput, resolveInput } from "../../kernels/gpu/buffers.ts";
import { Gpu } from "../../kernels/gpu/device.ts";
import {
  GpuDeviceLostError,
  GpuError,
  GpuOutOfMemoryError,
  GpuShaderError,
  GpuUnavailableError,
  GpuValidationError,
} from "../../kernels/gpu/errors.ts";
import { gpuInstallHint } from "../../kernels/gpu/host.ts";
import { CompiledKernel, type Kernel } from "../../kernels/gpu/kernel.ts";
import { PassTimer } from "../../kernels/gpu/timing.ts";
import { zeros } from "../../kernels/list/zeros.ts";
import { sum } from "../../kernels/score/sum.ts";
import { WGSL_FILES } from "../../kernels/wgsl_files.ts";
import { decide } from "../../tools/setup.ts";
import { countAllocations, gpuTest, ODD_SHAPE, oddStep, runKernel } from "../support.ts";

const edited = (path: string, from: string, to: string) => {
  assert(WGSL_FILES[path].includes(from), `${path} has ${from}`);
  return { ...WGSL_FILES, [path]: WGSL_FILES[path].replace(from, to) };
};

gpuTest("a broken shader is a GpuShaderError with its own file, line and column", async (gpu) => {
  const files = edited("score/sum.wgsl", "score += gathered", "score += gatherd");
  const error = await assertRejects(() => CompiledKernel.create(gpu, sum, ODD_SHAPE, files), GpuShaderError, "gatherd");
  const lines = WGSL_FILES["score/sum.wgsl"].split("\n");
  const line = lines.findIndex((text) => text.includes("score += gathered"));
  const column = lines[line].indexOf("gathered");
  assertEquals([error.file, error.line, error.column], ["score/sum.wgsl", line + 1, column + 1]);
});

gpuTest("an error in a shared part names that part, and does not poison the cache", async (gpu) => {
  const files = edited("layer/layer.wgsl", "n_lists() -> u32 {", "n_lists() -> u32 { let x: f32 = 1u;");
  const error = await assertRejects(() => CompiledKernel.create(gpu, sum, ODD_SHAPE, files), GpuShaderError);
  assertEquals(error.file, "layer/layer.wgsl");
  await assertRejects(() => CompiledKernel.create(gpu, sum, ODD_SHAPE, files), GpuShaderError);
  await CompiledKernel.create(gpu, sum, ODD_SHAPE);
});

gpuTest("a missing override is a GpuShaderError", async (gpu) => {
  const kernel: Kernel = {
    ...sum,
    plan: (shape) => ({ ...sum.plan(shape), overrides: {} }),
  };
  await assertRejects(() => CompiledKernel.create(gpu, kernel, ODD_SHAPE), GpuShaderError, "BATCH");
});

gpuTest("plans beyond the device are refused before compiling", async (gpu) => {
  const greedy = (plan: Partial<ReturnType<Kernel["plan"]>>): Kernel => ({
    ...sum,
    plan: (shape) => ({ ...sum.plan(shape), ...plan }),
  });
  const refused = (kernel: Kernel, message: string) =>
    assertRejects(() => CompiledKernel.create(gpu, kernel, ODD_SHAPE), RangeError, message);
  await refused(greedy({ workgroupBytes: 2 ** 20 }), "workgroup memory in bytes: it needs 1048576");
  await refused(greedy({ invocations: 4096 }), "invocations per workgroup: it needs 4096");
  const tooMany = gpu.limits.maxStorageBuffersPerShaderStage + 1;
  await refused({ ...sum, buffers: new Array(tooMany).fill(sum.buffers[0]) }, `storage buffers: it needs ${tooMany}`);
});

gpuTest("a kernel is compiled once per device and shape", async (gpu) => {
  const shape = { ...ODD_SHAPE, batch: 1, heads: 7, kvHeads: 7 };
  const first = await countAllocations(gpu.device, async () => void await CompiledKernel.create(gpu, sum, shape));
  assertEquals(first.createComputePipelineAsync, 1);
  const again = await countAllocations(gpu.device, async () => {
    await Promise.all([CompiledKernel.create(gpu, sum, shape), CompiledKernel.create(gpu, sum, shape)]);
  });
  assertEquals(again, {});
});

gpuTest("edited WGSL runs in place of the project's", async (gpu) => {
  const files = edited("list/zeros.wgsl", "weights[ix] = 0.0;", "weights[ix] = 2.0;");
  const { gpu: { weights } } = await runKernel(gpu, zeros, ODD_SHAPE, oddStep(100, 5), {}, files);
  assertEquals(weights.every((weight) => weight === 2), true);
});

gpuTest("too large a buffer is refused, out of memory is typed", async (gpu) => {
  await assertRejects(async () => void await gpu.allocate("huge", 2 ** 50), RangeError, "huge");
  const scoped = gpu.checked(
    "allocate",
    () => gpu.device.createBuffer({ size: 2 ** 50, usage: GPUBufferUsage.STORAGE }),
  );
  const error = await assertRejects(() => scoped, GpuError);
  assert(error instanceof GpuValidationError || error instanceof GpuOutOfMemoryError);
});

Deno.test("an out-of-memory scope becomes GpuOutOfMemoryError, and the others are still popped", async () => {
  const scopes: string[] = [];
  const device = {
    limits: { maxBufferSize: 2 ** 40 },
    features: new Set<string>(),
    lost: new Promise(() => {}),
    pushErrorScope: (kind: string) => scopes.push(kind),
    popErrorScope: () => Promise.resolve(scopes.pop() === "out-of-memory" ? { message: "no memory left" } : null),
    createBuffer: () => ({}),
    destroy: () => {},
  } as unknown as GPUDevice;
  const gpu = Gpu.of(device);
  await assertRejects(() => gpu.allocate("codes", 64), GpuOutOfMemoryError, "allocate 64 bytes for codes");
  assertEquals(scopes, []);
  await assertRejects(
    () =>
      gpu.checked("throw", () => {
        throw new RangeError("mine");
      }),
    RangeError,
    "mine",
  );
  assertEquals(scopes, []);
});

gpuTest("a rule broken on the GPU is a GpuValidationError, and later work goes on", async (gpu) => {
  using source = await gpu.upload("source", new Uint32Array(4));
  await assertRejects(
    () => gpu.submit("copy", (encoder) => encoder.copyBufferToBuffer(source.buffer, 0, source.buffer, 8, 64)),
    GpuValidationError,
    "Cannot copy",
  );
  assertEquals(new Uint32Array((await gpu.read([{ buffer: source.buffer, bytes: 16 }]))[0]), new Uint32Array(4));
});

gpuTest("a lost device is a GpuDeviceLostError at every call after it", async () => {
  const own = await Gpu.create();
  const buffer = await own.upload("x", new Uint32Array([1, 2]));
  own.device.destroy(); // not through the Gpu
  await assertRejects(() => own.read([{ buffer: buffer.buffer, bytes: 8 }]), GpuDeviceLostError);
  await own.device.lost;
  assert(own.isLost);
  await assertRejects(() => own.submit("anything", () => {}), GpuDeviceLostError, "create a new one");
  await assertRejects(() => own.allocate("anything", 4), GpuDeviceLostError);
  await assertRejects(() => CompiledKernel.create(own, sum, ODD_SHAPE), GpuDeviceLostError);
});

gpuTest("destroy frees an owned device and leaves a caller's", async () => {
  const own = await Gpu.create();
  own.destroy();
  await assertRejects(() => own.submit("anything", () => {}), GpuDeviceLostError);
  const adapter = (await navigator.gpu.requestAdapter())!;
  const device = await adapter.requestDevice();
  const wrapped = Gpu.of(device);
  assert(Gpu.of(device) === wrapped, "one Gpu per device");
  wrapped.destroy();
  device.pushErrorScope("validation");
  device.createBuffer({ size: 4, usage: GPUBufferUsage.STORAGE }).destroy();
  assertEquals(await device.popErrorScope(), null);
  device.destroy();
});

gpuTest("the device has the adapter's limits", async (gpu) => {
  const adapter = (await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }))!;
  assertEquals(gpu.limits.maxStorageBufferBindingSize, adapter.limits.maxStorageBufferBindingSize);
  assertEquals(gpu.limits.maxComputeInvocationsPerWorkgroup, adapter.limits.maxComputeInvocationsPerWorkgroup);
  assert(gpu.features.has("timestamp-query") === adapter.features.has("timestamp-query"));
});

gpuTest("reads are right in every size and order, many at once", async (gpu) => {
  const words = Uint32Array.from({ length: 5000 }, (_, i) => i * 2654435761);
  using owned = await gpu.upload("words", words);
  const range = (first: number, count: number) => ({ buffer: owned.buffer, offset: first * 4, bytes: count * 4 });
  const reads = Array.from({ length: 20 }, (_, k) => gpu.read([range(k, k * 37), range(4000 - k, 1), range(0, 0)]));
  (await Promise.all(reads)).forEach(([a, b, c], k) => {
    assertEquals(new Uint32Array(a), words.slice(k, k + k * 37));
    assertEquals(new Uint32Array(b)[0], words[4000 - k]);
    assertEquals(c.byteLength, 0);
  });
});

gpuTest("a warm read in Deno does not wait for the event loop's 10 ms", async (gpu) => {
  assertEquals(await gpu.canFenceNow(), true);
  using owned = await gpu.upload("words", new Uint32Array(64));
  const times: number[] = [];
  for (let k = 0; k < 12; k++) {
    const begin = performance.now();
    await gpu.read([{ buffer: owned.buffer, bytes: 256 }]);
    times.push(performance.now() - begin);
  }
  const median = times.sort((a, b) => a - b)[6];
  assert(median < 8, `median of ${median} ms`);
});

gpuTest("where mappings must be awaited, reads still work", async () => {
  const own = await Gpu.create();
  const source = await own.upload("x", new Uint32Array([7, 8, 9]));
  // A runtime in which a range cannot be read before its promise resolves.
  const createBuffer = own.device.createBuffer.bind(own.device);
  own.device.createBuffer = (descriptor) => {
    const buffer = createBuffer(descriptor);
    const map = buffer.mapAsync.bind(buffer), getRange = buffer.getMappedRange.bind(buffer);
    let settled = false;
    buffer.mapAsync = async (...args) => {
      settled = false;
      await map(...args);
      settled = true;
    };
    buffer.getMappedRange = (...args) => {
      if (!settled) throw new DOMException("not mapped yet", "OperationError");
      return getRange(...args);
    };
    return buffer;
  };
  assertEquals(await own.canFenceNow(), false);
  for (let k = 0; k < 3; k++) {
    const [bytes] = await own.read([{ buffer: source.buffer, bytes: 12 }]);
    assertEquals([...new Uint32Array(bytes)], [7, 8, 9]);
  }
  await own.fence();
  own.destroy();
});

gpuTest("the fence waits until the GPU is idle", async (gpu) => {
  const step = { ...oddStep(600, 5), weightStride: 2 ** 20 };
  const compiled = await CompiledKernel.create(gpu, zeros, ODD_SHAPE);
  using params = await gpu.allocate("params", 4096, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  using weights = await gpu.allocate("weights", 4 * zeros.buffers[0].elements(ODD_SHAPE, step));
  using timer = (await PassTimer.create(gpu, 4))!;
  await gpu.fence();
  const begin = performance.now();
  await gpu.submit("work", (encoder) => {
    for (let k = 0; k < 4; k++) {
      const pass = timer.beginPass(encoder, `pass ${k}`);
      compiled.record(pass, step, { buffer: params.buffer, offset: 0 }, () => ({
        buffer: weights.buffer,
        offset: 0,
        size: weights.bytes,
      }));
      pass.end();
    }
    assertThrows(() => timer.beginPass(encoder, "one too many"), RangeError, "at most 4");
  });
  await gpu.fence();
  const wallUs = (performance.now() - begin) * 1e3;
  const passes = await timer.read();
  assertEquals(passes.map(({ label }) => label), ["pass 0", "pass 1", "pass 2", "pass 3"]);
  const gpuUs = passes.reduce((total, { us }) => total + us, 0);
  assert(passes.every(({ us }) => us >= 0) && gpuUs > 0);
  assert(wallUs >= gpuUs * 0.95, `wall ${wallUs} µs, GPU ${gpuUs} µs`);
  assertEquals(await timer.read(), []);
});

gpuTest("resolveInput refuses what cannot be bound", async (gpu) => {
  using owned = await gpu.upload("x", new Uint32Array(256));
  using uniform = await gpu.allocate("u", 64, GPUBufferUsage.UNIFORM);
  const { limits } = gpu;
  assertEquals(resolveInput("query", owned.buffer, 1024, limits), { buffer: owned.buffer, offset: 0, size: 1024 });
  const refused = (input: GPUBufferBinding, bytes: number, message: string) =>
    assertThrows(() => resolveInput("query", input, bytes, limits), RangeError, message);
  refused({ buffer: owned.buffer }, 1028, "must hold 1028 bytes: it has 1024");
  refused({ buffer: owned.buffer, offset: 4 }, 16, "must be a multiple of");
  refused({ buffer: owned.buffer, offset: 512, size: 1024 }, 16, "from offset 512 of 1024");
  assertThrows(() => resolveInput("query", uniform.buffer, 16, limits), TypeError, "GPUBufferUsage.STORAGE");
  assert(isGpuInput(owned.buffer) && isGpuInput({ buffer: owned.buffer }));
  assert(!isGpuInput(new Float32Array(4)) && !isGpuInput(null) && !isGpuInput({ buffer: new ArrayBuffer(4) }));
});

Deno.test("without a GPU the error says what to install, on every platform", async () => {
  assert(gpuInstallHint("linux").includes("sudo apt-get install -y mesa-vulkan-drivers"));
  for (const platform of ["darwin", "windows", "browser"]) assert(gpuInstallHint(platform).length > 40);
  const probe = `
    Object.defineProperty(navigator, "gpu", { value: { requestAdapter: () => Promise.resolve(null) } });
    const { Gpu } = await import(${JSON.stringify(new URL("../../mod.ts", import.meta.url).href)});
    const error = await Gpu.create().catch((error) => error);
    console.log(error.name, error.message);`;
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["eval", probe] }).output();
  const text = new TextDecoder().decode(stdout);
  assert(text.startsWith("GpuUnavailableError Cannot find a WebGPU adapter:"), text);
  assert(new GpuUnavailableError("x") instanceof GpuError);
});

Deno.test("setup installs only where it may", () => {
  const root = { hasAdapter: false, isRoot: true, hasApt: true, mayInstall: true };
  assertEquals(decide({ ...root, hasAdapter: true }), "ready");
  assertEquals(decide(root), "install");
  assertEquals(decide({ ...root, isRoot: false }), "tell");
  assertEquals(decide({ ...root, hasApt: false }), "tell");
  assertEquals(decide({ ...root, mayInstall: false }), "tell");
});
