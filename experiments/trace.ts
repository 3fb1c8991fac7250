/**
 * Traces one step of every pipeline as Chrome trace events, for ui.perfetto.dev: `deno task trace`.
 *
 * @module
 */

import type { Gpu } from "../kernels/gpu/device.ts";
import { PassTimer } from "../kernels/gpu/timing.ts";
import { pipelineById, PIPELINES } from "../indexer/pipelines/mod.ts";
import { type Command, openGpu, prepareOutput, Progress, runCommand, UsageError } from "./cli.ts";
import { drawState, openIndex, SEED_WORKLOAD, type Workload } from "./inputs/workload.ts";
import { drawInputs } from "./measure.ts";
import { provenance } from "./provenance.ts";

/** An event of the Chrome trace format: complete ("X") or metadata ("M"). Times in µs. */
export interface TraceEvent {
  readonly name: string;
  readonly ph: "X" | "M";
  readonly pid: number;
  readonly tid: number;
  /** Begin; of complete events only. */
  readonly ts?: number;
  /** Duration; of complete events only. */
  readonly dur?: number;
  readonly cat?: string;
  readonly args?: Readonly<Record<string, unknown>>;
}

const HOST = 1, DEVICE = 2;

/**
 * Refuses what a viewer would not draw: every event needs ph, pid, tid and name, a complete one ts and dur ≥ 0,
 * a metadata one args.name.
 *
 * @throws {RangeError} with the first such event
 */
export function checkTrace(events: readonly TraceEvent[]): void {
  events.forEach((event, ix) => {
    const finite = (value: unknown) => typeof value === "number" && Number.isFinite(value);
    const isSound = typeof event.name === "string" && event.name !== "" && finite(event.pid) && finite(event.tid) &&
      (event.ph === "M"
        ? typeof event.args?.name === "string"
        : event.ph === "X" && finite(event.ts) && finite(event.dur) && event.dur! >= 0);
    if (!isSound) throw new RangeError(`Cannot write the trace as event ${ix} is not sound: ${JSON.stringify(event)}`);
  });
}

/**
 * Traces a step of one pipeline: encode and submit on the host, every kernel by its timestamps on the device. The
 * device's clock has no common zero with the host's: its first kernel is drawn where the submit ends.
 */
export async function traceStep(
  gpu: Gpu,
  id: string,
  workload: Workload,
  state: ReturnType<typeof drawState>,
  pid: number,
): Promise<TraceEvent[]> {
  const pipeline = pipelineById(id);
  using index = await openIndex(workload, state, pipeline, gpu.device, 64);
  const inputs = await drawInputs(gpu, workload, 7);
  const options = { query: inputs.query.buffer, newKeys: inputs.newKeys.buffer };
  using timer = await PassTimer.create(gpu, index.operations.length);
  // The same step until everything is compiled and clocks are up.
  for (let k = 0; k < (gpu.info.isSoftware ? 2 : 40); k++) await index.step(options.query, options.newKeys);
  await gpu.fence();
  await index.reserve(index.tokens + 1);
  const names: string[] = [];
  const begin = performance.now();
  const encoder = gpu.device.createCommandEncoder({ label: id });
  if (timer) {
    index.record((operation) => {
      names.push(operation);
      return timer.beginPass(encoder, operation);
    }, options);
  } else {
    const pass = encoder.beginComputePass();
    index.record(pass, options);
    pass.end();
  }
  const encoded = performance.now();
  const commands = encoder.finish();
  const finished = performance.now();
  gpu.device.queue.submit([commands]);
  const submitted = performance.now();
  await gpu.fence();
  const idle = performance.now();
  const kernels = timer ? await timer.readSpans() : [];
  inputs.query.destroy();
  inputs.newKeys.destroy();
  inputs.moreKeys.destroy();
  const us = (ms: number) => (ms - begin) * 1e3;
  const span = (name: string, from: number, to: number): TraceEvent => ({
    name,
    ph: "X",
    cat: "host",
    pid,
    tid: HOST,
    ts: us(from),
    dur: (to - from) * 1e3,
  });
  const meta = (name: string, tid: number, value: string): TraceEvent => ({
    name,
    ph: "M",
    pid,
    tid,
    args: { name: value },
  });
  const plan = { tokens: workload.tokens, heads: workload.heads };
  const first = kernels[0]?.beginUs ?? 0;
  const events = [
    meta("process_name", HOST, `${id} ${pipeline.title}`),
    meta("thread_name", HOST, "host"),
    meta("thread_name", DEVICE, gpu.info.description),
    span("encode", begin, encoded),
    span("finish", encoded, finished),
    span("submit", finished, submitted),
    span("wait until idle", submitted, idle),
    ...kernels.map(({ label, beginUs, endUs }): TraceEvent => ({
      name: label,
      ph: "X",
      cat: "device",
      pid,
      tid: DEVICE,
      ts: us(submitted) + beginUs - first,
      dur: endUs - beginUs,
      args: plan,
    })),
  ];
  checkTrace(events);
  return events;
}

const COMMAND: Command = {
  name: "trace",
  summary: "Traces a step of every GPU pipeline for ui.perfetto.dev: host encode and submit, every kernel.",
  flags: {
    out: { value: "FILE", help: "where to write", default: "trace.json" },
    pipelines: { value: "IDS", help: "only these, with commas: e01,e07" },
    tokens: { value: "N", help: "tokens in the cache", default: "32000" },
    heads: { value: "H", help: "query and KV heads", default: "32" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const ids = args.text("pipelines")?.split(",") ??
      PIPELINES.filter(({ runsOn }) => runsOn === "gpu").map(({ id }) => id);
    for (const id of ids) {
      if (PIPELINES.find((pipeline) => pipeline.id === id)?.runsOn !== "gpu") {
        throw new UsageError(`Cannot trace ${id} as it is no pipeline on the GPU`);
      }
    }
    const heads = args.integer("heads", 1, 1024);
    const workload = { ...SEED_WORKLOAD, tokens: args.integer("tokens", 300, 2 ** 20), heads, kvHeads: heads };
    const path = args.text("out")!;
    await prepareOutput(path);
    const gpu = await openGpu();
    const state = drawState(workload, 1);
    const progress = new Progress();
    const events: TraceEvent[] = [];
    for (const [ix, id] of ids.entries()) {
      progress.phase(`trace ${id}`);
      events.push(...await traceStep(gpu, id, workload, state, ix + 1));
    }
    progress.done();
    const trace = { traceEvents: events, displayTimeUnit: "ns", otherData: await provenance(gpu.info) };
    await Deno.writeTextFile(path, JSON.stringify(trace) + "\n");
    console.log(`${events.length} events of ${ids.length} pipelines: open ${path} at https://ui.perfetto.dev`);
    return 0;
  });
}
