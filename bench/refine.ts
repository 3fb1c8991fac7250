/**
 * Measures exact re-ranking of a shortlist beside the step without it, verified first: `deno task bench refine`. On a host
 * without the tasks: `deno run -A bench/refine.ts`.
 *
 * @module
 */

import { resolveConfig } from "../indexer/config.ts";
import type { KeyElements } from "../indexer/key_parts.ts";
import { PqIndexer } from "../indexer/pq_indexer.ts";
import { bestExact } from "../indexer/reference.ts";
import { listOf, type SelectionData } from "../indexer/selection.ts";
import { elementBytes } from "../kernels/shape.ts";
import { bold, type Command, openGpu, prepareOutput, Progress, runCommand, verdict } from "../experiments/cli.ts";
import { alike, clustered, gaussian } from "../experiments/inputs/synthetic.ts";
import { writeReport } from "../experiments/json_rows.ts";
import { timePasses } from "../experiments/measure.ts";
import { provenance } from "../experiments/provenance.ts";
import { summarize, type Summary } from "../experiments/stats.ts";

/** A step with a shortlist of R·K, or without one. */
export interface RefineRow {
  /** N. */
  readonly tokens: number;
  /** M. */
  readonly subvectors: number;
  /** log2 C. */
  readonly bits: number;
  /** R; 1 is no re-ranking. */
  readonly refine: number;
  /** How cached keys are kept. */
  readonly elements: KeyElements;
  /** GPU pass of the step without new keys, with weights, µs. */
  readonly gpuUs: Summary;
  /** Bytes of keys that it reads beside the step. */
  readonly keyBytes: number;
  /** Tokens of all lists that differ from the f64 choice by rounding: exact scores closer than the bound. */
  readonly exchanges: number;
  /** Whether all others are the f64 choice out of the same shortlist. */
  readonly verified: boolean;
}

const HEADS = 32, WIDTH = 128, K = 128, S = 128, W = 128, QUERIES = 64;

const COMMAND: Command = {
  name: "bench refine",
  summary:
    `Measures a step of ${HEADS} heads, K ${K}, with exact re-ranking of R·K tokens and without, by several codebooks.`,
  flags: {
    tokens: { value: "N,…", help: "numbers of cached tokens (default 32000,131072; in software 4096)" },
    samples: { value: "N", help: "timed passes each (default 200; in software 3)" },
    json: { value: "FILE", help: "write the results" },
  },
};

/** What is wrong with lists that were made of shortlists; how many tokens rounding exchanged. */
function checkRefined(
  query: Float32Array,
  keys: Float32Array,
  tokens: number,
  short: SelectionData,
  got: SelectionData,
): { exchanges: number; problem: string } {
  const { shape } = resolveConfig({ heads: HEADS, headWidth: WIDTH });
  let exchanges = 0;
  for (let list = 0; list < HEADS; list++) {
    const shortlist = [...listOf(short, list).slice(S, -W)], listed = [...listOf(got, list)];
    const best = bestExact(shape, query, keys, tokens, list, 1, shortlist, K);
    const heavy = listed.slice(S, -W), own = new Set(heavy), wanted = new Set(best);
    const rest = listed.slice(0, S).every((token, j) => token === j) &&
      listed.slice(-W).every((token, j) => token === tokens - W + j);
    if (!rest || heavy.length !== K || own.size !== K) return { exchanges, problem: `list ${list} has another form` };
    const scored = (token: number) => {
      let score = 0, magnitude = 0;
      for (let j = 0; j < WIDTH; j++) {
        const product = query[list * WIDTH + j] * keys[(list * tokens + token) * WIDTH + j];
        score += product;
        magnitude += Math.abs(product);
      }
      // 14 roundings at most touch a product: its own, 2 of eight columns, 3 of their sum, 4 of 16 parts, and to spare.
      return { score, bound: 14 * 2 ** -24 * magnitude };
    };
    const extra = heavy.filter((token) => !wanted.has(token)).map(scored);
    const missing = best.filter((token) => !own.has(token)).map(scored);
    const isClose = extra.every((a) => missing.every((b) => b.score - a.score <= a.bound + b.bound));
    if (!isClose) return { exchanges, problem: `list ${list} misses a better token` };
    exchanges += extra.length;
  }
  return { exchanges, problem: "" };
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const gpu = await openGpu(), software = gpu.info.isSoftware;
    const numbers = args.integers("tokens", 2048, 2 ** 18, software ? [4096] : [32_000, 131_072]);
    const samples = args.text("samples") ? args.integer("samples", 1, 100_000) : software ? 3 : 200;
    await prepareOutput(args.text("json"));
    const about = await provenance(gpu.info);
    console.log(`Adapter: ${about.adapter}`);
    console.log(bold("        N  M x bits   R  keys   GPU µs     sd  beside R 1  exchanges"));
    const progress = new Progress(), rows: RefineRow[] = [];
    for (const tokens of numbers) {
      progress.phase(`N ${tokens.toLocaleString("en")}: draw keys`);
      const one = Float32Array.from(Float16Array.from(clustered(tokens, WIDTH, 200, 0.5, 1)));
      const keys = alike(one, WIDTH, HEADS);
      // A new query for each pass, as in decoding: the keys of one shortlist are not those of the pass before.
      const queries = gaussian(QUERIES * HEADS * WIDTH, 3), query = queries.subarray(0, HEADS * WIDTH);
      using queriesOnGpu = await gpu.upload("queries", queries);
      for (const [subvectors, bits] of software ? [[2, 6]] : [[2, 6], [8, 8]]) {
        const sizes = { sinkSize: S, windowSize: W, heavySize: K, subvectors, bits };
        const config = { heads: HEADS, headWidth: WIDTH, ...sizes, device: gpu.device };
        using base = await PqIndexer.create({ ...config, capacity: tokens, iterations: 3 });
        for (const elements of ["f16", "f32"] as const) {
          if (keys.length * elementBytes(elements) > gpu.limits.maxStorageBufferBindingSize) continue;
          const data = elements === "f32" ? keys : new Float16Array(keys);
          using held = await gpu.upload("cached keys", new Uint32Array(data.buffer as ArrayBuffer));
          if (!base.codebook) {
            progress.phase(`N ${tokens.toLocaleString("en")}: train`);
            await base.train(held.buffer, { tokens, elements });
          }
          const codebook = { ...base.codebook!, codes: await base.readCodes(), tokens };
          let without = 0;
          for (const refine of [1, 2, 4, 8, 16]) {
            progress.phase(`N ${tokens.toLocaleString("en")}, M ${subvectors}, ${bits} bits, R ${refine}, ${elements}`);
            using index = await PqIndexer.create({
              ...config,
              refine,
              refineElements: elements,
              weights: true,
              codebook,
              capacity: tokens,
            });
            const cached = refine > 1 ? { cached: { keys: held.buffer, stride: tokens } } : {};
            let checked = { exchanges: 0, problem: "" };
            if (refine > 1) {
              using plain = await PqIndexer.create({ ...config, heavySize: refine * K, codebook, capacity: tokens });
              const short = await (await plain.select(query.slice())).read();
              const got = await (await index.select(query.slice(), cached)).read();
              checked = checkRefined(query, keys, tokens, short, got);
            }
            await index.select(query.slice(), cached); // makes postings
            let turn = 0;
            const times = await timePasses(gpu, samples, () => index.reserve(1), (pass) => {
              const offset = turn++ % QUERIES * query.byteLength;
              index.record(pass, { query: { buffer: queriesOnGpu.buffer, offset, size: query.byteLength }, ...cached });
            });
            const row: RefineRow = {
              tokens,
              subvectors,
              bits,
              refine,
              elements,
              gpuUs: summarize(times),
              keyBytes: refine > 1 ? HEADS * refine * K * WIDTH * elementBytes(elements) : 0,
              exchanges: checked.exchanges,
              verified: checked.problem === "",
            };
            rows.push(row);
            if (refine === 1) without = row.gpuUs.median;
            progress.done();
            console.log(
              `${tokens.toLocaleString("en").padStart(9)} ${`${subvectors} x ${bits}`.padStart(9)} ${
                `${refine}`.padStart(3)
              }  ${elements.padStart(4)} ${row.gpuUs.median.toFixed(1).padStart(8)} ${
                row.gpuUs.sd.toFixed(1).padStart(6)
              } ${(refine > 1 ? `+${(row.gpuUs.median - without).toFixed(1)}` : "").padStart(11)} ${
                `${row.exchanges}`.padStart(10)
              }  ${verdict(row.verified ? "✓" : `✗ WRONG: ${checked.problem}`, row.verified)}`,
            );
          }
        }
      }
    }
    const json = args.text("json");
    if (json) await writeReport(json, { rows, provenance: about });
    return rows.every(({ verified }) => verified) ? 0 : 1;
  });
}
