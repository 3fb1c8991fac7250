/**
 * What a process with two threads holds, in MiB, while indexes come and go: run by `cpu_test.ts`. Prints JSON.
 *
 * @module
 */

import { cpuPipeline } from "../../indexer/pipelines/cpu/mod.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import { gaussian } from "../../experiments/inputs/synthetic.ts";

const keys = gaussian(8 * 600 * 64, 1), pipeline = cpuPipeline({ threads: 2 });

/** An index of 8 heads with room for many tokens that has selected once. */
async function open(): Promise<PqIndexer> {
  const index = await PqIndexer.create({
    heads: 8,
    headWidth: 64,
    pipeline,
    sinkSize: 4,
    windowSize: 32,
    heavySize: 64,
    capacity: 32_768,
    weights: true,
    codebook: { centroids: keys.slice(0, 8 * 64 * 64), tokens: 0 },
  });
  await index.append(keys);
  await (await index.select(keys.subarray(0, 8 * 64))).read();
  return index;
}

const held = () => Math.round(Deno.memoryUsage().rss / 2 ** 20);
const cycles: number[] = [], requests: number[] = [];
for (let cycle = 1; cycle <= 200; cycle++) {
  (await open()).destroy();
  if (cycle === 60 || cycle === 200) cycles.push(held());
}
for (let request = 0; request < 6; request++) {
  const layers = await Promise.all(Array.from({ length: 32 }, open));
  for (const index of layers) index.destroy();
  await new Promise((resolve) => setTimeout(resolve, 10));
  requests.push(held());
}
console.log(JSON.stringify({ cycles, requests }));
