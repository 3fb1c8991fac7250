/**
 * Measures the training of codebooks on the GPU, verified first: `deno task bench train`. On a host without the tasks:
 * `deno run -A bench/train.ts`.
 *
 * @module
 */

import { lloyd } from "../indexer/kmeans.ts";
import type { KeyElements } from "../indexer/key_parts.ts";
import { PqIndexer } from "../indexer/pq_indexer.ts";
import { type GpuTrainOptions, sampleSize, type TrainedCodebook, trainOnGpu } from "../indexer/trainer.ts";
import { PassTimer } from "../kernels/gpu/timing.ts";
import { elementBytes, type LayerShape } from "../kernels/shape.ts";
import { sampleKeys, startCentroids, startPoints } from "../kernels/train/start.ts";
import { STATE, STATE_WORDS, trainShape, TrainView } from "../kernels/train/train.ts";
import { bold, type Command, openGpu, prepareOutput, Progress, runCommand, verdict } from "../experiments/cli.ts";
import { alike, clustered } from "../experiments/inputs/synthetic.ts";
import { writeReport } from "../experiments/json_rows.ts";
import { provenance } from "../experiments/provenance.ts";
import { summarize, type Summary } from "../experiments/stats.ts";

/** One training. */
export interface TrainRow {
  /** KV heads. */
  readonly heads: number;
  /** Keys per head. */
  readonly tokens: number;
  /** M. */
  readonly subvectors: number;
  /** Bits of a code. */
  readonly bits: number;
  /** How keys are kept. */
  readonly elements: KeyElements;
  /** Keys per head that the training looks at. */
  readonly sampled: number;
  /** From the first dispatch to the end of the last, in one pass, µs. */
  readonly gpuUs: Summary;
  /** From the call of `PqIndexer.train` to the GPU's rest, codes of all keys and the result's way to the host included, ms. */
  readonly wallMs: number;
  /** Shares of operations, each in a pass of its own, µs, all iterations together. */
  readonly operationsUs: Readonly<Record<string, number>>;
  /** Bytes beside the keys. */
  readonly workBytes: number;
  /** The same as a share of the keys' bytes. */
  readonly workShare: number;
  /** Distortion beside that of f64 iterations from the same start, of the first head's groups, the worst: 1 is equal. */
  readonly distortionRatio: number;
  /** Whether that is within 1 %, and a second run gave the same bytes. */
  readonly verified: boolean;
}

const WIDTH = 128, ITERATIONS = 10, SEED = 0;
/** How much worse than f64 iterations a distortion may be. */
const MOST_RATIO = 1.01;

const COMMAND: Command = {
  name: "bench train",
  summary: `Measures ${ITERATIONS} iterations of k-means on keys of width ${WIDTH}, start included.`,
  flags: {
    heads: { value: "N", help: "KV heads (default 32; in software 2)" },
    tokens: { value: "N,…", help: "keys per head (default 32000; in software 4000)" },
    samples: { value: "N", help: "timed trainings each (default 10; in software 1)" },
    json: { value: "FILE", help: "write the results" },
  },
};

/** The first head's distortions of f64 iterations from the start that the kernels have. */
function exactDistortions(shape: LayerShape, keys: Float32Array, tokens: number): number[] {
  const one = { ...shape, heads: 1, kvHeads: 1 };
  const step = trainShape(tokens, 0, tokens, sampleSize(one, tokens, {}));
  const options = { elements: "f32", tolerance: 0, startInvocations: 64 } as const;
  const kernels = [sampleKeys(options), startPoints(options), startCentroids(options)];
  const buffers: Record<string, Float32Array | Uint32Array> = { keys };
  for (const use of kernels.flatMap(({ buffers }) => buffers)) {
    buffers[use.name] ??= new (use.type === "f32" ? Float32Array : Uint32Array)(use.elements(one, step));
  }
  for (let m = 0; m < one.subvectors; m++) buffers.state[m * STATE_WORDS + STATE.seed] = SEED + m;
  for (const kernel of kernels) kernel.twin(one, step, buffers);
  const view = new TrainView(one, step, buffers), width = WIDTH / one.subvectors;
  return Array.from({ length: one.subvectors }, (_, group) => {
    const points = new Float32Array(step.nNew * width);
    for (let slot = 0; slot < step.nNew; slot++) points.set(view.relative(group, slot)!, slot * width);
    const centers = Float64Array.from(
      Array.from({ length: one.centroids }, (_, c) => view.modelValues(group, c)).flat(),
    );
    return lloyd(points, width, centers, ITERATIONS);
  });
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const gpu = await openGpu(), software = gpu.info.isSoftware;
    const heads = args.text("heads") ? args.integer("heads", 1, 1024) : software ? 2 : 32;
    const numbers = args.integers("tokens", 256, 2 ** 20, [software ? 4000 : 32_000]);
    const samples = args.text("samples") ? args.integer("samples", 1, 1000) : software ? 1 : 10;
    await prepareOutput(args.text("json"));
    const about = await provenance(gpu.info);
    console.log(`Adapter: ${about.adapter}`);
    console.log(bold(" heads        N  M x bits  keys   GPU ms     sd  wall ms  memory  distortion to f64"));
    const progress = new Progress(), rows: TrainRow[] = [];
    for (const tokens of numbers) {
      progress.phase(`N ${tokens.toLocaleString("en")}: draw keys`);
      const held = alike(Float32Array.from(Float16Array.from(clustered(tokens, WIDTH, 200, 0.5, 1))), WIDTH, heads);
      for (const [subvectors, bits] of software ? [[2, 6]] : [[2, 6], [8, 8]]) {
        const shape: LayerShape = {
          batch: 1,
          heads,
          kvHeads: heads,
          headWidth: WIDTH,
          subvectors,
          centroids: 2 ** bits,
          augmented: false,
        };
        progress.phase(`N ${tokens.toLocaleString("en")}, ${subvectors} x ${bits} bits: f64 iterations`);
        const exact = exactDistortions(shape, held.subarray(0, tokens * WIDTH), tokens);
        for (const elements of ["f32", "f16"] as const) {
          const bytes = held.length * elementBytes(elements);
          if (bytes > gpu.limits.maxBufferSize) continue;
          const data = elements === "f32" ? held : new Float16Array(held);
          using keys = await gpu.upload("keys", new Uint32Array(data.buffer as ArrayBuffer));
          progress.phase(`N ${tokens.toLocaleString("en")}, ${subvectors} x ${bits} bits, ${elements}`);
          const train = (options: GpuTrainOptions = {}): Promise<TrainedCodebook> =>
            trainOnGpu(gpu, shape, { keys: keys.buffer, tokens, elements }, {
              seed: SEED,
              iterations: ITERATIONS,
              ...options,
            });
          // Reading a result back lets the clocks fall: long trainings raise them before each that is timed.
          const warmUpClocks = (iterations = 150) => software ? undefined : train({ iterations });
          const found = await train(), again = await train();
          const isSame = found.centroids.every((x, ix) => Object.is(x, again.centroids[ix]));
          const ratio = Math.max(...exact.map((value, m) => found.distortions[m] / value));

          using timer = await PassTimer.create(gpu, 256);
          const wholeUs: number[] = [], operationsUs: Record<string, number> = {};
          if (timer) {
            const beginPass: GpuTrainOptions["beginPass"] = (encoder, label) => timer.beginPass(encoder, label);
            await warmUpClocks(600);
            for (let sample = 0; sample < samples; sample++) {
              await warmUpClocks();
              await train({ beginPass });
              wholeUs.push((await timer.read()).reduce((sum, { us }) => sum + us, 0));
            }
            await warmUpClocks();
            await train({ beginPass, passPerOperation: true });
            for (const { label, us } of await timer.read()) operationsUs[label] = (operationsUs[label] ?? 0) + us;
          }
          let wallMs = 0;
          for (let call = 0; call < 2; call++) { // the first one compiles
            using index = await PqIndexer.create({
              heads,
              headWidth: WIDTH,
              subvectors,
              bits,
              trainOn: "gpu",
              capacity: tokens,
              initOffset: 0,
            });
            await warmUpClocks();
            const begin = performance.now();
            await index.train(keys.buffer, { tokens, elements });
            await gpu.fence();
            wallMs = performance.now() - begin;
          }
          const row: TrainRow = {
            heads,
            tokens,
            subvectors,
            bits,
            elements,
            sampled: found.sampled,
            gpuUs: summarize(wholeUs),
            wallMs,
            operationsUs,
            workBytes: found.workBytes,
            workShare: found.workBytes / bytes,
            distortionRatio: ratio,
            verified: isSame && ratio <= MOST_RATIO,
          };
          rows.push(row);
          progress.done();
          console.log(
            `${`${heads}`.padStart(6)} ${tokens.toLocaleString("en").padStart(8)}  ${
              `${subvectors} x ${bits}`.padStart(8)
            }  ${elements.padStart(4)} ${(row.gpuUs.median / 1e3).toFixed(2).padStart(8)} ${
              (row.gpuUs.sd / 1e3).toFixed(2).padStart(6)
            } ${wallMs.toFixed(1).padStart(8)} ${`${(100 * row.workShare).toFixed(1)} %`.padStart(7)} ${
              ratio.toFixed(5).padStart(18)
            }  ${verdict(row.verified ? "✓" : isSame ? "✗ WORSE" : "✗ ANOTHER RESULT", row.verified)}`,
          );
          const shares = Object.entries(operationsUs).map(([name, us]) => `${name} ${us.toFixed(0)}`);
          console.log(`       µs by operation: ${shares.join(" · ")}`);
        }
      }
    }
    const json = args.text("json");
    if (json) await writeReport(json, { rows, provenance: about });
    return rows.every(({ verified }) => verified) ? 0 : 1;
  });
}
