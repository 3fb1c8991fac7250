/**
 * Finds the best sizes of the tuned step for this device and a shape, and keeps them in a file that indexes read when
 * they are told to: `deno task tune`.
 *
 * The search goes along one size at a time, from the default on, until no size helps. Candidates are compared by the
 * geometric mean of the step's GPU time over the numbers of tokens, relative to the default; each must give the same
 * bytes. At the end winner and default take turns, so that drifting clocks favor neither.
 *
 * @module
 */

import type { Gpu } from "../kernels/gpu/device.ts";
import { hostDriver } from "../kernels/gpu/host.ts";
import { DEFAULT_PIPELINE } from "../indexer/pipelines/mod.ts";
import { readTuning, shapeClass, type Tuning, type TuningEntry, type TuningFile } from "../indexer/tuning.ts";
import { initOffsetAt, type ResolvedConfig, resolveRows } from "../indexer/config.ts";
import { bold, type Command, dim, openGpu, prepareOutput, Progress, runCommand, UsageError, wrap } from "./cli.ts";
import { CONFIG_FLAGS, configFrom } from "./config_flags.ts";
import { drawState, SEED_WORKLOAD, type Workload, type WorkloadState } from "./inputs/workload.ts";
import { writeReport } from "./json_rows.ts";
import { Bench } from "./measure.ts";
import { summarize } from "./stats.ts";
import { verifySteps } from "./verify_steps.ts";

const COMMAND: Command = {
  name: "tune",
  summary: "Measures sizes of the tuned step on this device, and writes the best to a file that indexes can read.",
  flags: {
    ...CONFIG_FLAGS,
    "no-weights": { value: "", help: "without dense weights" },
    tokens: { value: "N,…", help: "numbers of tokens that count (default 4096,32000,131072; in software 32000)" },
    samples: { value: "N", help: "timed steps per candidate (default 60; in software 5)" },
    out: { value: "FILE", help: "the file; other entries in it stay", default: "tuning.json" },
  },
};

/** Values to try, size by size, in the order of what they are worth. */
function axesFor(gpu: Gpu, config: ResolvedConfig, weights: boolean): (readonly [keyof Tuning, readonly number[]])[] {
  const { shape } = config, matter = DEFAULT_PIPELINE.tunes!({ config, device: gpu, weights });
  const { maxComputeInvocationsPerWorkgroup: most, maxComputeWorkgroupSizeX: mostX } = gpu.limits;
  const upTo = (values: readonly number[]) => values.filter((value) => value <= Math.min(most, mostX));
  const group = shape.heads / shape.kvHeads;
  const all: (readonly [keyof Tuning, readonly number[]])[] = [
    ["invocations", upTo([128, 256, 512, 1024])],
    ["mostChunks", [1, 4, 16]],
    ["workgroups", gpu.info.isSoftware ? [4, 16, 64] : [32, 64, 128, 192, 256]],
    ["listInvocations", upTo([64, 128, 256, 512, 1024])],
    ["subgroupSize", gpu.subgroupSize > 0 ? [0, gpu.subgroupSize] : [0]],
    ["lists", [1, 2, 4, 8].filter((lists) => lists <= group)],
  ];
  return all.filter(([name]) => matter.includes(name));
}

/** One number of tokens with its state. */
interface Load {
  readonly workload: Workload;
  readonly state: WorkloadState;
  /** Digest of the default's result. */
  readonly bytes: string;
}

/** Candidates, each measured once. */
class Search {
  readonly #gpu: Gpu;
  readonly #loads: readonly Load[];
  readonly #samples: number;
  readonly #known = new Map<string, readonly number[]>();

  constructor(gpu: Gpu, loads: readonly Load[], samples: number) {
    this.#gpu = gpu;
    this.#loads = loads;
    this.#samples = samples;
  }

  /** Median µs per number of tokens; undefined where sizes cannot be had or are wrong (which is reported). */
  async measure(tuning: Tuning, again = false): Promise<readonly number[] | undefined> {
    const key = JSON.stringify(tuning);
    const known = again ? undefined : this.#known.get(key);
    if (known) return known;
    const pipeline = DEFAULT_PIPELINE.tuned!(tuning);
    const times: number[] = [];
    for (const { workload, state, bytes } of this.#loads) {
      try {
        if (!again) {
          const checked = await verifySteps(pipeline, workload, state, this.#gpu, bytes);
          if (checked.problem) {
            throw new RangeError(`it gives ${checked.problem.replace("first GPU pipeline", "default")}`);
          }
        }
        using bench = await Bench.open(this.#gpu, pipeline, workload, state, { steps: this.#samples + 200 });
        await bench.warmUp(this.#gpu.info.isSoftware ? 0 : 300);
        const samples = await bench.gpuSteps(this.#samples);
        const wall = samples.length > 0 ? samples : (await bench.wall(this.#samples)).step;
        times.push(summarize(wall).median);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        console.log(dim(wrap(`left out: ${label(tuning)}: ${error.message.replace(/: \{.*$/, "")}`, 100)));
        return undefined;
      }
    }
    this.#known.set(key, times);
    return times;
  }
}

const label = (tuning: Tuning) =>
  `${tuning.invocations} invocations, ${tuning.mostChunks} chunks, ${tuning.workgroups} workgroups, ` +
  `${tuning.listInvocations} per list, subgroups ${tuning.subgroupSize}, lists ${tuning.lists}`;

/** Geometric mean of ratios. */
function relative(times: readonly number[], base: readonly number[]): number {
  return Math.exp(times.reduce((sum, us, ix) => sum + Math.log(us / base[ix]), 0) / times.length);
}

const micros = (us: number) => us.toLocaleString("en", { maximumFractionDigits: us < 1000 ? 1 : 0 });

/** The file as it is; an empty one where there is none. */
async function readFileOrNone(path: string): Promise<TuningFile> {
  const isThere = await Deno.stat(path).then(({ size }) => size > 0, () => false);
  return isThere ? await readTuning(path) : { tunings: [] };
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const { given, config } = configFrom(args);
    const weights = !args.has("no-weights");
    const gpu = await openGpu();
    const software = gpu.info.isSoftware;
    const tokens = args.integers("tokens", 1, 2 ** 20, software ? [32_000] : [4096, 32_000, 131_072]);
    const samples = args.text("samples") ? args.integer("samples", 1, 100_000) : software ? 5 : 60;
    const { sinkSize, windowSize, heavySize } = config;
    if (typeof sinkSize !== "number" || typeof windowSize !== "number" || typeof heavySize !== "number") {
      throw new UsageError("Cannot tune sizes that are shares as the drawn states have fixed ones: give numbers");
    }
    const axes = axesFor(gpu, config, weights);
    for (const n of tokens) {
      const [row] = resolveRows(config, initOffsetAt(config, n), n, 1);
      if (row.nHeavy === 0 || axes.length === 0) {
        throw new UsageError(`Cannot tune at ${n} tokens as no size matters there: give more tokens, or another K`);
      }
    }
    const path = args.text("out")!;
    await prepareOutput(path);
    const file = await readFileOrNone(path);
    const driver = await hostDriver(gpu.info);
    console.log(`${gpu.info.description}, driver ${driver}: ${shapeClass(config, weights)}`);

    const progress = new Progress();
    progress.phase("draw states");
    const loads: Load[] = [];
    const start = DEFAULT_PIPELINE.defaultTuning!({ config, device: gpu, weights });
    for (const n of tokens) {
      const workload: Workload = {
        ...SEED_WORKLOAD,
        ...given,
        sinkSize,
        windowSize,
        heavySize,
        tokens: n,
        weights,
        locality: 0.9,
      };
      const state = drawState(workload, 1);
      const { problem, bytes } = await verifySteps(DEFAULT_PIPELINE, workload, state, gpu, undefined);
      if (problem) throw new Error(`Cannot tune as the default's result is wrong at ${n} tokens: ${problem}`);
      loads.push({ workload, state, bytes });
    }
    const search = new Search(gpu, loads, samples);
    const base = await search.measure(start);
    if (!base) throw new RangeError("Cannot tune as the default does not run on this device");
    const head = tokens.map((n) => `N ${n.toLocaleString("en")}`.padStart(13)).join("");
    console.log(bold(`${"µs".padStart(5)}${head}   ratio   sizes`));
    const show = (tuning: Tuning, times: readonly number[], note = "") =>
      console.log(
        `     ${times.map((us) => micros(us).padStart(13)).join("")}  ${
          relative(times, base).toFixed(3).padStart(6)
        }   ` +
          label(tuning) + note,
      );
    show(start, base, " (default)");

    let best = start, bestRatio = 1;
    const steps = axes.reduce((sum, [, values]) => sum + values.length, 0);
    for (let round = 0, changed = true; changed && round < 3; round++) {
      changed = false;
      progress.phase(`round ${round + 1}`);
      let done = 0;
      for (const [name, values] of axes) {
        for (const value of values) {
          progress.update(done++, steps);
          const candidate = { ...best, [name]: value };
          const times = await search.measure(candidate);
          if (!times || relative(times, base) >= 0.99 * bestRatio) continue;
          [best, bestRatio, changed] = [candidate, relative(times, base), true];
          progress.done();
          show(best, times);
        }
      }
    }
    progress.phase("winner and default by turns");
    const turns: { readonly winner: readonly number[]; readonly base: readonly number[] }[] = [];
    for (let k = 0; k < (best === start ? 1 : 3); k++) {
      progress.update(k, 3);
      const turn = { base: await search.measure(start, true), winner: await search.measure(best, true) };
      if (!turn.base || !turn.winner) {
        throw new Error("Cannot compare winner and default as one of them failed the second time");
      }
      turns.push({ base: turn.base, winner: turn.winner });
    }
    progress.done();
    const median = (of: (turn: typeof turns[number]) => readonly number[]) =>
      tokens.map((_, ix) => summarize(turns.map((turn) => of(turn)[ix])).median);
    const defaults = median(({ base }) => base), winners = median(({ winner }) => winner);
    const isBetter = best !== start && relative(winners, defaults) < 1;
    const entry: TuningEntry = {
      adapter: gpu.info.description,
      driver,
      shape: shapeClass(config, weights),
      tuning: isBetter ? best : start,
      measured: tokens.map((n, ix) => ({
        tokens: n,
        us: isBetter ? winners[ix] : defaults[ix],
        defaultUs: defaults[ix],
      })),
      date: new Date().toISOString(),
    };
    const others = file.tunings.filter(({ adapter, driver, shape }) =>
      adapter !== entry.adapter || driver !== entry.driver || shape !== entry.shape
    );
    const written: TuningFile = { tunings: [...others, entry] };
    await writeReport(path, written);
    console.log(`\nbest: ${label(entry.tuning)}`);
    for (const { tokens, us, defaultUs } of entry.measured) {
      const more = 100 * (defaultUs / us - 1);
      console.log(
        `  N ${tokens.toLocaleString("en").padEnd(9)} ${micros(us).padStart(8)} µs, default ${
          micros(defaultUs).padStart(8)
        } µs: ${more < 0.05 ? "the same" : `${more.toFixed(1)} % more`}`,
      );
    }
    console.log(`written: ${path}. To use it: PqIndexer.create({ …, tuning: ${JSON.stringify(path)} })`);
    return 0;
  });
}
