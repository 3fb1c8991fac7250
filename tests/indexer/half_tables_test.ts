import { assertEquals } from "@std/assert";
import { checkSelection } from "../../indexer/checks.ts";
import { e07h } from "../../indexer/pipelines/e07h_half_tables.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import { listOf } from "../../indexer/selection.ts";
import { gpuTest, uniform } from "../support.ts";

/** The heavy token of an index of one column, whose token i is coded as centroid i mod C, and the query is 1. */
async function heavyOf(values: readonly number[], tokens: number): Promise<number[]> {
  const codes = Uint8Array.from({ length: tokens }, (_, token) => token % values.length);
  using index = await PqIndexer.create({
    heads: 1,
    headWidth: 1,
    subvectors: 1,
    bits: Math.log2(values.length),
    sinkSize: 0,
    windowSize: 1,
    heavySize: 1,
    initOffset: 0,
    pipeline: e07h,
    codebook: { centroids: Float32Array.from(values), codes, tokens },
  });
  const data = await (await index.step(new Float32Array([1]), new Float32Array([values[0]]))).read();
  return [...listOf(data, 0)].slice(0, -1).map((token) => token % values.length);
}

gpuTest("e07h: no table entry saturates, whatever its size, and small ones do not vanish", async () => {
  assertEquals(await heavyOf([66_000, 70_000, 80_000, 131_072], 40), [3]);
  assertEquals(await heavyOf([1e30, 2e30, 3e38, 2.5e38], 40), [2]);
  assertEquals(await heavyOf([1e-9, 3e-9, 2e-9, -4e-9], 40), [1]);
  assertEquals(await heavyOf([1e-30, 3e-30, 4e-30, -4e-30], 40), [2]);
  assertEquals(await heavyOf([0, 0, 0, 0], 40), [0]);
  assertEquals(await heavyOf([-1, 1, 2 ** 127, 3e38], 40), [3]);
});

gpuTest("e07h: lists of one workgroup have scales of their own", async () => {
  const [heads, width, tokens] = [4, 8, 600];
  const codebook = { centroids: uniform(2 * 16 * 4, 1), tokens: 0 };
  using index = await PqIndexer.create({
    heads,
    kvHeads: 1,
    headWidth: width,
    subvectors: 2,
    bits: 4,
    sinkSize: 2,
    windowSize: 3,
    heavySize: 40,
    initOffset: 2,
    pipeline: e07h.tuned!({ lists: 4 }),
    codebook,
  });
  await index.append(uniform(tokens * width, 2));
  // Heads whose scores lie 2^60 apart, the large ones first and last.
  const query = uniform(heads * width, 3).map((value, at) =>
    value * [2 ** 40, 1, 2 ** -20, 2 ** 40][Math.floor(at / width)]
  );
  const data = await (await index.step(query, uniform(width, 4))).read();
  const check = checkSelection({
    config: index.config,
    initOffset: 2,
    codebook: index.codebook,
    codes: await index.readCodes(),
    nTokens: index.tokens,
    query,
    weights: false,
    halfTables: true,
  }, data);
  assertEquals([check.errors, check.firstError], [0, ""]);
});
