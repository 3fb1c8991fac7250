/**
 * Measures decode attention over a selection and over all cached tokens, verified first: `deno task bench attend`. On a host
 * without the tasks: `deno run -A bench/attend.ts`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { Attention, type AttentionStep } from "../indexer/attention.ts";
import { Random } from "../indexer/kmeans.ts";
import { Selection } from "../indexer/selection.ts";
import type { OwnedBuffer } from "../kernels/gpu/buffers.ts";
import { elementBytes } from "../kernels/shape.ts";
import { bold, type Command, openGpu, prepareOutput, Progress, runCommand, verdict } from "../experiments/cli.ts";
import { alike, gaussian } from "../experiments/inputs/synthetic.ts";
import { writeReport } from "../experiments/json_rows.ts";
import { Bench, timePasses } from "../experiments/measure.ts";
import { provenance } from "../experiments/provenance.ts";
import { summarize, type Summary } from "../experiments/stats.ts";
import { runJson } from "./peers/run_json.ts";

/** One kind of attention. */
export interface AttendRow {
  /** "listed" (sink, heavy and window tokens) or "all" (dense). */
  readonly attends: "listed" | "all";
  /** How keys and values are kept. */
  readonly elements: "f32" | "f16";
  /** N. */
  readonly tokens: number;
  /** Tokens that each head attends to. */
  readonly attended: number;
  /** GPU pass, µs. */
  readonly gpuUs: Summary;
  /** Bytes of keys and values that must be read. */
  readonly bytes: number;
  /** ‖o − o_f64‖ / ‖o_f64‖ of the worst of the heads that were checked. */
  readonly error: number;
  /** Whether that is within the bound. */
  readonly verified: boolean;
}

const HEADS = 32, WIDTH = 128, LISTED = 384;
/** exp may be off by 3 + 2|x| ulp, and scores within 20 of the largest count: 43 · 2⁻²⁴; sums by blocks add less. */
const BOUND = 1e-5;

const COMMAND: Command = {
  name: "bench attend",
  summary: `Measures attention of ${HEADS} heads of width ${WIDTH} over ${LISTED} listed tokens, and over all.`,
  flags: {
    tokens: { value: "N,…", help: "numbers of cached tokens (default 32000,131072; in software 4096)" },
    samples: { value: "N", help: "timed passes each (default 100; in software 3)" },
    python: { value: "FILE", help: "a Python that has torch and CUDA: its attention is measured beside ours" },
    json: { value: "FILE", help: "write the results" },
  },
};

/** A row of PyTorch's attention; see `peers/sdpa.py`. */
export interface TorchRow extends Pick<AttendRow, "attends" | "elements" | "tokens" | "attended" | "error"> {
  /** null on a CPU. */
  readonly gpuUs: number | null;
}

/** PyTorch's scaled_dot_product_attention on the same sizes, by its own clock, after ours. */
async function torchRows(python: string, tokens: readonly number[]): Promise<{ version: string; rows: TorchRow[] }> {
  const script = fileURLToPath(new URL("peers/sdpa.py", import.meta.url));
  const sizes = ["--heads", HEADS, "--width", WIDTH, "--listed", LISTED, "--tokens", tokens.join()];
  return await runJson(python, [script, ...sizes.map(String)]) as unknown as { version: string; rows: TorchRow[] };
}

/** The output of one head in f64. */
function exactHead(
  query: Float32Array,
  keys: ArrayLike<number>,
  values: ArrayLike<number>,
  head: number,
  stride: number,
  tokens: ArrayLike<number>,
): Float64Array {
  const scores = Float64Array.from({ length: tokens.length }, (_, i) => {
    let sum = 0;
    const at = (head * stride + tokens[i]) * WIDTH;
    for (let j = 0; j < WIDTH; j++) sum += query[head * WIDTH + j] * keys[at + j];
    return sum / Math.sqrt(WIDTH);
  });
  const largest = scores.reduce((a, b) => Math.max(a, b));
  const shares = scores.map((score) => Math.exp(score - largest)), total = shares.reduce((a, b) => a + b, 0);
  const output = new Float64Array(WIDTH);
  for (let i = 0; i < tokens.length; i++) {
    const at = (head * stride + tokens[i]) * WIDTH;
    for (let j = 0; j < WIDTH; j++) output[j] += shares[i] / total * values[at + j];
  }
  return output;
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const gpu = await openGpu(), software = gpu.info.isSoftware;
    const numbers = args.integers("tokens", LISTED, 2 ** 18, software ? [4096] : [32_000, 131_072]);
    const samples = args.text("samples") ? args.integer("samples", 1, 100_000) : software ? 3 : 100;
    await prepareOutput(args.text("json"));
    const about = await provenance(gpu.info);
    const copyGBs = await Bench.copyBandwidth(gpu, software ? 2 ** 24 : 2 ** 28) ?? 0;
    console.log(`Adapter: ${about.adapter}; copy ${copyGBs.toFixed(0)} GB/s (read and written)`);
    console.log(bold("        N  attends to  cache   GPU µs     sd    GB/s  of copy      error"));
    const progress = new Progress(), rows: AttendRow[] = [];
    for (const tokens of numbers) {
      progress.phase(`N ${tokens.toLocaleString("en")}: draw keys and values`);
      const random = new Random(tokens), query = gaussian(HEADS * WIDTH, 3);
      const cache = [1, 2].map((seed) => alike(gaussian(tokens * WIDTH, seed), WIDTH, HEADS));
      const lists = Array.from({ length: HEADS }, () => {
        const picked = new Set<number>();
        for (let i = 0; i < LISTED / 3; i++) picked.add(i).add(tokens - 1 - i);
        while (picked.size < LISTED) picked.add(random.below(tokens));
        return Uint32Array.from(picked).sort();
      });
      const indices = new Uint32Array(HEADS * LISTED);
      lists.forEach((list, head) => indices.set(list, head * LISTED));
      using indicesOnGpu = await gpu.upload("indices", indices);
      using lengthsOnGpu = await gpu.upload("lengths", new Uint32Array(HEADS).fill(LISTED));
      using queryOnGpu = await gpu.upload("query", query);
      const range = ({ buffer, bytes }: OwnedBuffer) => ({ buffer, offset: 0, size: bytes });
      for (const elements of ["f16", "f32"] as const) {
        const held = elements === "f32" ? cache : cache.map((array) => new Float16Array(array));
        const words = held.map((array) => new Uint32Array(array.buffer as ArrayBuffer));
        if (words[0].byteLength > gpu.limits.maxStorageBufferBindingSize) continue;
        using keys = await gpu.upload("keys", words[0]);
        using values = await gpu.upload("values", words[1]);
        using attention = await Attention.create({ heads: HEADS, headWidth: WIDTH, elements, device: gpu.device });
        const selection = new Selection(
          attention.shape,
          1,
          { listStride: LISTED, weightStride: 0 },
          { indices: range(indicesOnGpu), lengths: range(lengthsOnGpu) },
          () => Promise.reject(new Error("not needed")),
        );
        for (const attends of ["listed", "all"] as const) {
          progress.phase(`N ${tokens.toLocaleString("en")}: ${attends}, ${elements}`);
          const step: AttentionStep = {
            query: queryOnGpu.buffer,
            keys: keys.buffer,
            values: values.buffer,
            stride: tokens,
            tokens,
            ...(attends === "listed" ? { selection } : {}),
          };
          const output = await (await attention.attend(step)).read();
          let error = 0;
          for (const head of [0, HEADS - 1]) {
            const own = attends === "listed" ? lists[head] : Uint32Array.from({ length: tokens }, (_, i) => i);
            const exact = exactHead(query, held[0], held[1], head, tokens, own);
            const difference = exact.reduce((sum, x, j) => sum + (x - output[head * WIDTH + j]) ** 2, 0);
            error = Math.max(error, Math.sqrt(difference / exact.reduce((sum, x) => sum + x * x, 0)));
          }
          const times = await timePasses(gpu, samples, () => attention.reserve(1), (pass) => {
            attention.record(pass, step);
          });
          const attended = attends === "listed" ? LISTED : tokens;
          const row: AttendRow = {
            attends,
            elements,
            tokens,
            attended,
            gpuUs: summarize(times),
            bytes: 2 * HEADS * attended * WIDTH * elementBytes(elements),
            error,
            verified: error <= BOUND,
          };
          rows.push(row);
          progress.done();
          const us = row.gpuUs.median, rate = row.bytes / us / 1e3;
          console.log(
            `${tokens.toLocaleString("en").padStart(9)}  ${(attends === "all" ? "all" : `${LISTED}`).padStart(10)}  ${
              elements.padStart(5)
            } ${us.toFixed(1).padStart(8)} ${row.gpuUs.sd.toFixed(1).padStart(6)} ${rate.toFixed(0).padStart(7)} ${
              `${(100 * rate / copyGBs).toFixed(0)} %`.padStart(8)
            } ${error.toExponential(1).padStart(10)}  ${verdict(row.verified ? "✓" : "✗ WRONG", row.verified)}`,
          );
        }
      }
    }
    const python = args.text("python");
    let torch: Awaited<ReturnType<typeof torchRows>> | undefined;
    if (python) {
      progress.phase("PyTorch");
      torch = await torchRows(python, numbers);
      progress.done();
      console.log(
        bold(`\n        N  attends to  cache   GPU µs  × ours  ${torch.version}, scaled_dot_product_attention`),
      );
      for (const { attends, elements, tokens, gpuUs } of torch.rows) {
        const same = rows.find((row) => row.attends === attends && row.elements === elements && row.tokens === tokens);
        const ratio = same && gpuUs ? (gpuUs / same.gpuUs.median).toFixed(2) : "–";
        console.log(
          `${tokens.toLocaleString("en").padStart(9)}  ${(attends === "all" ? "all" : `${LISTED}`).padStart(10)}  ${
            elements.padStart(5)
          } ${(gpuUs?.toFixed(1) ?? "–").padStart(8)} ${ratio.padStart(7)}`,
        );
      }
    }
    const json = args.text("json");
    const report = { rows, ...(torch ? { torch } : {}), copyGBs, provenance: about };
    if (json) await writeReport(json, report);
    return rows.every(({ verified }) => verified) ? 0 : 1;
  });
}
