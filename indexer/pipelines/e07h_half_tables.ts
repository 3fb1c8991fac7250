/**
 * e07h f16 tables: entries of the lookup table are kept as f16. From e07; opt-in.
 *
 * Why it should help: at 6 bits a subvector's 64 entries are 32 words of workgroup memory, one in each bank, so lookups no
 * longer wait for each other; at 8 bits and many subvectors the table takes half the memory, which leaves room for
 * more workgroups. Entries are still computed, and their sums added, in f32.
 *
 * What it costs: an entry is off by 2⁻¹⁰ of itself at most (`halfBound`), so lists may exchange tokens whose scores are
 * nearly equal. A power of two per list keeps entries within what f16 holds, so none saturates. It agrees with the others'
 * codes to the byte, not with their lists.
 *
 * Measured on an NVIDIA H200 (GPU pass): as e07 at 4,096 tokens (17.7 and 17.5 µs), K 64 (18.2 and 18.2) and 128 heads
 * (27.3 and 27.2); 3 µs slower at the seed configuration (21.1 and 18.3) and 8 heads (20.3 and 17.5), where rounding makes
 * ties and the last bin of some list then holds too many to compare them. No clear gain: lookups were not what scoring waits for. On llvmpipe 18 ms after 26 in the same run.
 *
 * Where a device has no f16, or tiles do not fit, the plan keeps e07's kernels.
 *
 * @module
 */

import type { GpuPipelineDef } from "./gpu_layer.ts";
import { defaultKernels, E07, tunablePipeline } from "./e07_tuned.ts";
import type { Pipeline, PlanContext } from "./pipeline.ts";

const entriesOf = ({ device }: PlanContext) => device.features.has("shader-f16") ? "f16" : "f32";

/** The iteration as data, to derive others from. */
export const E07H: GpuPipelineDef = {
  ...E07,
  id: "e07h",
  title: "f16 tables",
  change: "table entries as f16 where the device has it: opt-in, with a bound of its own",
  halfTables: true,
  kernelsFor: (context) => defaultKernels(context, entriesOf(context)),
};

/** The tuned step with f16 tables. */
export const e07h: Pipeline = tunablePipeline(E07H, entriesOf);
