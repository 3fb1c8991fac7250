import { assert, assertEquals, assertThrows } from "@std/assert";
import { capacityFor, resolveConfig, resolveRow, resolveRows, sizeAt } from "../../indexer/config.ts";
import { Random, trainCodebook } from "../../indexer/kmeans.ts";
import {
  compareScores,
  referenceCodes,
  referenceList,
  referenceSelect,
  squaredDistance,
  subvector,
} from "../../indexer/reference.ts";
import { clustered, gaussian, tied } from "../../experiments/inputs/synthetic.ts";
import { uniform } from "../support.ts";

const BASE = { heads: 2, headWidth: 4, subvectors: 2, bits: 1, sinkSize: 2, windowSize: 3, heavySize: 2 };

Deno.test("resolveConfig refuses every value out of range, and says what is allowed", () => {
  const refused = (change: object, message: string) =>
    // deno-lint-ignore no-explicit-any
    assertThrows(() => resolveConfig({ ...BASE, ...change } as any), RangeError, message);
  refused(
    { subvectors: 3 },
    "Cannot create an index as D must be divisible by M: headWidth (D) is 4, subvectors (M) is 3",
  );
  refused({ subvectors: 5 }, "subvectors must be an integer 1 to 4: subvectors is 5");
  for (const bits of [0, 9, 2.5, NaN, "6"]) {
    refused({ bits }, `bits must be an integer 1 to 8: bits is ${JSON.stringify(bits)?.replace("null", "NaN")}`);
  }
  refused({ heads: 0 }, "heads must be an integer");
  refused({ heads: 6, kvHeads: 4 }, "heads must be divisible by kvHeads: heads is 6, kvHeads is 4");
  refused({ kvHeads: 3 }, "kvHeads must be an integer 1 to 2");
  refused({ headWidth: 0 }, "headWidth");
  refused({ batch: -1 }, "batch");
  refused({ metric: "cosine" }, `metric must be "euclidean" or "ip": metric is "cosine"`);
  refused({ pooling: "median" as "groupMax" }, "pooling must be");
  refused({ heavySize: -1 }, "heavySize must be an integer 0 to");
  refused({ heavySize: 1.5 }, "heavySize is 1.5");
  refused({ windowSize: { ratio: 1.1 } }, "windowSize.ratio must be a number 0 to 1: windowSize.ratio is 1.1");
  refused({ sinkSize: { ratio: NaN } }, "sinkSize.ratio is NaN");
  refused({ initOffset: -1 }, "initOffset");
});

Deno.test("the default config is the seed config", () => {
  const { shape, sinkSize, windowSize, heavySize, initOffset } = resolveConfig({ heads: 32, headWidth: 128 });
  assertEquals(shape, {
    batch: 1,
    heads: 32,
    kvHeads: 32,
    headWidth: 128,
    subvectors: 2,
    centroids: 64,
    augmented: false,
  });
  assertEquals([sinkSize, windowSize, heavySize, initOffset], [128, 128, 128, undefined]);
});

Deno.test("sizeAt floors ratios in f64", () => {
  assertEquals(sizeAt({ ratio: 0.1 }, 1009), 100);
  assertEquals(sizeAt({ ratio: 0.29 }, 100), 28); // 0.29 * 100 is 28.999999999999996
  assertEquals(sizeAt({ ratio: 1 }, 7), 7);
  assertEquals(sizeAt(5, 7), 5);
});

/** A direct transcription of the rules for one row, on scores that fall with the token. */
function expectedList(N: number, S: number, W: number, K: number, init: number, C: number, rows: number): number[] {
  const list = [];
  if (N <= K + init + rows + C || S + K + W >= N) {
    for (let i = 0; i < N; i++) list.push(i);
    return list;
  }
  let heavy = 0;
  for (let i = 0; i < N; i++) {
    const isCandidate = i >= Math.max(init, S) && i < N - W;
    if (i < S || i >= N - W || (isCandidate && heavy++ < K)) list.push(i);
  }
  return list;
}

Deno.test("resolveRow and referenceList agree with the rules for every overlap of sizes", () => {
  let cases = 0;
  for (const S of [0, 1, 5]) {
    for (const W of [0, 2, 9]) {
      for (const K of [0, 1, 4, 30]) {
        for (const initOffset of [0, 1, 5, 12]) {
          const config = resolveConfig({ ...BASE, sinkSize: S, windowSize: W, heavySize: K, initOffset });
          for (let N = 0; N < 60; N++) {
            for (const rows of [1, 3]) {
              const scores = Float64Array.from({ length: Math.max(0, N - initOffset) }, (_, i) => -i);
              const expected = expectedList(N, S, W, K, initOffset, 2, rows);
              assertEquals(referenceList(config, initOffset, scores, N, rows), expected);
              const row = resolveRow(config, initOffset, N, rows);
              assertEquals(row.listLength, expected.length);
              const heavy = Array.from({ length: row.nHeavy }, (_, j) => initOffset + row.candBegin + j);
              const range = (from: number, to: number) => Array.from({ length: to - from }, (_, j) => from + j);
              assertEquals([...range(0, row.nSink), ...heavy, ...range(row.windowBegin, N)], expected);
              assert(row.candEnd - row.candBegin >= row.nHeavy);
              assert(capacityFor(config, 60, rows).list >= expected.length, "there is room for the list");
              cases++;
            }
          }
        }
      }
    }
  }
  assertEquals(cases, 3 * 3 * 4 * 4 * 60 * 2);
});

Deno.test("seed config at N 322 to 383, where the original listed tokens twice", () => {
  const config = resolveConfig({ heads: 1, headWidth: 128 });
  for (let N = 320; N < 390; N++) {
    const scores = Float64Array.from({ length: N - 128 }, (_, i) => Math.sin(i));
    const list = referenceList(config, 128, scores, N, 1);
    assertEquals(new Set(list).size, list.length);
    assertEquals(list, [...list].sort((a, b) => a - b));
  }
});

Deno.test("resolveRows: rows are causal, and there are at most as many as tokens", () => {
  const config = resolveConfig({ ...BASE, windowSize: { ratio: 0.1 } });
  const rows = resolveRows(config, 2, 100, 3);
  assertEquals(rows.map((row) => row.nTokens), [98, 99, 100]);
  assertEquals(rows.map((row) => row.nTokens - row.windowBegin), [9, 9, 10]);
  assertEquals(resolveRows(config, 2, 0, 1)[0].listLength, 0);
  assertEquals(resolveRows(config, 2, 2, 2).map((row) => row.nTokens), [1, 2]);
  assertThrows(() => resolveRows(config, 2, 1, 2), RangeError, "rows is 2, tokens is 1");
  assertThrows(() => resolveRows(config, 2, 0, 2), RangeError, "rows is 2, tokens is 0");
  assertThrows(() => resolveRows(config, 2, 100, 0), RangeError, "rows must be an integer 1 to 64: rows is 0");
  assertThrows(() => resolveRows(config, 2, 100, 65), RangeError, "rows is 65");
});

Deno.test("compareScores: NaN last, -0 ties with +0, infinities tie with themselves", () => {
  const order = [Infinity, 1, 0, -1, -Infinity, NaN];
  for (let a = 0; a < order.length; a++) {
    for (let b = 0; b < order.length; b++) {
      assertEquals(Math.sign(compareScores(order[a], order[b])), Math.sign(a - b), `${order[a]} and ${order[b]}`);
    }
  }
  assertEquals(compareScores(-0, 0), 0);
});

Deno.test("referenceSelect by hand: scores, ties to the lower token, GQA", () => {
  const config = resolveConfig({
    heads: 2,
    kvHeads: 1,
    headWidth: 2,
    subvectors: 2,
    bits: 1,
    sinkSize: 1,
    windowSize: 1,
    heavySize: 2,
    initOffset: 1,
  });
  // Centroids 1 and 3 for column 0, 10 and 20 for column 1; tokens 1 … 8 have these codes.
  const codebook = { centroids: new Float32Array([1, 3, 10, 20]) };
  const codes = new Uint8Array([0, 1, 1, 0, 1, 1, 0, 1, /* column 1 */ 0, 0, 1, 1, 1, 1, 0, 1]);
  const { lists, scores } = referenceSelect(config, codebook, codes, 9, new Float32Array([1, 1, 1, -1]));
  assertEquals([...scores], [11, 13, 23, 21, 23, 23, 11, 23, -9, -7, -17, -19, -17, -17, -9, -17]);
  // Head 0: tokens 3, 5, 6 tie at 23; head 1: token 2 has -7, tokens 1 and 7 tie at -9.
  assertEquals(lists, [[0, 3, 5, 8], [0, 1, 2, 8]]);
});

Deno.test("referenceCodes: nearest, lowest on a tie, NaN never wins, ip by the augmented vector", () => {
  const shape = resolveConfig({ heads: 1, headWidth: 1, subvectors: 1, bits: 2 }).shape;
  const codebook = { centroids: new Float32Array([NaN, 1, 1, -1]) };
  const keys = new Float32Array([0.9, 0, -2, NaN, Infinity]);
  assertEquals([...referenceCodes(shape, codebook, keys)], [1, 1, 3, 0, 1]);
  const ip = { ...shape, augmented: true };
  // phi 4: key 1 becomes (1, √3), key 2 becomes (2, 0), key 3 is longer than phi: (3, 0).
  const augmented = { centroids: new Float32Array([1, 0, 1, 2, 2, 0, 9, 9]), phi: new Float32Array([4]) };
  assertEquals([...referenceCodes(ip, augmented, new Float32Array([1, 2, 3]))], [1, 2, 2]);
});

Deno.test("Random is PCG32: the same numbers for the same seed, uniform", () => {
  const a = new Random(7), b = new Random(7), c = new Random(8);
  const first = Array.from({ length: 5 }, () => a.u32());
  assertEquals(Array.from({ length: 5 }, () => b.u32()), first);
  assert(Array.from({ length: 5 }, () => c.u32()).join() !== first.join());
  let sum = 0;
  const counts = new Uint32Array(8);
  for (let i = 0; i < 8000; i++) {
    sum += a.uniform();
    counts[a.below(8)]++;
  }
  assert(Math.abs(sum / 8000 - 0.5) < 0.02, "mean of uniform");
  assert(counts.every((count) => Math.abs(count - 1000) < 150), counts.join());
});

Deno.test("trainCodebook finds clusters, reproducibly, and returns the codes of its centroids", () => {
  const shape = resolveConfig({ heads: 2, headWidth: 8, subvectors: 2, bits: 3 }).shape;
  const keys = clustered(2 * 500, 8, 8, 0.01, 3);
  const trained = trainCodebook(shape, keys, { seed: 5, iterations: 20, initOffset: 10 });
  assertEquals(trained, trainCodebook(shape, keys, { seed: 5, iterations: 20, initOffset: 10 }));
  assertEquals(trained.codes, referenceCodes(shape, trained, keys, 10));
  let distortion = 0;
  for (let i = 10; i < 500; i++) {
    const x = subvector(shape, trained, keys, i, 0, 0);
    distortion += squaredDistance(shape, trained, x, 0, trained.codes[i - 10]);
  }
  // Noise of 0.01 in 4 columns: 4e-4 if every cluster is found; a merged pair would cost about 1.
  assert(distortion / 490 < 2e-3, `mean squared distance ${distortion / 490}`);
});

Deno.test("trainCodebook: ip keeps phi and one more column", () => {
  const shape = resolveConfig({ heads: 1, headWidth: 4, subvectors: 2, bits: 2, metric: "ip" }).shape;
  const keys = gaussian(200 * 4, 1);
  const { centroids, phi } = trainCodebook(shape, keys);
  assertEquals(centroids.length, 2 * 4 * 3);
  const norms = Array.from({ length: 200 }, (_, i) => keys[i * 4] ** 2 + keys[i * 4 + 1] ** 2);
  assertEquals(phi![0], Math.fround(Math.max(...norms)));
});

Deno.test("trainCodebook: fewer keys than centroids, constant keys, more keys than are looked at", () => {
  const shape = resolveConfig({ heads: 1, headWidth: 2, subvectors: 1, bits: 3 }).shape;
  assertThrows(
    () => trainCodebook(shape, new Float32Array(2 * 10), { initOffset: 3 }),
    RangeError,
    "at least C keys from initOffset on: C is 8, keys are 7 (10 tokens, initOffset 3)",
  );
  const constant = trainCodebook(shape, new Float32Array(2 * 20).fill(3));
  assert(constant.centroids.every((value) => value === 3));
  assert(constant.codes.every((code) => code === 0), "ties go to the lowest centroid");
  const sampled = trainCodebook(shape, uniform(2 * 1000, 1), { maxKeysPerCentroid: 4 });
  assertEquals(sampled.codes.length, 1000);
  assertEquals(new Set(sampled.codes).size, 8);
});

Deno.test("trainCodebook leaves out what is not finite, and refuses what it cannot use", () => {
  const shape = resolveConfig({ heads: 1, headWidth: 2, subvectors: 2, bits: 2 }).shape;
  const keys = uniform(2 * 50, 1);
  keys[20] = NaN; // subvector 0 of token 10
  keys[31] = -Infinity; // subvector 1 of token 15
  const { centroids, codes } = trainCodebook(shape, keys);
  assert(centroids.every(Number.isFinite));
  assertEquals(codes[10], 0, "all distances are NaN");
  const few = keys.map((value, at) => at % 2 === 0 || at < 4 ? value : NaN);
  assertThrows(() => trainCodebook(shape, few), RangeError, "C is 4, KV head 0, subvector 1 has 2");
  const large = uniform(2 * 50, 1).map((value) => value * 3e38);
  assertThrows(() => trainCodebook({ ...shape, augmented: true }, large), RangeError, "must be finite in f32");
  assert(trainCodebook(shape, large).centroids.every(Number.isFinite));
});

Deno.test("trainCodebook re-seeds empty clusters", () => {
  // Two tight clumps and one far point: eight centroids cannot all start apart, yet all end in use.
  const shape = resolveConfig({ heads: 1, headWidth: 1, subvectors: 1, bits: 3 }).shape;
  const keys = Float32Array.from({ length: 64 }, (_, i) => (i % 2) * 100 + (i >> 3) * 0.001);
  const { codes } = trainCodebook(shape, keys, { iterations: 30 });
  assertEquals(new Set(codes).size, 8);
});

Deno.test("synthetic data: seeded, with the spread it promises", () => {
  const values = gaussian(20001, 3);
  assertEquals(values, gaussian(20001, 3));
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + value * value, 0) / values.length - mean ** 2;
  assert(Math.abs(mean) < 0.03 && Math.abs(variance - 1) < 0.05, `${mean}, ${variance}`);
  const integers = tied(1000, 2, 1);
  assertEquals([...new Set(integers)].sort((a, b) => a - b), [-2, -1, 0, 1, 2]);
});
