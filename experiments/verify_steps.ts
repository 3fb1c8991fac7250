/**
 * What is timed is verified first: steps on a drawn state against the oracle, or against bytes that were.
 *
 * @module
 */

import type { Gpu } from "../kernels/gpu/device.ts";
import { checkSelection, judgeExchanges } from "../indexer/checks.ts";
import { agreesToTheByte } from "../indexer/pipelines/mod.ts";
import type { Pipeline } from "../indexer/pipelines/pipeline.ts";
import { listOf } from "../indexer/selection.ts";
import { gaussian } from "./inputs/synthetic.ts";
import { openIndex, type Workload, type WorkloadState } from "./inputs/workload.ts";

/**
 * Two steps, of which the second clears the weights of the first: the second against the oracle or, from the second
 * GPU pipeline on, codes, lists and weights against the bytes of the first.
 *
 * @param first what an earlier call returned as `bytes`
 * @returns what is wrong, "" if nothing is, and a digest of codes, lists and weights
 */
export async function verifySteps(
  pipeline: Pipeline,
  workload: Workload,
  state: WorkloadState,
  gpu: Gpu | undefined,
  first: string | undefined,
): Promise<{ problem: string; bytes: string }> {
  using index = await openIndex(workload, state, pipeline, gpu?.device, 8);
  const { batch, heads, kvHeads, headWidth } = workload;
  const query = gaussian(batch * heads * headWidth, 5), newKeys = gaussian(batch * kvHeads * headWidth, 6);
  await index.step(gaussian(query.length, 4), newKeys);
  const data = await (await index.step(query, newKeys)).read();
  const codes = await index.readCodes();
  const bytes = await digest([
    codes,
    data.lengths,
    ...Array.from(data.lengths, (_, list) => listOf(data, list)),
    ...(data.weights ? [data.weights] : []),
  ]);
  if (agreesToTheByte(pipeline) && first !== undefined) {
    return { problem: bytes === first ? "" : "other bytes than the first GPU pipeline", bytes };
  }
  const listed = checkSelection({
    config: index.config,
    initOffset: index.initOffset!,
    codebook: index.codebook,
    codes,
    nTokens: index.tokens,
    query,
    weights: workload.weights,
    halfTables: pipeline.halfTables,
  }, data);
  const { errors, firstError } = judgeExchanges([listed]);
  return { problem: errors > 0 ? firstError : "", bytes };
}

/** SHA-256 of all parts, each hashed by itself first, in hex. */
export async function digest(parts: readonly (Uint8Array | Uint32Array | Float32Array)[]): Promise<string> {
  const each = parts.map(async (part) => {
    const { buffer, byteOffset, byteLength } = part;
    return new Uint8Array(
      await crypto.subtle.digest("SHA-256", new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength)),
    );
  });
  const all = new Uint8Array(32 * parts.length);
  for (const [ix, hash] of (await Promise.all(each)).entries()) all.set(hash, 32 * ix);
  return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", all)), (b) => b.toString(16).padStart(2, "0"))
    .join("");
}
