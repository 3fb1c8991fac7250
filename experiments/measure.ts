/**
 * Timing of steps on the GPU: by timestamps with warm clocks, hot and cold, per operation, and on the wall.
 * One way for benches, tuning and traces.
 *
 * @module
 */

import type { OwnedBuffer } from "../kernels/gpu/buffers.ts";
import type { Gpu } from "../kernels/gpu/device.ts";
import { MOST_TAIL, scatterCells } from "../kernels/postings/postings.ts";
import { PassTimer } from "../kernels/gpu/timing.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import type { PqIndexer } from "../indexer/pq_indexer.ts";
import { gaussian } from "./inputs/synthetic.ts";
import { openIndex, type Workload, type WorkloadState } from "./inputs/workload.ts";

/** Passes that one submit times: an index lets 64 recorded steps wait. */
const ROUND = 60;

/** Before timed steps the GPU works for about so long, off the clock, or its clocks drop. */
const KEEP_WARM_MS = 3;

/** Sets of new keys that steps go round: were all keys the same, all new tokens would tie. */
const KEY_SETS = 64;

/** Query and new keys of one step on the GPU. */
export interface StepInputs {
  readonly query: OwnedBuffer;
  readonly newKeys: OwnedBuffer;
  /** {@linkcode KEY_SETS} other new keys, one after the other. */
  readonly moreKeys: OwnedBuffer;
}

/** Draws the inputs of a step. */
export async function drawInputs(gpu: Gpu, workload: Workload, seed: number): Promise<StepInputs> {
  const { batch, heads, kvHeads, headWidth } = workload;
  return {
    query: await gpu.upload("query", gaussian(batch * heads * headWidth, seed)),
    newKeys: await gpu.upload("new keys", gaussian(batch * kvHeads * headWidth, seed + 1)),
    moreKeys: await gpu.upload("more new keys", gaussian(KEY_SETS * batch * kvHeads * headWidth, seed + 2)),
  };
}

/** One or more indexes in the same state; several of them so large that no cache holds them all. */
export class Bench {
  readonly gpu: Gpu;
  readonly pipeline: Pipeline;
  readonly workload: Workload;
  /** The indexes; steps go round them. */
  readonly indexes: readonly PqIndexer[];
  readonly #inputs: StepInputs;
  /** Steps recorded in the submit that is being encoded. */
  #next = 0;
  #keySet = 0;
  #warmSteps = 1;
  #stepMs = 0;
  #nothing: GPUComputePipeline | undefined;

  private constructor(gpu: Gpu, pipeline: Pipeline, workload: Workload, indexes: PqIndexer[], inputs: StepInputs) {
    this.gpu = gpu;
    this.pipeline = pipeline;
    this.workload = workload;
    this.indexes = indexes;
    this.#inputs = inputs;
  }

  /**
   * Makes the indexes.
   *
   * @param count 1 for a hot cache
   * @param steps for how many steps per index there is to be room
   */
  static async open(
    gpu: Gpu,
    pipeline: Pipeline,
    workload: Workload,
    state: WorkloadState,
    options: { count?: number; steps: number },
  ): Promise<Bench> {
    const indexes: PqIndexer[] = [];
    for (let ix = 0; ix < (options.count ?? 1); ix++) {
      indexes.push(await openIndex(workload, state, pipeline, gpu.device, options.steps));
    }
    return new Bench(gpu, pipeline, workload, indexes, await drawInputs(gpu, workload, 7));
  }

  /** Dispatches of a step that goes on from the one before it. */
  get dispatches(): number {
    return this.indexes[0].dispatchesPerStep();
  }

  /** Whether the pipeline keeps postings, which a step makes anew now and then. */
  get hasPostings(): boolean {
    return this.indexes[0].operations.includes(scatterCells.name);
  }

  /** Records a step with the new keys that lie in one place, or with the next of many. */
  #record(target: Parameters<PqIndexer["record"]>[0], appends: "same keys" | "other keys" | "nothing"): void {
    const index = this.indexes[this.#next++ % this.indexes.length];
    const { query, newKeys, moreKeys } = this.#inputs;
    const offset = Math.floor(this.#next / this.indexes.length) % KEY_SETS * newKeys.bytes;
    const other = { buffer: moreKeys.buffer, offset, size: newKeys.bytes };
    const keys = { "same keys": newKeys.buffer, "other keys": other, nothing: undefined }[appends];
    index.record(target, { query: query.buffer, newKeys: keys });
  }

  /** What was recorded is submitted. */
  async #settle(): Promise<void> {
    for (const index of this.indexes) await index.reserve(index.tokens);
  }

  /** Other new keys for the steps to come; off the clock. */
  async #changeKeys(): Promise<void> {
    const { newKeys, moreKeys } = this.#inputs;
    const at = this.#keySet++ % KEY_SETS * newKeys.bytes;
    await this.gpu.submit("change keys", (encoder) => {
      encoder.copyBufferToBuffer(moreKeys.buffer, at, newKeys.buffer, 0, newKeys.bytes);
    });
  }

  /** Selects without appending for about `ms`, in one submit; off the clock. */
  async #keepBusy(): Promise<void> {
    await this.#settle();
    await this.#changeKeys();
    await this.gpu.submit("keep warm", (encoder) => {
      const pass = encoder.beginComputePass({ label: "keep warm" });
      for (let k = 0; k < this.#warmSteps; k++) this.#record(pass, "nothing");
      pass.end();
    });
    await this.#settle();
  }

  /** Raises the clocks, which idle low and rise slowly, and finds how many steps keep them up. */
  async warmUp(atLeastMs = 300): Promise<void> {
    const { gpu } = this;
    if (gpu.info.isSoftware) {
      await this.#keepBusy();
      await gpu.fence();
      return;
    }
    const begin = performance.now();
    let best = Infinity, steady = 0;
    while (steady < 3 && performance.now() - begin < 2000 || performance.now() - begin < atLeastMs) {
      const from = performance.now();
      for (let k = 0; k < 8; k++) await this.#keepBusy();
      await gpu.fence();
      const each = (performance.now() - from) / 8 / this.#warmSteps;
      steady = each > 0.97 * best ? steady + 1 : 0;
      best = Math.min(best, each);
      this.#warmSteps = Math.max(1, Math.min(ROUND, Math.ceil(KEEP_WARM_MS / best)));
    }
    this.#stepMs = best;
  }

  /**
   * GPU time of whole steps, each in a pass of its own.
   *
   * @param samples how many
   * @param appends whether each step brings a new key per KV head
   * @returns µs per step; empty where the device has no timestamps
   */
  async gpuSteps(samples: number, appends = true): Promise<number[]> {
    return await this.#timed(samples, (timer, encoder) => {
      const pass = timer.beginPass(encoder, "step");
      this.#record(pass, appends ? "other keys" : "nothing");
      pass.end();
    });
  }

  /**
   * GPU time of whole steps that make the postings anew, each in a pass of its own: tokens are taken back before each.
   * Only for pipelines that have postings.
   */
  async gpuRefreshes(samples: number): Promise<number[]> {
    const [index] = this.indexes, all: number[] = [];
    using timer = await PassTimer.create(this.gpu, 1);
    for (let k = 0; timer && k < samples; k++) {
      await this.#keepBusy();
      await index.truncate(index.tokens - (k === 0 ? MOST_TAIL + 2 : 2));
      await this.gpu.submit("timed refresh", (encoder) => {
        const pass = timer.beginPass(encoder, "step");
        this.#record(pass, "other keys");
        pass.end();
      });
      all.push(...(await timer.read()).map(({ us }) => us));
    }
    await this.#settle();
    return all;
  }

  /** GPU time of passes with one invocation that does nothing: the overhead that every pass pays. */
  async gpuEmpty(samples: number): Promise<number[]> {
    const { device } = this.gpu;
    const module = device.createShaderModule({ code: "@compute @workgroup_size(1) fn nothing() {}" });
    const nothing = this.#nothing ??= await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
    return await this.#timed(samples, (timer, encoder) => {
      const pass = timer.beginPass(encoder, "empty");
      pass.setPipeline(nothing);
      pass.dispatchWorkgroups(1);
      pass.end();
    });
  }

  /** As many of `samples` as fit into about `ms` of GPU time, but `least` at least; after the warm-up. */
  affordable(samples: number, ms: number, least = 10): number {
    return this.#stepMs > 0 ? Math.min(samples, Math.max(least, Math.floor(ms / this.#stepMs))) : samples;
  }

  async #timed(samples: number, encode: (timer: PassTimer, encoder: GPUCommandEncoder) => void): Promise<number[]> {
    const { gpu } = this;
    using timer = await PassTimer.create(gpu, ROUND);
    if (!timer) return [];
    const all: number[] = [];
    while (all.length < samples) {
      const count = Math.min(ROUND, samples - all.length);
      await this.#keepBusy();
      await gpu.submit("timed steps", (encoder) => {
        for (let k = 0; k < count; k++) encode(timer, encoder);
      });
      all.push(...(await timer.read()).map(({ us }) => us));
    }
    await this.#settle();
    return all;
  }

  /** GPU time of `layers` steps in one pass: what a decode loop of so many layers takes per token. */
  async gpuLayers(samples: number, layers: number): Promise<number[]> {
    return await this.#timed(samples, (timer, encoder) => {
      const pass = timer.beginPass(encoder, "layers");
      for (let k = 0; k < layers; k++) this.#record(pass, "other keys");
      pass.end();
    });
  }

  /** Mean GPU time of each operation in a pass of its own, µs by name. */
  async gpuOperations(samples: number): Promise<Map<string, number>> {
    const { gpu } = this;
    const totals = new Map<string, number>();
    const operations = this.indexes[0].operations.length;
    const perSubmit = Math.max(1, Math.floor(ROUND / operations));
    using timer = await PassTimer.create(gpu, perSubmit * operations);
    if (!timer) return totals;
    for (let done = 0; done < samples;) {
      const count = Math.min(perSubmit, samples - done);
      await this.#keepBusy();
      await gpu.submit("timed operations", (encoder) => {
        for (let k = 0; k < count; k++) this.#record((name) => timer.beginPass(encoder, name), "other keys");
      });
      for (const { label, us } of await timer.read()) totals.set(label, (totals.get(label) ?? 0) + us / samples);
      done += count;
    }
    await this.#settle();
    return totals;
  }

  /**
   * Wall time from submit to idle, interleaved with submits of an empty pass.
   *
   * @returns µs of steps and of empty submits, pair by pass
   */
  async wall(samples: number): Promise<{ step: number[]; empty: number[] }> {
    const { gpu } = this;
    const blocks = await gpu.canFenceNow();
    const step: number[] = [], empty: number[] = [];
    const once = async (record: (pass: GPUComputePassEncoder) => void): Promise<number> => {
      const encoder = gpu.device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      record(pass);
      pass.end();
      const commands = encoder.finish();
      const begin = performance.now();
      gpu.device.queue.submit([commands]);
      if (blocks) gpu.fenceNow();
      else await gpu.fence();
      return (performance.now() - begin) * 1e3;
    };
    await this.#keepBusy();
    await gpu.fence();
    for (let k = 0; k < samples; k++) {
      if (k % 16 === 0) {
        await this.#settle();
        await this.#changeKeys();
        await gpu.fence();
      }
      empty.push(await once(() => {}));
      step.push(await once((pass) => this.#record(pass, "same keys")));
    }
    await this.#settle();
    return { step, empty };
  }

  /**
   * Throughput: wall time per step of several submits of `count` steps each, the host's encoding included and
   * running ahead of the GPU, to idle.
   */
  async amortized(samples: number, count = 32, submits = 8): Promise<number[]> {
    const { gpu } = this;
    const all: number[] = [];
    for (let k = 0; k < samples; k++) {
      await this.#keepBusy();
      await gpu.fence();
      const begin = performance.now();
      for (let s = 0; s < submits; s++) {
        const encoder = gpu.device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (let i = 0; i < count; i++) this.#record(pass, "same keys");
        pass.end();
        gpu.device.queue.submit([encoder.finish()]);
        await this.#settle();
      }
      await gpu.fence();
      all.push((performance.now() - begin) * 1e3 / count / submits);
    }
    return all;
  }

  /**
   * Bandwidth of a copy by a kernel, 16 bytes per invocation, GB/s read and written; undefined without timestamps.
   */
  static async copyBandwidth(gpu: Gpu, bytes: number): Promise<number | undefined> {
    const { device } = gpu;
    using timer = await PassTimer.create(gpu, 20);
    if (!timer) return undefined;
    using source = await gpu.allocate("copy from", bytes);
    using target = await gpu.allocate("copy to", bytes);
    const code = `@group(0) @binding(0) var<storage, read> source: array<vec4u>;
      @group(0) @binding(1) var<storage, read_write> copied: array<vec4u>;
      @compute @workgroup_size(256) fn copy(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) n: vec3u,
        @builtin(local_invocation_index) lane: u32) {
        let i = (id.y * n.x + id.x) * 256u + lane;
        if (i < arrayLength(&source)) { copied[i] = source[i]; }
      }`;
    const module = device.createShaderModule({ code });
    const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
    const entries = [source, target].map(({ buffer }, binding) => ({ binding, resource: { buffer } }));
    const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    const workgroups = Math.ceil(bytes / 16 / 256), rows = Math.ceil(workgroups / 65_535);
    await gpu.submit("copy", (encoder) => {
      for (let k = 0; k < 20; k++) {
        const pass = timer.beginPass(encoder, "copy");
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(Math.ceil(workgroups / rows), rows);
        pass.end();
      }
    });
    const times = (await timer.read()).slice(5).map(({ us }) => us);
    return 2 * bytes / Math.min(...times) / 1e3;
  }

  /** Frees indexes and inputs. */
  [Symbol.dispose](): void {
    for (const index of this.indexes) index.destroy();
    this.#inputs.query.destroy();
    this.#inputs.newKeys.destroy();
    this.#inputs.moreKeys.destroy();
  }
}

/** The most passes per submit of {@linkcode timePasses}. */
export const TIMED_ROUND = 20;

/**
 * GPU time of passes that `record` encodes, with warm clocks.
 *
 * @param settle is awaited before each submit: what was recorded before is submitted
 * @returns µs per pass
 * @throws {RangeError} where the device has no timestamps
 */
export async function timePasses(
  gpu: Gpu,
  samples: number,
  settle: () => Promise<void>,
  record: (pass: GPUComputePassEncoder) => void,
): Promise<number[]> {
  using timer = await PassTimer.create(gpu, TIMED_ROUND);
  if (!timer) throw new RangeError("Cannot time passes as this device has no timestamp-query: use another");
  const round = async (count: number, begin: (encoder: GPUCommandEncoder) => GPUComputePassEncoder) => {
    await settle();
    await gpu.submit("passes", (encoder) => {
      for (let k = 0; k < count; k++) {
        const pass = begin(encoder);
        record(pass);
        pass.end();
      }
    });
  };
  const { isSoftware } = gpu.info;
  let rounds = isSoftware ? 1 : 8;
  const keepBusy = async () => {
    for (let k = 0; k < rounds; k++) {
      await round(isSoftware ? 1 : TIMED_ROUND, (encoder) => encoder.beginComputePass());
    }
  };
  // Clocks idle low, rise slowly, and only while there is always work: several submits per fence.
  const from = performance.now();
  do {
    const begin = performance.now();
    await keepBusy();
    await gpu.fence();
    const ms = (performance.now() - begin) / rounds;
    if (!isSoftware) rounds = Math.max(1, Math.min(64, Math.ceil(KEEP_WARM_MS / ms)));
  } while (!isSoftware && performance.now() - from < 1000);
  const all: number[] = [];
  while (all.length < samples) {
    if (!isSoftware) await keepBusy();
    await round(Math.min(TIMED_ROUND, samples - all.length), (encoder) => timer.beginPass(encoder, "pass"));
    all.push(...(await timer.read()).map(({ us }) => us));
  }
  return all;
}
