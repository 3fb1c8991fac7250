/**
 * Checks every pipeline against files in the golden format: `deno task verify FILE…`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { GpuUnavailableError } from "../kernels/gpu/errors.ts";

import {
  boundedScores,
  type Check,
  checkCodes,
  checkSelection,
  joinChecks,
  judgeExchanges,
} from "../indexer/checks.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";
import { PqIndexer } from "../indexer/pq_indexer.ts";
import { referenceScores, referenceTable } from "../indexer/reference.ts";
import { listOf, type SelectionData } from "../indexer/selection.ts";
import { type Command, dim, openGpu, prepareOutput, runCommand, verdict, wrap } from "./cli.ts";
import { writeReport } from "./json_rows.ts";
import { BUNDLED_GOLDEN, type GoldenCase, loadGolden } from "./inputs/golden.ts";

const COMMAND: Command = {
  name: "verify",
  summary: "Checks every pipeline against golden files: codes, lists (tie-aware) and weights.",
  flags: { json: { value: "FILE", help: "write the results as JSON" } },
  positional: "[FILE…]   (default: the bundled cases of the PyTorch original)",
};

/** Outcome of one case in one pipeline. */
export interface Verification {
  readonly case: string;
  readonly pipeline: string;
  readonly passed: boolean;
  /** What was compared, or what was wrong. */
  readonly detail: string;
}

const fail = (message: string): Check => ({ checked: 1, heavy: 0, exchanges: 0, errors: 1, firstError: message });

/** Runs a case through a pipeline: the file's codebook and codes, its new keys, its query. */
export async function verifyCase(golden: GoldenCase, pipeline: string): Promise<Verification> {
  using index = await PqIndexer.create({
    pipeline,
    batch: golden.batch,
    heads: golden.heads,
    kvHeads: golden.kvHeads,
    headWidth: golden.headWidth,
    subvectors: golden.subvectors,
    bits: golden.bits,
    metric: golden.metric,
    sinkSize: golden.sinkSize,
    windowSize: golden.windowSize,
    heavySize: golden.heavySize,
    initOffset: golden.initOffset,
    weights: true,
    codebook: {
      centroids: golden.centroids,
      phi: golden.phi,
      codes: golden.codesBefore,
      codesLayout: "bnhm",
      tokens: golden.tokens - golden.newKeyCount,
    },
  });
  const selection = await index.step(golden.query, golden.newKeys);
  const data = await selection.read();
  const codes = await index.readCodes();
  const own = judgeExchanges([checkSelection({
    config: index.config,
    initOffset: golden.initOffset,
    codebook: index.codebook,
    codes,
    nTokens: golden.tokens,
    query: golden.query,
    weights: true,
    halfTables: index.pipeline.halfTables,
  }, data)]);
  const checks = [checkGoldenCodes(golden, index, codes), own, checkGoldenLists(golden, index, codes, data)];
  const joined = joinChecks(checks);
  const passed = joined.errors === 0;
  const exchanged = joined.exchanges > 0 ? `, ${joined.exchanges} within rounding` : "";
  return {
    case: golden.name,
    pipeline,
    passed,
    detail: passed
      ? `${data.lengths.length} lists of ${golden.listLength}, ${checks[0].checked} codes${exchanged}`
      : joined.firstError,
  };
}

/** The codes before the step are untouched; new ones are right, and so are the file's where it has them. */
function checkGoldenCodes(golden: GoldenCase, index: PqIndexer, codes: Uint8Array): Check {
  const { batch, kvHeads, subvectors, newKeyCount } = golden;
  const perToken = kvHeads * subvectors;
  const n = index.codedTokens;
  const nBefore = golden.codesBefore.length / (batch * perToken);
  const nAfter = golden.codesAfter.length / (batch * perToken);
  const ours = (b: number, i: number, row: number) => codes[(b * perToken + row) * n + i];
  const theirs = (file: Int32Array, count: number, b: number, i: number, row: number) =>
    file[(b * count + i) * perToken + row];
  if (n !== golden.tokens - golden.initOffset) return fail(`${n} codes for ${golden.tokens} tokens`);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < nBefore; i++) {
      for (let row = 0; row < perToken; row++) {
        if (ours(b, i, row) !== theirs(golden.codesBefore, nBefore, b, i, row)) {
          return fail(`the step changed the code of token ${golden.initOffset + i}`);
        }
      }
    }
  }
  // Keys before initOffset have no code: a prompt that arrives in the step may begin there.
  const coded = Math.min(newKeyCount, n), first = newKeyCount - coded;
  const slice = (get: (b: number, i: number, row: number) => number) => {
    const out = new Uint8Array(batch * perToken * coded);
    for (let b = 0; b < batch; b++) {
      for (let row = 0; row < perToken; row++) {
        for (let k = 0; k < coded; k++) {
          out[(b * perToken + row) * coded + k] = get(b, n - coded + k, row);
        }
      }
    }
    return out;
  };
  const { shape } = index.config;
  const checks = [checkCodes(shape, index.codebook!, golden.newKeys, slice(ours), first)];
  if (nAfter === n) {
    // Both are within the bound of the minimum, so they may differ from each other.
    const file = slice((b, i, row) => theirs(golden.codesAfter, nAfter, b, i, row));
    const check = checkCodes(shape, index.codebook!, golden.newKeys, file, first);
    checks.push({ ...check, firstError: check.firstError && `in the file, ${check.firstError}` });
  }
  return joinChecks(checks);
}

/**
 * Lists against the file's, tie-aware: sink and window tokens are the same, and the heavy tokens'
 * scores, sorted, agree within rounding. The file's scores and weights are checked along.
 */
function checkGoldenLists(golden: GoldenCase, index: PqIndexer, codes: Uint8Array, data: SelectionData): Check {
  const { shape } = index.config;
  const { heads, batch, tokens, sinkSize, windowSize, initOffset, listLength } = golden;
  const n = index.codedTokens;
  const lut = referenceTable(shape, index.codebook!, golden.query);
  const scores = referenceScores(shape, lut, codes, batch * heads);
  const nFile = golden.scores.length / (batch * heads);
  const codesAgree = nFile === n && golden.codesAfter.every((code, at) => {
    const perToken = golden.kvHeads * golden.subvectors;
    const b = Math.floor(at / (perToken * n)), i = Math.floor(at / perToken) % n;
    return codes[(b * perToken + at % perToken) * n + i] === code;
  });
  const { config, tokens: nTokens } = index;
  const about = { config, codes, query: golden.query, nTokens, initOffset: index.initOffset! };
  const theirBounds = boundedScores(about, index.codebook!, scores);
  const ourBounds = boundedScores({ ...about, halfTables: index.pipeline.halfTables }, index.codebook!, scores);

  for (let list = 0; list < batch * heads; list++) {
    if (codesAgree) {
      for (let i = 0; i < n; i++) {
        const theirs = golden.scores[list * nFile + i];
        if (!(Math.abs(theirs - scores[list * n + i]) <= theirBounds.bound(list, i))) {
          return fail(`list ${list}: the file's score of coded token ${i} is ${theirs}, ours ${scores[list * n + i]}`);
        }
      }
    }
    const ours = [...listOf(data, list)];
    const theirs = [...golden.list.subarray(list * listLength, (list + 1) * listLength)];
    if (ours.length !== theirs.length) {
      return fail(`list ${list} has ${ours.length} tokens, the file's has ${theirs.length}`);
    }
    const wrongWeight = golden.weights.subarray(list * tokens, (list + 1) * tokens)
      .findIndex((weight, token) => weight !== (theirs.includes(token) ? 1 : 0));
    if (wrongWeight >= 0) return fail(`list ${list}: the file's weight of token ${wrongWeight} does not fit its list`);

    // On the short path the fixed part is everything.
    const isHeavy = (token: number) =>
      listLength < tokens && token >= Math.max(initOffset, sinkSize) && token < tokens - windowSize;
    const fixed = (of: number[]) => of.filter((token) => !isHeavy(token)).sort((a, b) => a - b).join(" ");
    if (fixed(ours) !== fixed(theirs)) {
      return fail(`list ${list}: sink and window are ${fixed(ours)}, the file's ${fixed(theirs)}`);
    }
    const heavy = (of: number[]) => of.filter(isHeavy).map((token) => token - initOffset);
    const sorted = (of: number[]) => heavy(of).map((i) => scores[list * n + i]).sort((a, b) => b - a);
    const ourScores = sorted(ours), theirScores = sorted(theirs);
    const slack = 2 * Math.max(0, ...heavy([...ours, ...theirs]).map((i) => ourBounds.bound(list, i)));
    const wrong = ourScores.findIndex((score, rank) => !(Math.abs(score - theirScores[rank]) <= slack));
    if (wrong >= 0) {
      return fail(`list ${list}: score of rank ${wrong} is ${ourScores[wrong]}, the file's is ${theirScores[wrong]}`);
    }
  }
  return { checked: batch * heads, heavy: 0, exchanges: 0, errors: 0, firstError: "" };
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const files = args.positional.length > 0 ? args.positional : [fileURLToPath(BUNDLED_GOLDEN)];
    await prepareOutput(args.text("json"));
    const hasGpu = await openGpu().then(() => true, (error) => {
      if (!(error instanceof GpuUnavailableError)) throw error;
      console.log(`No GPU: verifying the CPU pipelines only.\n${wrap(error.message, 100)}`);
      return false;
    });
    const pipelines = PIPELINES.filter((pipeline) => hasGpu || pipeline.runsOn === "cpu");
    const results: (Verification & { file: string })[] = [];
    for (const file of files) {
      const cases = await loadGolden(file);
      const width = Math.max(...cases.map(({ name }) => name.length));
      for (const golden of cases) {
        for (const { id } of pipelines) {
          const result = await verifyCase(golden, id).catch((error): Verification => ({
            case: golden.name,
            pipeline: id,
            passed: false,
            detail: error.message,
          }));
          results.push({ ...result, file });
          const mark = result.passed ? "passed" : "FAILED";
          console.log(`${golden.name.padEnd(width)}  ${id}  ${verdict(mark, result.passed)}  ${dim(result.detail)}`);
        }
      }
    }
    const passed = results.filter((result) => result.passed).length;
    const json = args.text("json");
    if (json) await writeReport(json, { rows: results });
    console.log(`${passed} passed, ${results.length - passed} failed`);
    return passed === results.length ? 0 : 1;
  });
}
