/**
 * The ordered list of iterations: the only one. Benches, tests, the walkthrough and the
 * documentation read it.
 *
 * @module
 */

import { cpu } from "./cpu/mod.ts";
import { e00 } from "./e00_reference.ts";
import { e01 } from "./e01_baseline.ts";
import { e02 } from "./e02_fused_score.ts";
import { e03 } from "./e03_lookup.ts";
import { e04 } from "./e04_fused_topk.ts";
import { e05 } from "./e05_fused_list.ts";
import { e06 } from "./e06_fused_step.ts";
import { e07 } from "./e07_tuned.ts";
import { e07h } from "./e07h_half_tables.ts";
import { e08 } from "./e08_cells.ts";
import type { Pipeline } from "./pipeline.ts";

/** Every iteration, in the order in which the story tells them. */
export const PIPELINES: readonly Pipeline[] = [e00, cpu, e01, e02, e03, e04, e05, e06, e07, e07h, e08];

/** Whether a pipeline is one of those that agree to the byte on one device: on the GPU, with f32 tables. */
export function agreesToTheByte({ runsOn, halfTables }: Pipeline): boolean {
  return runsOn === "gpu" && !halfTables;
}

/** The pipeline that an index uses if none is named and there is no GPU. */
export const CPU_PIPELINE: Pipeline = cpu;

/** The pipeline that an index uses if none is named: the last one on the GPU with f32 tables. */
export const DEFAULT_PIPELINE: Pipeline = PIPELINES.findLast(agreesToTheByte)!;

/**
 * Finds a pipeline.
 *
 * @throws {RangeError} for an unknown id; names the known ones
 */
export function pipelineById(id: string): Pipeline {
  const found = PIPELINES.find((pipeline) => pipeline.id === id);
  if (!found) {
    throw new RangeError(
      `Cannot find a pipeline as its id must be one of ${PIPELINES.map((p) => p.id).join(", ")}: id is ${
        JSON.stringify(id)
      }`,
    );
  }
  return found;
}
