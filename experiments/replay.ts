/**
 * Replays the decode steps of a capture through a pipeline: verified, then timed, then timed
 * operation by operation.
 *
 * @module
 */

import type { OwnedBuffer } from "../kernels/gpu/buffers.ts";
import type { Gpu } from "../kernels/gpu/device.ts";
import { PassTimer } from "../kernels/gpu/timing.ts";
import {
  type Check,
  checkCodes,
  checkKept,
  checkOracle,
  checkOracleCodes,
  checkSelection,
  joinChecks,
  judgeExchanges,
  type SelectionCase,
} from "../indexer/checks.ts";
import type { PqConfig } from "../indexer/config.ts";
import { type CodebookInput, PqIndexer } from "../indexer/pq_indexer.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import type { Codebook } from "../indexer/reference.ts";
import { listOf, type Selection, type SelectionData } from "../indexer/selection.ts";
import { type Capture, keysOf, queryOf } from "./inputs/capture.ts";
import { summarize, type Summary } from "./stats.ts";
import { digest } from "./verify_steps.ts";

/** What is replayed. */
export interface ReplayCase {
  readonly capture: Capture;
  readonly config: PqConfig;
  readonly initOffset: number;
  readonly codebook: Codebook;
  /** Decode steps: the last ones of the capture. */
  readonly steps: number;
  readonly gpu: Gpu | undefined;
}

/** What a replay found. */
export interface Replay {
  readonly pipeline: Pipeline;
  readonly dispatches: number;
  /** µs per step of the whole compute pass, from timestamps; undefined on the CPU or without timestamps. */
  readonly gpuUs: Summary | undefined;
  /** µs per step from submit to GPU idle; on the CPU the whole call. */
  readonly wallUs: Summary;
  /** Mean µs of each operation, timed in a pass of its own. */
  readonly operations: readonly { readonly name: string; readonly us: number; readonly share: number }[];
  /** Lists, weights and codes of every step. */
  readonly check: Check;
  /** Digests of lists and weights of every step, then of the codes at the end. */
  readonly digest: string;
  /** Whether a second run gave the same bytes; undefined on the CPU, which runs once. */
  readonly reproducible: boolean | undefined;
}

/** Called while a replay runs. */
export type OnProgress = (phase: string, done: number, total: number) => void;

/** Tokens that are cached before the first step. */
export function promptTokens({ capture, steps }: ReplayCase): number {
  return capture.tokens - steps;
}

/** Replays a capture through one pipeline; `onLists` receives the lists of every step. */
export async function replay(
  test: ReplayCase,
  pipeline: Pipeline,
  onProgress: OnProgress,
  onLists: (step: number, nTokens: number, lists: Uint32Array[]) => void = () => {},
): Promise<Replay> {
  const codes = await codePrompt(test, pipeline);
  const verified = await verifiedRun(test, pipeline, codes.codes, onProgress, onLists);
  const check = joinChecks([codes.check, verified.check]);
  const common = { pipeline, check, digest: verified.digests.join(" ") };
  if (pipeline.runsOn === "cpu") {
    return {
      ...common,
      dispatches: 0,
      gpuUs: undefined,
      wallUs: summarize(verified.wallUs),
      operations: [],
      reproducible: undefined,
    };
  }
  const timed = await timedRun(test, pipeline, codes.codes, onProgress);
  return {
    ...common,
    dispatches: timed.dispatches,
    gpuUs: timed.gpuUs.length > 0 ? summarize(timed.gpuUs) : undefined,
    wallUs: summarize(timed.wallUs),
    operations: await timedOperations(test, pipeline, codes.codes, onProgress),
    reproducible: timed.digests.join(" ") === verified.digests.join(" "),
  };
}

function open(test: ReplayCase, pipeline: Pipeline, codes: Uint8Array | undefined): Promise<PqIndexer> {
  const codebook: CodebookInput = codes
    ? { ...test.codebook, codes, tokens: promptTokens(test) }
    : { ...test.codebook, tokens: 0 };
  return PqIndexer.create({
    ...test.config,
    initOffset: test.initOffset,
    pipeline,
    device: test.gpu?.device,
    weights: true,
    capacity: test.capture.tokens,
    codebook,
  });
}

/** Lets the pipeline code the prompt, and checks those codes. */
async function codePrompt(test: ReplayCase, pipeline: Pipeline): Promise<{ codes: Uint8Array; check: Check }> {
  const { capture, initOffset, codebook } = test;
  using index = await open(test, pipeline, undefined);
  const keys = keysOf(capture, 0, promptTokens(test));
  await index.append(keys);
  const codes = await index.readCodes();
  const check = pipeline.id === "e00" ? checkOracleCodes : checkCodes;
  return { codes, check: check(index.config.shape, codebook, keys, codes, Math.min(initOffset, promptTokens(test))) };
}

/** The capture's step and what it may attend to. */
function stepInputs({ capture, steps }: ReplayCase, step: number) {
  const ix = capture.steps - steps + step;
  const token = capture.tokens - steps + step;
  return { ix, query: queryOf(capture, ix), newKey: keysOf(capture, token, token + 1), nTokens: token + 1 };
}

/** Through the public `step`, one step at a time, every result checked. */
async function verifiedRun(
  test: ReplayCase,
  pipeline: Pipeline,
  codes: Uint8Array,
  onProgress: OnProgress,
  onLists: (step: number, nTokens: number, lists: Uint32Array[]) => void,
) {
  using index = await open(test, pipeline, codes);
  const lists: Check[] = [], checks: Check[] = [], digests: string[] = [], wallUs: number[] = [];
  let before = codes;
  for (let step = 0; step < test.steps; step++) {
    onProgress("verify", step, test.steps);
    const { ix, query, newKey, nTokens } = stepInputs(test, step);
    const begin = performance.now();
    const selection = await index.step(query, newKey);
    wallUs.push((performance.now() - begin) * 1e3);
    const data = await selection.read();
    const now = await index.readCodes();
    digests.push(await digestOf(data));
    const against: SelectionCase = {
      config: index.config,
      initOffset: test.initOffset,
      codebook: test.codebook,
      codes: now,
      nTokens,
      query,
      weights: true,
      halfTables: pipeline.halfTables,
    };
    // The oracle is checked another way than against itself.
    const isOracle = pipeline.id === "e00";
    const newest = lastCodes(index, now);
    lists.push((isOracle ? checkOracle : checkSelection)(against, data));
    checks.push((isOracle ? checkOracleCodes : checkCodes)(index.config.shape, test.codebook, newKey, newest));
    checks.push(checkKept(index.config.shape, before, now));
    before = now;
    onLists(ix, nTokens, Array.from(data.lengths, (_, list) => listOf(data, list)));
  }
  digests.push(await digest([await index.readCodes()]));
  return { check: joinChecks([judgeExchanges(lists), ...checks]), digests, wallUs };
}

/** u8 `[B, Hkv, M, 1]`: the newest code of every row. */
function lastCodes(index: PqIndexer, codes: Uint8Array): Uint8Array {
  const n = index.codedTokens;
  return Uint8Array.from({ length: codes.length / n }, (_, row) => codes[(row + 1) * n - 1]);
}

/** All queries and new keys of a replay on the GPU, and the two buffers that a step reads. */
async function uploadInputs(test: ReplayCase, gpu: Gpu) {
  const upload = async (label: string, pick: (step: number) => Float32Array) => {
    const each = pick(0).length;
    const all = new Float32Array(each * test.steps);
    for (let step = 0; step < test.steps; step++) all.set(pick(step), step * each);
    const whole = await gpu.upload(`${label} of all steps`, all);
    const one = await gpu.upload(label, all.subarray(0, each));
    const copy = (encoder: GPUCommandEncoder, step: number) =>
      encoder.copyBufferToBuffer(whole.buffer, step * each * 4, one.buffer, 0, each * 4);
    return { whole, one, copy };
  };
  const query = await upload("query", (step) => stepInputs(test, step).query);
  const newKeys = await upload("new keys", (step) => stepInputs(test, step).newKey);
  return {
    query: query.one,
    newKeys: newKeys.one,
    copy(encoder: GPUCommandEncoder, step: number): void {
      query.copy(encoder, step);
      newKeys.copy(encoder, step);
    },
    [Symbol.dispose](): void {
      for (const { whole, one } of [query, newKeys]) {
        whole.destroy();
        one.destroy();
      }
    },
  };
}

/** GPU clocks idle low and rise slowly: the GPU is kept busy before steps are timed, for windows of so long … */
const WARM_UP_WINDOW_MS = 200;

/** … until three in a row are hardly faster than the best before them, or for so many. */
const WARM_UP_WINDOWS = 15;

/** Before every timed step, off the clock, the GPU works for about so long, or its clocks drop again. */
const KEEP_WARM_MS = 3;

/** Results of so many bytes at most wait on the GPU while steps are timed. */
const SEGMENT_BYTES = 256 * 2 ** 20;

/**
 * Selects again and again, which leaves the index as it is, until the clocks are up.
 *
 * @returns how many selections keep the GPU warm before a step
 */
async function warmUp(index: PqIndexer, gpu: Gpu, query: GPUBuffer): Promise<number> {
  let best = Infinity, steady = 0;
  for (let window = 0; window < WARM_UP_WINDOWS && steady < 3; window++) {
    const begin = performance.now();
    let count = 0, elapsed = 0;
    while (elapsed < WARM_UP_WINDOW_MS) {
      const batch = gpu.info.isSoftware ? 1 : 16;
      for (let k = 0; k < batch; k++) await index.select(query);
      await gpu.fence();
      count += batch;
      elapsed = performance.now() - begin;
    }
    steady = elapsed / count > 0.98 * best ? steady + 1 : 0;
    best = Math.min(best, elapsed / count);
    if (gpu.info.isSoftware) break; // its clocks are the CPU's
  }
  return Math.min(40, Math.ceil(KEEP_WARM_MS / best));
}

/** Encodes selections that nobody reads. */
function keepWarm(index: PqIndexer, encoder: GPUCommandEncoder, query: GPUBuffer, count: number): void {
  const pass = encoder.beginComputePass({ label: "keep warm" });
  for (let k = 0; k < count; k++) index.record(pass, { query });
  pass.end();
}

/**
 * Inputs on the GPU, the whole step in one pass, from submit to idle. As in a decode loop, every step
 * reads the same input buffers and writes the same results; between steps, off the clock, they are
 * filled from and copied to buffers that hold a segment of steps, so that no readback lets the GPU's
 * clocks drop.
 */
async function timedRun(test: ReplayCase, pipeline: Pipeline, codes: Uint8Array, onProgress: OnProgress) {
  const gpu = test.gpu!;
  using index = await open(test, pipeline, codes);
  const dispatches = index.dispatchesPerStep();
  using inputs = await uploadInputs(test, gpu);
  const fencesNow = await gpu.canFenceNow();
  const warmth = await warmUp(index, gpu, inputs.query.buffer);

  const digests: string[] = [], wallUs: number[] = [];
  const gpuUs: number[] = [];
  using slots = await ResultSlots.create(gpu, await index.select(inputs.query.buffer), test.steps);
  using timer = await PassTimer.create(gpu, slots.count);
  for (let step = 0; step < test.steps; step++) {
    onProgress("time", step, test.steps);
    await index.reserve(test.capture.tokens); // what was recorded is submitted
    await gpu.submit("set up the step", (encoder) => {
      inputs.copy(encoder, step);
      keepWarm(index, encoder, inputs.query.buffer, warmth);
    });
    await gpu.fence();
    let begin = 0;
    const selection = await gpu.checked("step", () => {
      const encoder = gpu.device.createCommandEncoder({ label: "step" });
      const pass = timer ? timer.beginPass(encoder, "step") : encoder.beginComputePass();
      const recorded = index.record(pass, { query: inputs.query.buffer, newKeys: inputs.newKeys.buffer });
      pass.end();
      const commands = encoder.finish();
      // The clock runs from the submit until the GPU is idle, in one turn where the fence blocks.
      begin = performance.now();
      gpu.device.queue.submit([commands]);
      if (fencesNow) {
        gpu.fenceNow();
        wallUs.push((performance.now() - begin) * 1e3);
      }
      return recorded;
    });
    if (!fencesNow) {
      await gpu.fence();
      wallUs.push((performance.now() - begin) * 1e3);
    }
    await gpu.submit("keep the result", (encoder) => slots.keep(encoder, selection));
    if (slots.isFull || step === test.steps - 1) {
      for (const data of await slots.take()) digests.push(await digestOf(data));
      if (timer) gpuUs.push(...(await timer.read()).map(({ us }) => us));
      if (step < test.steps - 1) await warmUp(index, gpu, inputs.query.buffer);
    }
  }
  digests.push(await digest([await index.readCodes()]));
  return { dispatches, gpuUs, wallUs, digests };
}

/** Results of a segment of steps on the GPU. */
class ResultSlots {
  readonly #gpu: Gpu;
  readonly #buffers: readonly OwnedBuffer[];
  readonly #bytes: readonly number[];
  readonly #strides: { readonly listStride: number; readonly weightStride: number };
  /** Steps that fit. */
  readonly count: number;
  #kept = 0;

  private constructor(gpu: Gpu, selection: Selection, bytes: readonly number[], buffers: OwnedBuffer[], count: number) {
    this.#gpu = gpu;
    this.#strides = selection;
    this.#bytes = bytes;
    this.#buffers = buffers;
    this.count = count;
  }

  static async create(gpu: Gpu, selection: Selection, steps: number): Promise<ResultSlots> {
    const lists = selection.batch * selection.heads * selection.rows;
    const bytes = [lists * selection.listStride * 4, lists * 4, lists * selection.weightStride * 4];
    const count = Math.max(1, Math.min(steps, PassTimer.MAX_PASSES, Math.floor(SEGMENT_BYTES / Math.max(...bytes))));
    const buffers = await Promise.all(bytes.map((each) => gpu.allocate("timed results", each * count)));
    return new ResultSlots(gpu, selection, bytes, buffers, count);
  }

  get isFull(): boolean {
    return this.#kept === this.count;
  }

  keep(encoder: GPUCommandEncoder, { buffers }: Selection): void {
    [buffers!.indices, buffers!.lengths, buffers!.weights!].forEach(({ buffer, offset }, ix) => {
      const bytes = this.#bytes[ix];
      encoder.copyBufferToBuffer(buffer, offset, this.#buffers[ix].buffer, this.#kept * bytes, bytes);
    });
    this.#kept++;
  }

  /** Reads what was kept and makes the slots free again. */
  async take(): Promise<SelectionData[]> {
    const kept = this.#kept;
    this.#kept = 0;
    const parts = await this.#gpu.read(
      this.#buffers.map(({ buffer }, ix) => ({ buffer, bytes: kept * this.#bytes[ix] })),
    );
    const at = (ix: number, slot: number) => parts[ix].slice(slot * this.#bytes[ix], (slot + 1) * this.#bytes[ix]);
    return Array.from({ length: kept }, (_, slot) => ({
      indices: new Uint32Array(at(0, slot)),
      lengths: new Uint32Array(at(1, slot)),
      weights: new Float32Array(at(2, slot)),
      ...this.#strides,
    }));
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }
}

/** Every operation in a pass of its own. */
async function timedOperations(test: ReplayCase, pipeline: Pipeline, codes: Uint8Array, onProgress: OnProgress) {
  const gpu = test.gpu!;
  using index = await open(test, pipeline, codes);
  using inputs = await uploadInputs(test, gpu);
  using timer = await PassTimer.create(gpu, index.operations.length);
  const warmth = await warmUp(index, gpu, inputs.query.buffer);
  const totals = new Map(index.operations.map((name) => [name, 0]));
  for (let step = 0; timer && step < test.steps; step++) {
    onProgress("operations", step, test.steps);
    await index.reserve(test.capture.tokens); // what was recorded is submitted
    await gpu.submit("step by operation", (encoder) => {
      inputs.copy(encoder, step);
      keepWarm(index, encoder, inputs.query.buffer, warmth);
      const perOperation = (name: string) => timer.beginPass(encoder, name);
      index.record(perOperation, { query: inputs.query.buffer, newKeys: inputs.newKeys.buffer });
    });
    for (const { label, us } of await timer.read()) totals.set(label, totals.get(label)! + us);
  }
  const total = [...totals.values()].reduce((sum, us) => sum + us, 0);
  return [...totals].map(([name, us]) => ({ name, us: us / test.steps, share: total > 0 ? us / total : 0 }));
}

/** Digest of a step's lists and weights. */
function digestOf(data: SelectionData): Promise<string> {
  const lists = Array.from(data.lengths, (_, list) => listOf(data, list));
  const weights = Array.from(
    data.lengths,
    (_, list) => data.weights?.subarray(list * data.weightStride, (list + 1) * data.weightStride) ?? new Float32Array(),
  );
  return digest([data.lengths, ...lists, ...weights]);
}
