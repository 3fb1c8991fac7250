/**
 * The whole step on real attention tensors, every pipeline, every result checked:
 * `deno task walkthrough`.
 *
 * @module
 */

import { GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { initOffsetAt, type Metric, type PqConfig, resolveConfig } from "../indexer/config.ts";
import { trainCentroids } from "../indexer/kmeans.ts";
import { agreesToTheByte, PIPELINES } from "../indexer/pipelines/mod.ts";
import { MOST_SHORT } from "../kernels/refine/refine_list.ts";
import {
  bold,
  type Command,
  dim,
  openGpu,
  prepareOutput,
  Progress,
  runCommand,
  UsageError,
  verdict,
  wrap,
} from "./cli.ts";
import { BUNDLED_CAPTURES, captureName, capturePath, DEFAULT_CAPTURE, keysOf, loadCapture } from "./inputs/capture.ts";
import { writeReport } from "./json_rows.ts";
import { provenance } from "./provenance.ts";
import { type Quality, QualityMeter } from "./quality.ts";
import { measureQuality } from "./quality_runs.ts";
import { type Replay, replay, type ReplayCase } from "./replay.ts";
import type { Summary } from "./stats.ts";

const COMMAND: Command = {
  name: "walkthrough",
  summary: "Replays the decode steps of an attention capture through every pipeline, checked and timed.",
  flags: {
    capture: {
      value: "FILE",
      help: `safetensors: query [H, T, D], key, value [Hkv, N, D]; or ${Object.keys(BUNDLED_CAPTURES).join(", ")}`,
      default: DEFAULT_CAPTURE,
    },
    json: { value: "FILE", help: "write rows, quality and provenance as JSON" },
    steps: { value: "N", help: "decode steps to replay, the last ones (default: all of the capture)" },
    subvectors: { value: "M", help: "subvectors per key", default: "2" },
    bits: { value: "N", help: "bits per code, 1 to 8", default: "6" },
    metric: { value: "NAME", help: "euclidean or ip", default: "euclidean" },
    sink: { value: "S", help: "sink tokens, or a share such as 1%", default: "4" },
    window: { value: "W", help: "window tokens, or a share", default: "128" },
    heavy: { value: "K", help: "heavy tokens, or a share", default: "128" },
    seed: { value: "N", help: "seed of the training", default: "0" },
    iterations: { value: "N", help: "most iterations of the training", default: "10" },
  },
};

/** R of the line that shows what re-ranking adds. */
const REFINE = 4;

const COLUMNS = ["median", "mean", "min", "max", "sd"] as const;

interface Row extends Replay {
  readonly verified: boolean;
  readonly problem: string;
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const metric = args.text("metric");
    if (metric !== "euclidean" && metric !== "ip") {
      throw new UsageError(`Cannot use --metric ${metric} as it must be euclidean or ip`);
    }
    const asked = {
      subvectors: args.integer("subvectors", 1, 4096),
      bits: args.integer("bits", 1, 8),
      metric: metric as Metric,
      sinkSize: args.size("sink"),
      windowSize: args.size("window"),
      heavySize: args.size("heavy"),
    };
    const seed = args.integer("seed", 0, 2 ** 32 - 1), iterations = args.integer("iterations", 1, 1000);
    if (args.text("steps") !== undefined) args.integer("steps", 1, 2 ** 20);

    await prepareOutput(args.text("json"));

    const path = capturePath(args.text("capture"));
    const progress = new Progress();
    progress.phase("Loading the capture");
    const capture = await loadCapture(path);
    progress.done();
    const gpu = await openGpu().catch((error) => {
      if (!(error instanceof GpuUnavailableError)) throw error;
      console.log(`No GPU: running the CPU reference only.\n${wrap(error.message, 100)}`);
      return undefined;
    });
    if (gpu) {
      const kind = gpu.info.isSoftware ? " (software: its times say nothing about a GPU)" : "";
      console.log(`Adapter: ${gpu.info.description}${kind}`);
    }
    const steps = args.text("steps") === undefined ? capture.steps : args.integer("steps", 1, capture.steps);
    const config: PqConfig = {
      ...asked,
      heads: capture.heads,
      kvHeads: capture.kvHeads,
      headWidth: capture.headWidth,
    };
    const resolved = resolveConfig(config);
    const prompt = capture.tokens - steps;
    const initOffset = initOffsetAt(resolved, prompt);
    const { shape } = resolved;

    progress.phase("Training the codebook");
    const codebook = trainCentroids(shape, keysOf(capture, 0, prompt), {
      seed,
      iterations,
      initOffset,
      onProgress: (done, total) => progress.update(done, total),
    });
    progress.done();
    const name = captureName(path);
    console.log(
      `Capture: ${name}, ${shape.heads} query heads on ${shape.kvHeads} KV, D ${shape.headWidth}; ` +
        `${prompt.toLocaleString("en")} tokens, then ${steps} steps`,
    );
    const sizes = (["sink", "heavy", "window"] as const).map((flag) => `${flag} ${args.text(flag)}`).join(" | ");
    console.log(`Index: M ${shape.subvectors}, ${asked.bits} bits, ${metric}; list: ${sizes}; seed ${seed}\n`);

    const test: ReplayCase = { capture, config, initOffset, codebook, steps, gpu };
    const meter = new QualityMeter(capture, resolved, initOffset);
    const rows: Row[] = [];
    let firstDigest: string | undefined;
    for (const pipeline of PIPELINES.filter((pipeline) => gpu || pipeline.runsOn === "cpu")) {
      const label = `${pipeline.id} ${pipeline.title}`;
      let phase = "";
      const onProgress = (next: string, done: number, total: number) => {
        if (next !== phase) progress.phase(`${label}: ${phase = next}`);
        progress.update(done, total);
      };
      progress.phase(`${label}: code the prompt`);
      const isReference = pipeline.id === "e00";
      const result = await replay(test, pipeline, onProgress, (step, nTokens, lists) => {
        if (isReference) meter.add(step, nTokens, lists);
      });
      const isFirst = firstDigest === undefined;
      if (agreesToTheByte(pipeline)) firstDigest ??= result.digest;
      const problem = result.check.errors > 0
        ? `${result.check.errors} errors; first: ${result.check.firstError}`
        : result.reproducible === false
        ? "a second run gave other bytes"
        : agreesToTheByte(pipeline) && !isFirst && result.digest !== firstDigest
        ? "other bytes than the GPU pipelines before it"
        : "";
      rows.push({ ...result, verified: problem === "", problem });
    }
    progress.done();

    const quality = meter.result();
    const { heavySize } = asked;
    const canRefine = typeof heavySize === "number" && heavySize > 0 && REFINE * heavySize <= MOST_SHORT;
    if (canRefine) progress.phase(`Re-ranking, R ${REFINE}`);
    const refined = canRefine
      ? (await measureQuality({ capture, steps, sinkSize: initOffset }, { ...config, refine: REFINE }, codebook)).all
      : undefined;
    progress.done();
    printTable(rows, steps);
    printQuality(quality, refined, resolved.shape.heads * steps, shape.subvectors);
    const json = args.text("json");
    if (json) {
      const report = {
        rows: rows.map((row) => ({
          id: row.pipeline.id,
          title: row.pipeline.title,
          change: row.pipeline.change,
          dispatches: row.dispatches,
          gpuUs: row.gpuUs ?? null,
          wallUs: row.wallUs,
          operations: row.operations,
          verified: row.verified,
          exchanges: row.check.exchanges,
          problem: row.problem,
        })),
        quality,
        refined: refined ? { refine: REFINE, quality: refined } : null,
        provenance: {
          ...await provenance(gpu?.info),
          input: name,
          capture: {
            tokens: capture.tokens,
            steps,
            heads: shape.heads,
            kvHeads: shape.kvHeads,
            headWidth: shape.headWidth,
          },
          config: { ...asked, initOffset },
          seed,
          iterations,
        },
      };
      await writeReport(json, report);
    }
    const failed = rows.filter((row) => !row.verified);
    for (const row of failed) console.error(`error: ${row.pipeline.id} is wrong: ${row.problem}`);
    return failed.length === 0 ? 0 : 1;
  });
}

/** Why e08 does not do here what its description says, if so. */
function fallbackNote({ pipeline, dispatches, operations }: Row): string {
  if (!pipeline.change.includes("one dispatch, whatever") || dispatches <= 1) return "";
  return operations.some(({ name }) => name === "score_tiles")
    ? "here by tiles, as e07: cells need M × bits ≤ 12, K ≤ 512 and sizes that are numbers"
    : `here ${dispatches} dispatches: in software, keys are coded faster in a dispatch of their own`;
}

function printTable(rows: readonly Row[], steps: number): void {
  const number = (value: number) => value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
  const line = (
    left: string,
    disp: string,
    clock: string,
    times: readonly string[],
    ratios: readonly string[],
    end = "",
  ) =>
    `${left.padEnd(15)}${disp.padStart(5)}  ${clock.padEnd(5)}${times.map((text) => text.padStart(8)).join("")}${
      ratios.map((text) => text.padStart(9)).join("")
    }  ${end}`.trimEnd();
  console.log(
    `µs per step over ${steps} steps; GPU: its pass by timestamps, wall: submit to idle; warm clocks, hot cache`,
  );
  console.log(bold(line("iteration", "disp.", "clock", COLUMNS, ["× prev.", "× base"], "verified")));
  const baseline = rows.find((row) => row.pipeline.runsOn === "gpu");
  rows.forEach((row, ix) => {
    const before = rows[ix - 1];
    const ratio = (mine: Summary | undefined, other: Summary | undefined) =>
      mine && other ? (other.median / mine.median).toFixed(2) : "–";
    const clocks = ["gpuUs", "wallUs"] as const;
    clocks.filter((clock) => clock === "wallUs" || row.gpuUs).forEach((clock, nth) => {
      const summary = row[clock];
      const exchanged = row.check.exchanges > 0 ? `${row.check.exchanges} exch.` : "exact";
      const verified = !row.verified ? "✗ WRONG" : row.pipeline.id === "e00" ? "✓ rescored" : `✓ ${exchanged}`;
      console.log(line(
        nth === 0 ? `${row.pipeline.id} ${row.pipeline.title}` : "",
        nth === 0 ? (row.dispatches ? String(row.dispatches) : "–") : "",
        clock === "gpuUs" ? "GPU" : "wall",
        COLUMNS.map((column) => summary ? number(summary[column]) : "–"),
        [ratio(summary, before?.[clock]), ratio(summary, baseline?.[clock])],
        nth === 0 ? verdict(verified, row.verified) : "",
      ));
    });
    console.log(dim(`    ${row.pipeline.change}`));
    const note = fallbackNote(row);
    if (note) console.log(dim(`    ${note}`));
    for (const text of shareLines(row)) console.log(dim(`    ${text}`));
  });
  const legend = [
    "disp.: dispatches; × prev., × base: medians against the row before and the baseline, same clock",
    "verified: every step's codes, lists and weights. rescored: the oracle, by scoring keys rebuilt from",
    "their codes; exact: as the oracle; n exch.: n tokens exchanged, all within the rounding bound",
  ];
  console.log(dim(legend.join("\n")));
}

/** "gather 41 % ████████ · sum 20 % ████ …" in lines of at most 96 columns, largest share first. */
function shareLines({ operations }: Row): string[] {
  const lines: string[] = [];
  const sorted = operations.filter(({ us }) => us > 0).sort((a, b) => b.us - a.us);
  for (const { name, share } of sorted) {
    const bar = "█".repeat(Math.round(share * 20));
    const text = `${name} ${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %${bar ? ` ${bar}` : ""}`;
    const last = lines.at(-1);
    if (last !== undefined && last.length + text.length + 3 <= 92) lines[lines.length - 1] = `${last} · ${text}`;
    else lines.push(text);
  }
  return lines;
}

function printQuality(quality: Quality, refined: Quality | undefined, lists: number, bytesPerKey: number): void {
  const percent = (share: number) => (Number.isNaN(share) ? "–" : `${(100 * share).toFixed(1)} %`).padStart(8);
  console.log(
    `\n${bold("What the selection keeps")} (mean of ${lists} lists of ${
      quality.listLength.toFixed(0)
    } tokens; codes: ${bytesPerKey} bytes per key and head)`,
  );
  const rows: [string, number][] = [
    ["recall@K of the exact top-K", quality.recall],
    ["attention mass, sink + heavy + window", quality.listMass],
    ["  with exact top-K as heavy: the most there is", quality.exactMass],
    ["  window-only: sink + window", quality.windowMass],
    ["  window-only, as long as the list", quality.sameLengthWindowMass],
    ["share recovered of what heavy tokens can add", quality.recovered],
    ...(refined ? [[`  re-ranked by exact scores, R ${REFINE}`, refined.recovered] as [string, number]] : []),
  ];
  for (const [label, share] of rows) {
    const bar = "█".repeat(Math.round(Math.max(0, share || 0) * 30));
    console.log(`  ${label.padEnd(48)}${percent(share)}  ${bar}`);
  }
}
