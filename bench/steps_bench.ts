/**
 * Wall time of a step by `deno bench`: from the call until the GPU is idle, the host's work included. A readable
 * cross-check of `bench/bench.ts`, which has the distributions and the GPU's own time.
 *
 * @module
 */

import { Gpu } from "../kernels/gpu/device.ts";
import { GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { PIPELINES } from "../indexer/pipelines/mod.ts";
import { gaussian } from "../experiments/inputs/synthetic.ts";
import { drawState, openIndex, SEED_WORKLOAD } from "../experiments/inputs/workload.ts";

const gpu = await Gpu.shared().catch((error) => {
  if (error instanceof GpuUnavailableError) return undefined;
  throw error;
});
const software = gpu?.info.isSoftware ?? true;

for (const tokens of software ? [4096] : [32_000, 131_072]) {
  const workload = { ...SEED_WORKLOAD, tokens };
  const state = drawState(workload, 1);
  const query = gaussian(workload.heads * workload.headWidth, 2);
  for (const pipeline of PIPELINES.filter(({ id, runsOn }) => id !== "e00" && (runsOn === "cpu" || gpu))) {
    const open = () => openIndex(workload, state, pipeline, gpu?.device, 16);
    let index: Awaited<ReturnType<typeof open>> | undefined;
    Deno.bench({
      name: `${pipeline.id} ${pipeline.title}`,
      group: `select, ${workload.heads} heads, ${tokens.toLocaleString("en")} tokens`,
      baseline: pipeline.id === "e01",
      n: software ? 5 : 200,
      warmup: software ? 1 : 50,
      fn: async () => {
        index ??= await open();
        await index.select(query);
        if (pipeline.runsOn === "gpu") await gpu!.fence();
      },
    });
  }
}
