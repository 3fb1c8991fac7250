/**
 * Replays the decode steps of a capture through a pipeline: verified, then timed, then timed
 * operation by operation.
 *
 * @module
 */

import type { GpuInput } from "../kernels/gpu/buffers.ts";
import type { Gpu } from "../kernels/gpu/device.ts";
import { PassTimer } from "../kernels/gpu/timing.ts";
import {
  type Check,
  checkCodes,
  checkOracle,
  checkSelection,
  joinChecks,
  type SelectionCase,
} from "../indexer/checks.ts";
import { capacityFor, type PqConfig } from "../indexer/config.ts";
import { type CodebookInput, PqIndexer } from "../indexer/pq_indexer.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import type { Codebook } from "../indexer/reference.ts";
import { listOf, type Selection, type SelectionData } from "../indexer/selection.ts";
import { type Capture, keysOf, queryOf } from "./inputs/capture.ts";
import { summarize, type Summary } from "./stats.ts";

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
  /** Whether a second run gave the same bytes. */
  readonly reproducible: boolean;
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
      reproducible: true,
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
    pipeline: pipeline.id,
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
  return {
    codes,
    check: checkCodes(index.config.shape, codebook, keys, codes, Math.min(initOffset, promptTokens(test))),
  };
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
  const checks: Check[] = [], digests: string[] = [], wallUs: number[] = [];
  for (let step = 0; step < test.steps; step++) {
    onProgress("verify", step, test.steps);
    const { ix, query, newKey, nTokens } = stepInputs(test, step);
    const begin = performance.now();
    const selection = await index.step(query, newKey);
    wallUs.push((performance.now() - begin) * 1e3);
    const data = await selection.read();
    const now = await index.readCodes();
    digests.push(digestOf(data));
    const against: SelectionCase = {
      config: index.config,
      initOffset: test.initOffset,
      codebook: test.codebook,
      codes: now,
      nTokens,
      query,
    };
    // The oracle is checked another way than against itself.
    checks.push(pipeline.id === "e00" ? checkOracle(against, data) : checkSelection(against, data));
    checks.push(checkCodes(index.config.shape, test.codebook, newKey, lastCodes(index, now)));
    onLists(ix, nTokens, Array.from(data.lengths, (_, list) => listOf(data, list)));
  }
  digests.push(digestOfCodes(await index.readCodes()));
  return { check: joinChecks(checks), digests, wallUs };
}

/** u8 `[B, Hkv, M, 1]`: the newest code of every row. */
function lastCodes(index: PqIndexer, codes: Uint8Array): Uint8Array {
  const n = index.codedTokens;
  return Uint8Array.from({ length: codes.length / n }, (_, row) => codes[(row + 1) * n - 1]);
}

/** All queries and new keys of a replay on the GPU, each step's at an offset that can be bound. */
async function uploadInputs(test: ReplayCase, gpu: Gpu) {
  const alignment = gpu.limits.minStorageBufferOffsetAlignment;
  const upload = async (label: string, pick: (step: number) => Float32Array) => {
    const bytes = pick(0).byteLength;
    const stride = Math.ceil(bytes / alignment) * alignment;
    const all = new Float32Array(stride / 4 * test.steps);
    for (let step = 0; step < test.steps; step++) all.set(pick(step), step * stride / 4);
    const owned = await gpu.upload(label, all);
    return { owned, at: (step: number) => ({ buffer: owned.buffer, offset: step * stride, size: bytes }) };
  };
  return {
    queries: await upload("queries", (step) => stepInputs(test, step).query),
    newKeys: await upload("new keys", (step) => stepInputs(test, step).newKey),
  };
}

/** GPU clocks idle low: so long the GPU is kept busy before steps are timed. */
const WARM_UP_MS = 200;

/** Results of so many bytes at most wait on the GPU while steps are timed. */
const SEGMENT_BYTES = 256 * 2 ** 20;

/** Selects again and again, which leaves the index as it is, until the clocks are up. */
async function warmUp(index: PqIndexer, gpu: Gpu, query: GpuInput): Promise<void> {
  const end = performance.now() + WARM_UP_MS;
  do {
    await index.select(query);
    await gpu.fence();
  } while (performance.now() < end);
}

/**
 * Inputs on the GPU, the whole step in one pass, from submit to idle. Results stay on the GPU until
 * a segment of steps is over, so that no readback lets the clocks drop between steps.
 */
async function timedRun(test: ReplayCase, pipeline: Pipeline, codes: Uint8Array, onProgress: OnProgress) {
  const gpu = test.gpu!;
  using index = await open(test, pipeline, codes);
  const dispatches = index.dispatchesPerStep();
  const inputs = await uploadInputs(test, gpu);
  using timer = await PassTimer.create(gpu, test.steps);
  const fencesNow = await gpu.canFenceNow();

  const { heads } = test.capture, weightStride = test.capture.tokens;
  const { list } = capacityFor(index.config, test.capture.tokens, 1);
  const sizes = { indices: heads * list * 4, lengths: heads * 4, weights: heads * weightStride * 4 };
  const alignment = gpu.limits.minStorageBufferOffsetAlignment;
  const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
  const segment = Math.max(1, Math.min(test.steps, Math.floor(SEGMENT_BYTES / aligned(sizes.weights))));
  const names = ["indices", "lengths", "weights"] as const;
  const results = await Promise.all(names.map((name) => gpu.allocate(`timed ${name}`, segment * aligned(sizes[name]))));
  const resultAt = (slot: number) => {
    const [indices, lengths, weights] = names.map((name, ix) => ({
      buffer: results[ix].buffer,
      offset: slot * aligned(sizes[name]),
      size: sizes[name],
    }));
    return { indices, lengths, weights, listStride: list, weightStride };
  };

  const digests: string[] = [], wallUs: number[] = [];
  for (let first = 0; first < test.steps; first += segment) {
    const selections: Selection[] = [];
    await warmUp(index, gpu, inputs.queries.at(first));
    for (let step = first; step < Math.min(first + segment, test.steps); step++) {
      onProgress("time", step, test.steps);
      const options = { query: inputs.queries.at(step), newKeys: inputs.newKeys.at(step), out: resultAt(step - first) };
      const begin = performance.now();
      selections.push(
        await gpu.submit("step", (encoder) => {
          const pass = timer ? timer.beginPass(encoder, "step") : encoder.beginComputePass();
          const recorded = index.record(pass, options);
          pass.end();
          return recorded;
        }),
      );
      if (fencesNow) gpu.fenceNow();
      else await gpu.fence();
      wallUs.push((performance.now() - begin) * 1e3);
    }
    for (const selection of selections) digests.push(digestOf(await selection.read()));
  }
  const gpuUs = timer ? (await timer.read()).map(({ us }) => us) : [];
  digests.push(digestOfCodes(await index.readCodes()));
  for (const owned of [...results, inputs.queries.owned, inputs.newKeys.owned]) owned.destroy();
  return { dispatches, gpuUs, wallUs, digests };
}

/** Every operation in a pass of its own. */
async function timedOperations(test: ReplayCase, pipeline: Pipeline, codes: Uint8Array, onProgress: OnProgress) {
  const gpu = test.gpu!;
  using index = await open(test, pipeline, codes);
  const inputs = await uploadInputs(test, gpu);
  using timer = await PassTimer.create(gpu, index.operations.length);
  await warmUp(index, gpu, inputs.queries.at(0));
  const totals = new Map(index.operations.map((name) => [name, 0]));
  for (let step = 0; timer && step < test.steps; step++) {
    onProgress("operations", step, test.steps);
    await gpu.submit("step by operation", (encoder) => {
      const perOperation = (name: string) => timer.beginPass(encoder, name);
      index.record(perOperation, { query: inputs.queries.at(step), newKeys: inputs.newKeys.at(step) });
    });
    for (const { label, us } of await timer.read()) totals.set(label, totals.get(label)! + us);
  }
  inputs.queries.owned.destroy();
  inputs.newKeys.owned.destroy();
  const total = [...totals.values()].reduce((sum, us) => sum + us, 0);
  return [...totals].map(([name, us]) => ({ name, us: us / test.steps, share: total > 0 ? us / total : 0 }));
}

/** Digest of a step's lists and weights: enough to notice a difference, not to sign anything. */
function digestOf(data: SelectionData): string {
  const lists = Array.from(data.lengths, (_, list) => listOf(data, list));
  const weights = Array.from(
    data.lengths,
    (_, list) => data.weights?.subarray(list * data.weightStride, (list + 1) * data.weightStride) ?? [],
  );
  return fnv([data.lengths, ...lists, ...weights]);
}

function digestOfCodes(codes: Uint8Array): string {
  return fnv([codes]);
}

/** FNV-1a, 32 bits, over elements. */
function fnv(parts: readonly ArrayLike<number>[]): string {
  let hash = 0x811c9dc5;
  for (const part of parts) {
    for (let i = 0; i < part.length; i++) hash = Math.imul(hash ^ part[i], 0x01000193);
  }
  return (hash >>> 0).toString(16).padStart(8, "0");
}
