import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { foldWorkgroups } from "../../kernels/gpu/dispatch.ts";
import { assign } from "../../kernels/quantize/assign.ts";
import { assignMany } from "../../kernels/quantize/assign_many.ts";
import { assignPacked } from "../../kernels/quantize/assign_packed.ts";
import { packedCodes, wordCodes } from "../../kernels/quantize/codes.ts";
import { concat } from "../../kernels/list/concat.ts";
import { offset } from "../../kernels/list/offset.ts";
import { scatter } from "../../kernels/list/scatter.ts";
import { sort } from "../../kernels/list/sort.ts";
import { zeros } from "../../kernels/list/zeros.ts";
import { gather } from "../../kernels/score/gather.ts";
import { score } from "../../kernels/score/score.ts";
import { scoreLookup, scorePacked } from "../../kernels/score/score_lookup.ts";
import { sum } from "../../kernels/score/sum.ts";
import { codeList } from "../../kernels/quantize_topk_list/code_list.ts";
import type { ElementArray } from "../../kernels/gpu/kernel.ts";
import { candidates, keptPerTile, nTiles, tileSize, tilesStride } from "../../kernels/score_topk/candidates.ts";
import { scoreTiles, type ScoreTilesOptions, tilingOf } from "../../kernels/score_topk/score_tiles.ts";
import { countCells, scanCells, scatterCells } from "../../kernels/postings/postings.ts";
import { cellStep } from "../../kernels/step/cell_step.ts";
import { mergeList } from "../../kernels/topk_list/merge_list.ts";
import { merge } from "../../kernels/score_topk/merge.ts";
import { table } from "../../kernels/score/table.ts";
import { mask } from "../../kernels/topk/mask.ts";
import { rankOf } from "../../kernels/topk/rank.ts";
import { topk } from "../../kernels/topk/topk.ts";
import { type LayerShape, nLists, type StepShape } from "../../kernels/shape.ts";
import { distanceBound, scoreBound } from "../../indexer/bounds.ts";
import { Random } from "../../indexer/kmeans.ts";
import { squaredDistance, subvector } from "../../indexer/reference.ts";
import { assertClose, gpuTest, ODD_SHAPE, oddStep, row, runKernel, uniform } from "../support.ts";

const nKv = ODD_SHAPE.batch * ODD_SHAPE.kvHeads;
const groups = nKv * ODD_SHAPE.subvectors;
const below = (count: number, most: number, seed: number) => {
  const random = new Random(seed);
  return Uint32Array.from({ length: count }, () => random.below(most));
};

Deno.test("foldWorkgroups covers every workgroup with less than a row to spare", () => {
  assertEquals(foldWorkgroups(0, 65535), [0, 0]);
  assertEquals(foldWorkgroups(65535, 65535), [65535, 1]);
  for (const count of [1, 7, 8, 48, 49]) {
    const [x, y] = foldWorkgroups(count, 7);
    assert(x <= 7 && y <= 7 && x * y >= count && x * y - count < y, `${count} is ${x} x ${y}`);
  }
  assertThrows(() => foldWorkgroups(50, 7), RangeError, "at most 7 x 7: workgroups is 50");
});

for (const [name, format] of Object.entries({ wordCodes, packedCodes })) {
  Deno.test(`${name} packs and unpacks rows of any length`, () => {
    for (let n = 0; n < 10; n++) {
      const codes = Uint8Array.from({ length: n }, (_, i) => 255 - 40 * i), back = new Uint8Array(n);
      const words = new Uint32Array(format.rowWords(n)).fill(0xdeadbeef);
      format.pack(codes, words);
      format.unpack(words, back);
      assertEquals(back, codes);
    }
  });
}

for (const augmented of [false, true]) {
  gpuTest(
    `assign: codes are within the f32 bound of the nearest centroid (${augmented ? "ip" : "euclidean"})`,
    async (gpu) => {
      const shape: LayerShape = { ...ODD_SHAPE, augmented };
      const step = oddStep(300, 20);
      const width = 7 + Number(augmented);
      const newKeys = uniform(nKv * step.nNewKeys * shape.headWidth, 1);
      const centroids = uniform(groups * shape.centroids * width, 2);
      const phi = Float32Array.from({ length: augmented ? groups : 0 }, () => 3);
      const run = await runKernel(gpu, assign, shape, step, { newKeys, centroids, phi });
      let differences = 0;
      for (let group = 0; group < groups; group++) {
        const kv = Math.floor(group / shape.subvectors), m = group % shape.subvectors;
        for (let at = 0; at < step.codedStride; at++) {
          const ix = group * step.codedStride + at;
          const got = run.gpu.codes[ix], want = run.twin.codes[ix];
          if (got === want) continue; // poison included: only the new tokens' codes may be written
          const i = at - (step.nCoded - step.nNew);
          const codebook = { centroids, phi };
          const x = subvector(shape, codebook, newKeys, kv * step.nNewKeys + step.firstNewKey + i, kv, m);
          const excess = squaredDistance(shape, codebook, x, group, got) -
            squaredDistance(shape, codebook, x, group, want);
          const bound = distanceBound(shape, codebook, x, group, got) + distanceBound(shape, codebook, x, group, want);
          assert(excess <= bound, `code ${got} for ${want}: ${excess} over ${bound}`);
          differences++;
        }
      }
      assert(differences <= groups, `${differences} codes within rounding`);
    },
  );
}

gpuTest("assign: ties go to the lower centroid, NaN never wins, all NaN is code 0", async (gpu) => {
  const shape: LayerShape = {
    batch: 1,
    heads: 1,
    kvHeads: 1,
    headWidth: 2,
    subvectors: 1,
    centroids: 4,
    augmented: false,
  };
  const step: StepShape = { ...oddStep(60, 4), nCoded: 53, nNew: 5, firstNewKey: 0, nNewKeys: 5 };
  const centroids = new Float32Array([NaN, 0, 1, 1, 1, 1, -1, 1]);
  // deno-fmt-ignore
  const newKeys = new Float32Array([1, 1,  0, 1,  NaN, 0,  Infinity, 0,  -3, 1]);
  const { gpu: { codes } } = await runKernel(gpu, assign, shape, step, {
    newKeys,
    centroids,
    phi: new Float32Array(0),
  });
  // Nearest is 1 (2 is the same); (0, 1) is as far from 1 as from 3; all NaN; all infinite: the first of them; nearest is 3.
  assertEquals([...codes.subarray(48, 53)], [1, 1, 0, 1, 3]);
});

gpuTest("table: entries are within the f32 bound", async (gpu) => {
  const step = oddStep(300, 20);
  const lists = nLists(ODD_SHAPE, step);
  const query = uniform(lists * ODD_SHAPE.headWidth, 3);
  const centroids = uniform(groups * ODD_SHAPE.centroids * 7, 4);
  const run = await runKernel(gpu, table, ODD_SHAPE, step, { query, centroids });
  // Operands are at most 1, so an entry's products sum to at most d = 7.
  assertClose(run.gpu.lut, run.twin.lut, scoreBound({ ...ODD_SHAPE, subvectors: 5 }, 7, 14, false), "lut");
});

for (const nTokens of [258, 263, 264, 519, 520]) {
  gpuTest(`gather, sum, mask: equal their twins at ${nTokens - 7} coded tokens`, async (gpu) => {
    const step = oddStep(nTokens, 20);
    const lists = nLists(ODD_SHAPE, step);
    const lut = uniform(lists * ODD_SHAPE.subvectors * ODD_SHAPE.centroids, 5);
    const codes = below(groups * step.codedStride, ODD_SHAPE.centroids, 6);
    const gathered = await runKernel(gpu, gather, ODD_SHAPE, step, { lut, codes });
    assertEquals(gathered.gpu.gathered, gathered.twin.gathered);
    const summed = await runKernel(gpu, sum, ODD_SHAPE, step, { gathered: gathered.gpu.gathered });
    assertEquals(summed.gpu.scores, summed.twin.scores);
    const masked = await runKernel(gpu, mask, ODD_SHAPE, step, { scores: summed.gpu.scores });
    assertEquals(masked.gpu.ranks, masked.twin.ranks);
  });
}

/** `oddStep` with strides that packed codes allow. */
const alignedStep = (nTokens: number): StepShape => ({
  ...oddStep(nTokens, 20),
  codedStride: Math.ceil(nTokens / 4) * 4 + 8,
});

for (const [nCoded, nNew] of [[256, 1], [257, 1], [258, 3], [259, 4], [260, 9], [40, 40]]) {
  gpuTest(
    `assign_packed: keeps older bytes and adds ${nNew} to make ${nCoded}, as its twin and as assign`,
    async (gpu) => {
      for (const augmented of [false, true]) {
        const shape: LayerShape = { ...ODD_SHAPE, augmented };
        const step: StepShape = { ...alignedStep(nCoded + 7), nCoded, nNew, firstNewKey: 2, nNewKeys: nNew + 2 };
        // Integers, so that GPU and twin agree exactly, ties included.
        const integer = (count: number, seed: number) => Float32Array.from(below(count, 5, seed));
        const newKeys = integer(nKv * step.nNewKeys * shape.headWidth, 1);
        const centroids = integer(groups * shape.centroids * (7 + Number(augmented)), 2);
        const phi = new Float32Array(augmented ? groups : 0).fill(1000);
        const codes = below(groups * step.codedStride / 4, 2 ** 32, 3);
        const run = await runKernel(gpu, assignPacked, shape, step, { newKeys, centroids, phi, codes });
        const words = await runKernel(gpu, assign, shape, step, { newKeys, centroids, phi });
        if (!augmented) assertEquals(run.gpu.codes, run.twin.codes);
        for (let group = 0; group < groups; group++) {
          const bytes = new Uint8Array(run.gpu.codes.buffer, group * step.codedStride, step.codedStride);
          const before = new Uint8Array(codes.buffer, group * step.codedStride, step.codedStride);
          const first = nCoded - nNew, end = Math.ceil(nCoded / 4) * 4;
          assertEquals(bytes.slice(0, first), before.slice(0, first), "older codes");
          assertEquals(bytes.slice(end), before.slice(end), "words that no new key touches");
          const added = words.gpu.codes.slice(group * step.codedStride + first, group * step.codedStride + nCoded);
          assertEquals([...bytes.slice(first, nCoded)], [...added]);
        }
      }
    },
  );
}

/** Shapes with subvectors of less than a block of 16 columns, of parts of blocks, and of the most. */
const CODED_SHAPES: Record<string, LayerShape> = {
  "d 7": ODD_SHAPE,
  "d 20, 256 centroids": { ...ODD_SHAPE, headWidth: 40, subvectors: 2, centroids: 256 },
  "d 40, centroids in 42 and 22": { ...ODD_SHAPE, headWidth: 40, subvectors: 1, centroids: 64 },
  "d 64": { ...ODD_SHAPE, headWidth: 64, subvectors: 1, centroids: 64 },
};

for (const [name, one] of Object.entries(CODED_SHAPES)) {
  for (const [nCoded, nNew] of [[64, 64], [257, 200], [259, 255], [1000, 998]]) {
    gpuTest(`assign_many: adds ${nNew} to make ${nCoded}, to the bit as assign, ${name}`, async (gpu) => {
      for (const augmented of [false, true]) {
        const shape: LayerShape = { ...one, augmented }, groups = nKv * shape.subvectors;
        const step: StepShape = { ...alignedStep(nCoded + 7), nCoded, nNew, firstNewKey: 2, nNewKeys: nNew + 2 };
        const newKeys = uniform(nKv * step.nNewKeys * shape.headWidth, 1);
        newKeys[shape.headWidth * 9] = NaN;
        newKeys[shape.headWidth * 11] = Infinity;
        const width = shape.headWidth / shape.subvectors + Number(augmented);
        const centroids = uniform(groups * shape.centroids * width, 2);
        centroids.copyWithin(0, width, 2 * width); // two that tie
        const phi = new Float32Array(augmented ? groups : 0).fill(shape.headWidth / 2);
        const codes = below(groups * step.codedStride / 4, 2 ** 32, 3);
        const run = await runKernel(gpu, assignMany, shape, step, { newKeys, centroids, phi, codes });
        const words = await runKernel(gpu, assign, shape, step, { newKeys, centroids, phi });
        for (let group = 0; group < groups; group++) {
          const bytes = new Uint8Array(run.gpu.codes.buffer, group * step.codedStride, step.codedStride);
          const before = new Uint8Array(codes.buffer, group * step.codedStride, step.codedStride);
          const first = nCoded - nNew, end = Math.ceil(nCoded / 4) * 4;
          assertEquals(bytes.slice(0, first), before.slice(0, first), "older codes");
          assertEquals(bytes.slice(end), before.slice(end), "words that no new key touches");
          const added = words.gpu.codes.slice(group * step.codedStride + first, group * step.codedStride + nCoded);
          assertEquals([...bytes.slice(first, nCoded)], [...added]);
          assertEquals([...bytes.slice(nCoded, end)], [...new Uint8Array(end - nCoded)], "behind the last");
        }
      }
    });
  }
}

for (const nTokens of [258, 4103, 4104, 5000]) {
  gpuTest(
    `score, score_lookup and packed score: the bits of table, gather and sum at ${nTokens - 7} coded tokens`,
    async (gpu) => {
      const step = alignedStep(nTokens);
      const lists = nLists(ODD_SHAPE, step), stride = step.codedStride;
      const query = uniform(lists * ODD_SHAPE.headWidth, 3);
      const centroids = uniform(groups * ODD_SHAPE.centroids * 7, 4);
      const codes = below(groups * stride, ODD_SHAPE.centroids, 6);
      const packed = new Uint32Array(groups * stride / 4);
      packedCodes.pack(Uint8Array.from(codes), packed);
      const { gpu: { lut } } = await runKernel(gpu, table, ODD_SHAPE, step, { query, centroids });
      const { gpu: { gathered } } = await runKernel(gpu, gather, ODD_SHAPE, step, { lut, codes });
      const { gpu: { scores } } = await runKernel(gpu, sum, ODD_SHAPE, step, { gathered });
      for (const [kernel, input] of [[score, codes], [scorePacked, packed], [scoreLookup, packed]] as const) {
        const run = await runKernel(gpu, kernel, ODD_SHAPE, step, { query, centroids, codes: input });
        for (let list = 0; list < lists; list++) {
          const row = (of: ArrayLike<number>) =>
            Array.prototype.slice.call(of, list * stride, list * stride + step.nCoded);
          assertEquals(row(run.gpu.scores), row(scores), `${kernel.name}, list ${list}`);
          assertClose(row(run.gpu.scores), row(run.twin.scores), scoreBound(ODD_SHAPE, 35, 70, false), kernel.name);
        }
      }
    },
  );
}

for (const [nCoded, heavy] of [[300, 20], [2048, 1], [2049, 130], [4096, 512], [4097, 33], [6001, 300]]) {
  gpuTest(`candidates and merge: equal their twins for the best ${heavy} of ${nCoded}, many tied`, async (gpu) => {
    const shape: LayerShape = { ...ODD_SHAPE, batch: 1, heads: 2, kvHeads: 1 };
    const nTokens = nCoded + 7;
    const step: StepShape = {
      ...alignedStep(nTokens),
      heavyStride: heavy + 5,
      // The first row's candidates begin and end inside of a tile, the second's are all but few.
      rows: [row(nTokens - 1, 60, Math.min(heavy, nCoded - 100), 45, 7), row(nTokens, 7, heavy, 0, 7)],
    };
    // Integers: GPU and twin agree exactly, and few distinct scores tie heavily.
    const integer = (count: number, seed: number) => Float32Array.from(below(count, 3, seed), (value) => value - 1);
    const query = integer(nLists(shape, step) * shape.headWidth, 1);
    const centroids = integer(shape.subvectors * shape.centroids * 7, 2);
    const codes = new Uint32Array(shape.subvectors * step.codedStride / 4);
    packedCodes.pack(Uint8Array.from(below(codes.length * 4, shape.centroids, 3)), codes);
    const tiles = await runKernel(gpu, candidates, shape, step, { query, centroids, codes });
    const { candidateRanks, candidateIx } = tiles.gpu;
    assertEquals(candidateRanks, tiles.twin.candidateRanks);
    const used = (of: ArrayLike<number>) => Array.from(of, (ix, at) => candidateRanks[at] === 0 ? 0 : ix);
    assertEquals(used(candidateIx), used(tiles.twin.candidateIx));
    const merged = await runKernel(gpu, merge, shape, step, { candidateRanks, candidateIx });
    assertEquals(merged.gpu, merged.twin);
  });
}

/** Queries of few integers, which tie, of many, or so large that scores might be infinite. */
const QUERIES = {
  tied: { distinct: 3, scale: 1 },
  many: { distinct: 4000, scale: 1 },
  wild: { distinct: 3, scale: 2 ** 123 },
} as const;

for (const [kind, { distinct, scale }] of Object.entries(QUERIES)) {
  for (
    const [nCoded, heavy, invocations] of [[300, 20, 64], [1040, 130, 64], [4100, 500, 256], [9000, 33, 128], [
      5000,
      64,
      64,
    ]]
  ) {
    gpuTest(
      `score_tiles and lists: the best ${heavy} of ${nCoded} in tiles of ${16 * invocations}, ${kind}`,
      async (gpu) => {
        const shape: LayerShape = { ...ODD_SHAPE, batch: 1, heads: 4, kvHeads: 2 };
        const codedStride = Math.ceil((nCoded + 20) / 16) * 16;
        const base = { ...oddStep(nCoded + 7, heavy), codedStride, heavyStride: heavy + 5, listStride: heavy + 200 };
        const step: StepShape = {
          ...base,
          nNew: 0,
          // The first row's candidates begin and end inside of a tile, the second's are all but few; the third has none.
          rows: [
            row(nCoded + 5, 60, Math.min(heavy, nCoded - 120), 45, 7),
            row(nCoded + 6, 7, heavy, 0, 7),
            row(nCoded + 7, 9, 0, 17, 7),
          ],
        };
        const lists = nLists(shape, step), groups = shape.batch * shape.kvHeads * shape.subvectors;
        const integer = (count: number, seed: number) =>
          Float32Array.from(below(count, distinct, seed), (v) => (v - 1) * scale);
        const query = integer(lists * shape.headWidth, 1);
        const centroids = Float32Array.from(below(groups * shape.centroids * 7, 3, 2), (value) => value - 1);
        const codes = new Uint32Array(groups * codedStride / 4);
        packedCodes.pack(Uint8Array.from(below(codes.length * 4, shape.centroids, 3)), codes);
        const subgroups = gpu.subgroupSize > 0 ? [0, gpu.subgroupSize] : [0];
        const choices = subgroups.flatMap((subgroupSize, ix) =>
          (heavy <= invocations ? [1, 4] : [1]).map((mostChunks) => ({
            invocations,
            subgroupSize,
            lists: [4, 1][ix],
            mostChunks,
            workgroups: 1,
            entries: "f32" as ScoreTilesOptions["entries"],
          }))
        );
        if (gpu.features.has("shader-f16")) choices.push({ ...choices[0], entries: "f16" });
        let first: ElementArray | undefined;
        for (const options of choices) {
          const tiling = tilingOf(options);
          const isLong = tileSize(tiling, shape, step) > tiling.chunk;
          const tiles = await runKernel(gpu, scoreTiles(options, isLong), shape, step, { query, centroids, codes });
          const { candidateRanks, candidateIx } = tiles.gpu, best = tiles.twin;
          const kept = keptPerTile(tiling, step), stride = tilesStride(tiling, shape, step);
          for (let list = 0; list < lists; list++) {
            if (step.rows[list % 3].nHeavy === 0) continue;
            for (let tile = 0; tile < nTiles(tiling, shape, step); tile++) {
              const at = list * stride + tile * kept;
              const entries = (of: Record<string, ElementArray>) =>
                Array.from({ length: kept }, (_, j) => [of.candidateIx[at + j], of.candidateRanks[at + j]])
                  .filter(([, rank]) => rank > 0);
              const got = entries(tiles.gpu), want = entries(best);
              assertEquals(got.map(([ix]) => ix), got.map(([ix]) => ix).toSorted((a, b) => a - b), "in token order");
              const found = new Map(got.map(([ix, rank]) => [ix, rank]));
              // All of the best are there, and whatever else is there is a candidate with its own rank.
              for (const [ix, rank] of want) assertEquals(found.get(ix), rank, `list ${list}, tile ${tile}, ${ix}`);
              const { candBegin, candEnd } = step.rows[list % 3];
              assert(
                got.every(([ix]) =>
                  ix >= candBegin && ix < candEnd && Math.floor(ix / tileSize(tiling, shape, step)) === tile
                ),
              );
            }
          }
          const previous = {
            indices: Uint32Array.from({ length: lists * step.listStride }, (_, j) => j % step.listStride),
            lengths: new Uint32Array(lists).fill(11),
            weights: new Float32Array(lists * step.weightStride),
          };
          for (let list = 0; list < lists; list++) {
            previous.weights.fill(1, list * step.weightStride, list * step.weightStride + 11);
          }
          const listOptions = { tiling, weights: true, invocations, subgroupSize: options.subgroupSize };
          const again = { ...step, clearsPrevious: true };
          const made = await runKernel(gpu, mergeList(listOptions), shape, again, {
            candidateRanks,
            candidateIx,
            ...previous,
          });
          assertEquals(made.gpu, made.twin);
          if (options.entries === "f32") {
            assertEquals(first ??= made.gpu.indices, made.gpu.indices, "every choice makes the same lists");
          }
          const bare = await runKernel(gpu, mergeList({ ...listOptions, weights: false }), shape, step, {
            candidateRanks,
            candidateIx,
            indices: previous.indices,
          });
          assertEquals(bare.gpu, bare.twin);
        }
      },
    );
  }
}

/** A row that lists all tokens. */
const everything = (nTokens: number) => ({ ...row(nTokens, nTokens, 0, 0, 7), candBegin: 0, candEnd: 0 });

for (const augmented of [false, true]) {
  for (const nNew of [1, 2, 6]) {
    gpuTest(`code_list codes ${nNew} keys as assign_packed does (${augmented ? "ip" : "euclidean"})`, async (gpu) => {
      const shape: LayerShape = { ...ODD_SHAPE, centroids: 64, augmented };
      const step: StepShape = {
        ...alignedStep(301),
        nNew,
        firstNewKey: 1,
        nNewKeys: 8,
        listStride: 320,
        rows: [everything(301)],
      };
      const words = groups * step.codedStride / 4;
      const codes = below(words, 2 ** 30, 5);
      const newKeys = uniform(nKv * 8 * 35, 1), centroids = uniform(groups * 64 * (7 + Number(augmented)), 2);
      const phi = Float32Array.from({ length: augmented ? groups : 0 }, () => 3);
      const apart = await runKernel(gpu, assignPacked, shape, step, { newKeys, centroids, phi, codes });
      for (const subgroupSize of gpu.subgroupSize > 0 ? [0, gpu.subgroupSize] : [0]) {
        for (const invocations of [64, 256]) {
          const kernel = codeList({
            tiling: tilingOf({ invocations, mostChunks: 1, workgroups: 1 }),
            weights: false,
            invocations,
            subgroupSize,
          });
          const beside = await runKernel(gpu, kernel, shape, step, { newKeys, centroids, phi, codes });
          assertEquals(beside.gpu.codes, apart.gpu.codes, `${invocations} invocations, subgroups of ${subgroupSize}`);
        }
      }
    });
  }
}

gpuTest("code_list: all distances NaN are code 0, infinite ones the first of them", async (gpu) => {
  const shape = { ...ODD_SHAPE, batch: 1, heads: 1, kvHeads: 1, headWidth: 2, subvectors: 1, centroids: 4 };
  const step: StepShape = {
    ...alignedStep(61),
    nCoded: 53,
    nNew: 5,
    firstNewKey: 0,
    nNewKeys: 5,
    rows: [everything(60)],
  };
  const centroids = new Float32Array([NaN, 0, 1, 1, 1, 1, -1, 1]);
  // deno-fmt-ignore
  const newKeys = new Float32Array([1, 1,  0, 1,  NaN, 0,  Infinity, 0,  -3, 1]);
  const kernel = codeList({
    tiling: tilingOf({ invocations: 64, mostChunks: 1, workgroups: 1 }),
    weights: false,
    invocations: 64,
    subgroupSize: 0,
  });
  const codes = new Uint32Array(step.codedStride / 4);
  const run = await runKernel(gpu, kernel, shape, step, { newKeys, centroids, phi: new Float32Array(0), codes });
  const bytes = new Uint8Array(step.codedStride);
  packedCodes.unpack(run.gpu.codes as Uint32Array, bytes);
  assertEquals([...bytes.subarray(48, 53)], [1, 1, 0, 1, 3]);
});

gpuTest("invocations lie in subgroups in order of their index", async (gpu) => {
  if (gpu.subgroupSize === 0) return;
  using out = await gpu.allocate("out", 256 * 4);
  const { device } = gpu;
  const code = `@group(0) @binding(0) var<storage, read_write> out: array<u32>;
    @compute @workgroup_size(256) fn main(@builtin(local_invocation_index) lane: u32,
      @builtin(subgroup_invocation_id) within: u32, @builtin(subgroup_size) size: u32) { out[lane] = within + 1000u * size; }`;
  const pipeline = await device.createComputePipelineAsync({
    layout: "auto",
    compute: { module: device.createShaderModule({ code }) },
  });
  const layout = pipeline.getBindGroupLayout(0);
  const group = device.createBindGroup({ layout, entries: [{ binding: 0, resource: { buffer: out.buffer } }] });
  await gpu.submit("subgroups", (encoder) => {
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(1);
    pass.end();
  });
  const [bytes] = await gpu.read([{ buffer: out.buffer, bytes: 1024 }]);
  const size = gpu.subgroupSize;
  assertEquals([...new Uint32Array(bytes)], Array.from({ length: 256 }, (_, lane) => lane % size + 1000 * size));
});

Deno.test("rankOf orders NaN, -inf, numbers, zeros and +inf", () => {
  const ascending = [NaN, -Infinity, -3.4e38, -1, -1e-40, 0, 1e-40, 1, 3.4e38, Infinity];
  const ranks = ascending.map(rankOf);
  assertEquals(ranks, [...ranks].sort((a, b) => a - b));
  assertEquals(new Set(ranks).size, ranks.length);
  assertEquals(rankOf(-0), rankOf(0));
  assert(rankOf(NaN) > 0, "NaN is still a candidate");
});

gpuTest("mask: NaN ranks below -inf, -0 equals +0", async (gpu) => {
  const shape = { ...ODD_SHAPE, batch: 1, heads: 1, kvHeads: 1 };
  const step = { ...oddStep(60, 4), rows: [row(60, 7, 4, 0, 7)] };
  const special = [NaN, -NaN, -Infinity, -1, -0, 0, 1, Infinity, 1e-45, -1e-45];
  const scores = new Float32Array(step.codedStride);
  scores.set(special);
  const { gpu: { ranks } } = await runKernel(gpu, mask, shape, step, { scores });
  assertEquals([...ranks.subarray(0, special.length)], special.map(rankOf));
});

for (const [nCoded, heavy] of [[251, 1], [256, 33], [257, 128], [1000, 257], [700, 700], [40, 39], [300, 2]]) {
  gpuTest(`topk: equals its twin for the best ${heavy} of ${nCoded}, many tied`, async (gpu) => {
    for (const distinct of [3, 40, 2 ** 31]) {
      const step: StepShape = {
        ...oddStep(nCoded + 7, heavy),
        rows: [row(nCoded + 7, 7, heavy, 0, 7), row(nCoded + 7, 7, Math.max(0, heavy - 1), 0, 7)],
      };
      const ranks = below(nLists(ODD_SHAPE, step) * step.codedStride, distinct, heavy).map((rank) => rank + 1);
      const run = await runKernel(gpu, topk, ODD_SHAPE, step, { ranks });
      assertEquals(run.gpu.topkIx, run.twin.topkIx);
      assertEquals(run.gpu.topkRanks, run.twin.topkRanks);
    }
  });
}

gpuTest("topk: extreme ranks and masked tokens", async (gpu) => {
  const step: StepShape = { ...oddStep(60, 5), rows: [row(60, 7, 5, 0, 7)] };
  const lists = nLists(ODD_SHAPE, step);
  const ranks = new Uint32Array(lists * step.codedStride);
  for (let list = 0; list < lists; list++) {
    ranks.set([0, 0xffffffff, 0, 1, 1, 0xffffffff, 0x80000000, 1], list * step.codedStride + 3);
  }
  const run = await runKernel(gpu, topk, ODD_SHAPE, step, { ranks });
  assertEquals([...run.gpu.topkIx.subarray(0, 5)], [4, 8, 9, 6, 7]);
  assertEquals(run.gpu.topkIx, run.twin.topkIx);
});

for (const heavy of [1, 20, 237]) {
  gpuTest(`offset, concat, sort, zeros, scatter: equal their twins with ${heavy} heavy tokens`, async (gpu) => {
    const step = oddStep(600, heavy);
    const lists = nLists(ODD_SHAPE, step);
    const topkIx = new Uint32Array(lists * step.heavyStride);
    const random = new Random(heavy);
    for (let list = 0; list < lists; list++) {
      const { candBegin, candEnd } = step.rows[list % 2];
      const picked = new Set<number>();
      while (picked.size < heavy) picked.add(candBegin + random.below(candEnd - candBegin));
      topkIx.set([...picked], list * step.heavyStride);
    }
    const shifted = await runKernel(gpu, offset, ODD_SHAPE, step, { topkIx });
    assertEquals(shifted.gpu.heavy, shifted.twin.heavy);
    const joined = await runKernel(gpu, concat, ODD_SHAPE, step, { heavy: shifted.gpu.heavy });
    assertEquals(joined.gpu, joined.twin);
    const sorted = await runKernel(gpu, sort, ODD_SHAPE, step, { indices: joined.gpu.indices });
    assertEquals(sorted.gpu.indices, sorted.twin.indices);
    const cleared = await runKernel(gpu, zeros, ODD_SHAPE, step, {});
    assertEquals(cleared.gpu.weights, cleared.twin.weights);
    const scattered = await runKernel(gpu, scatter, ODD_SHAPE, step, {
      indices: sorted.gpu.indices,
      weights: cleared.gpu.weights,
    });
    assertEquals(scattered.gpu.weights, scattered.twin.weights);
  });
}

gpuTest("a dispatch of more than 65,535 workgroups reaches every element", async (gpu) => {
  const shape = { ...ODD_SHAPE, batch: 1, heads: 3, kvHeads: 3 };
  const weightStride = 65536 * 256 / 3 + 1000 | 0;
  const step = { ...oddStep(600, 5), weightStride, rows: [row(600, 9, 5, 17, 7)] };
  assert(zeros.work(shape, step).workgroups > 65535);
  const { gpu: { weights } } = await runKernel(gpu, zeros, shape, step, {});
  assertEquals(weights.findIndex((weight) => weight !== 0), -1);
});

Deno.test("assertClose fails on NaN, on a wrong length and on a permutation, and says where", async () => {
  const check = (actual: number[], expected: number[]) => () =>
    Promise.resolve().then(() => assertClose(actual, expected, 0.5, "x"));
  await assertRejects(check([1, NaN], [1, 2]), Error, "1 of 2 differ, first at 1 (NaN for 2), largest error NaN");
  await assertRejects(check([1], [1, 2]), Error, "1 elements, expected 2");
  await assertRejects(check([2, 1], [1, 2]), Error, "2 of 2 differ, first at 0 (2 for 1), largest error 1");
  await check([1, 2.5], [1.5, 2])();
});

/** Codes of a layer of two KV heads whose keys share few cells, packed. */
function clusteredCodes(shape: LayerShape, codedStride: number, distinct: number): Uint32Array<ArrayBuffer> {
  const random = new Random(distinct), rows = shape.batch * shape.kvHeads * shape.subvectors;
  const bytes = Uint8Array.from({ length: rows * codedStride }, () => random.below(distinct));
  const words = new Uint32Array(bytes.length / 4);
  packedCodes.pack(bytes, words);
  return words;
}

const CELL_SHAPES: Record<string, LayerShape> = {
  "4,096 cells": { ...ODD_SHAPE, batch: 1, heads: 4, kvHeads: 2, headWidth: 14, subvectors: 2, centroids: 64 },
  "512 cells": { ...ODD_SHAPE, batch: 1, heads: 4, kvHeads: 2, headWidth: 21, subvectors: 3, centroids: 8 },
  "2 cells": { ...ODD_SHAPE, batch: 1, heads: 2, kvHeads: 2, headWidth: 7, subvectors: 1, centroids: 2 },
};

for (const [name, shape] of Object.entries(CELL_SHAPES)) {
  for (const [begin, end] of [[0, 0], [3, 4], [0, 255], [2, 4103], [5, 9001]]) {
    gpuTest(`count_cells, scan_cells, scatter_cells: postings of ${begin} to ${end}, ${name}`, async (gpu) => {
      const codedStride = Math.ceil(Math.max(end, 1) / 16) * 16 + 16;
      const step: StepShape = { ...oddStep(end + 30, 20), codedStride, posted: { begin, end }, posts: true };
      for (const distinct of [1, shape.centroids]) {
        const codes = clusteredCodes(shape, codedStride, distinct);
        const counted = await runKernel(gpu, countCells, shape, step, { codes });
        assertEquals(counted.gpu.cellCounts, counted.twin.cellCounts);
        const scanned = await runKernel(gpu, scanCells, shape, step, { cellCounts: counted.gpu.cellCounts });
        assertEquals(scanned.gpu, scanned.twin);
        const { gpu: made, twin } = await runKernel(gpu, scatterCells, shape, step, { codes, ...scanned.gpu });
        assertEquals(made, twin);
        // What the twins agree on is what postings are: every token once, by cell, ascending in each.
        const stride = made.postings.length / 2, room = stride - codedStride;
        for (let kv = 0; kv < 2; kv++) {
          const row = made.postings.subarray(kv * stride, (kv + 1) * stride);
          const tokens = [...row.subarray(room, room + end - begin)];
          assertEquals(tokens.toSorted((a, b) => a - b), Array.from({ length: end - begin }, (_, i) => begin + i));
          for (let cell = 0; cell + 1 < room; cell++) {
            const own = tokens.slice(row[cell], row[cell + 1]);
            assertEquals(own, own.toSorted((a, b) => a - b), `cell ${cell}`);
          }
        }
      }
    });
  }
}

for (const [name, shape] of Object.entries(CELL_SHAPES)) {
  for (const [kind, { distinct, scale }] of Object.entries(QUERIES)) {
    for (
      const [nCoded, heavy, tail] of [[300, 20, 300], [1040, 130, 40], [9000, 509, 995], [70_000, 33, 3], [3000, 1, 0]]
    ) {
      gpuTest(`cell_step: the best ${heavy} of ${nCoded}, a tail of ${tail}, ${name}, ${kind}`, async (gpu) => {
        const codedStride = Math.ceil((nCoded + 20) / 16) * 16;
        const rows = [
          row(nCoded + 5, 9, heavy, 45, 7),
          row(nCoded + 6, 9, Math.min(heavy + 3, nCoded - 60), 41, 7),
          { ...row(nCoded + 7, 9, 0, 17, 7), nHeavy: 0, listLength: 26 },
        ];
        const end = Math.max(2, rows[0].candEnd - tail);
        const step: StepShape = {
          ...oddStep(nCoded + 7, heavy),
          codedStride,
          nNew: 0,
          heavyStride: heavy + 5,
          listStride: heavy + 200,
          posted: { begin: 2, end },
          posts: true,
          rows,
        };
        const lists = nLists(shape, step), groups = shape.batch * shape.kvHeads * shape.subvectors;
        const query = Float32Array.from(below(lists * shape.headWidth, distinct, 1), (v) => (v - 1) * scale);
        const centroids = Float32Array.from(below(groups * shape.centroids * 7, 3, 2), (value) => value - 1);
        const previous = {
          indices: Uint32Array.from({ length: lists * step.listStride }, (_, j) => j % step.listStride),
          lengths: new Uint32Array(lists).fill(11),
          weights: new Float32Array(lists * step.weightStride),
        };
        for (let list = 0; list < lists; list++) {
          previous.weights.fill(1, list * step.weightStride, list * step.weightStride + 11);
        }
        for (const most of [1, shape.centroids]) {
          const codes = clusteredCodes(shape, codedStride, most);
          const counted = await runKernel(gpu, countCells, shape, step, { codes });
          const scanned = await runKernel(gpu, scanCells, shape, step, { cellCounts: counted.twin.cellCounts });
          const { twin: { postings } } = await runKernel(gpu, scatterCells, shape, step, { codes, ...scanned.twin });
          for (const [invocations, subgroupSize] of [[256, 0], [512, gpu.subgroupSize]]) {
            const kernel = cellStep({ mostHeavy: heavy + 3, invocations, subgroupSize, weights: true });
            const inputs = { query, centroids, codes, postings, ...previous };
            const run = await runKernel(gpu, kernel, shape, { ...step, clearsPrevious: true }, inputs);
            const { indices, lengths, weights } = run.gpu;
            assertEquals({ indices, lengths, weights }, {
              indices: run.twin.indices,
              lengths: run.twin.lengths,
              weights: run.twin.weights,
            }, `${most} codes, ${invocations} invocations, subgroups of ${subgroupSize}`);
          }
        }
      });
    }
  }
}

/** What cached keys hold beside small integers, whose products are exact and often tie. */
const CACHED: Record<string, (ix: number, token: number) => number | undefined> = {
  "many ties": () => undefined,
  "all equal": () => 1,
  "outliers, beside which all others are one bin": (j, token) =>
    token % 50 === 3 ? (j === 0 ? 2 ** 100 : 0) : undefined,
  "infinite and NaN": (j, token) => j > 0 || token % 9 > 2 ? undefined : [Infinity, -Infinity, NaN][token % 9],
};

for (const [kind, special] of Object.entries(CACHED)) {
  for (const [heavy, short] of [[20, 80], [130, 300], [1, 7], [270, 1000]]) {
    gpuTest(`cell_step: the best ${heavy} of a shortlist of ${short} by exact scores, ${kind}`, async (gpu) => {
      const shape: LayerShape = { ...ODD_SHAPE, headWidth: 24, subvectors: 2, centroids: 8 };
      const nCoded = 1500, D = shape.headWidth, nKv = shape.batch * shape.kvHeads;
      const rows = [
        { ...row(nCoded + 5, 9, heavy, 45, 7), nShort: short },
        { ...row(nCoded + 6, 9, heavy, 41, 7), nShort: heavy },
        { ...row(nCoded + 7, 9, 0, 17, 7), nHeavy: 0, listLength: 26, nShort: 0 },
      ];
      const step: StepShape = {
        ...oddStep(nCoded + 7, heavy),
        codedStride: Math.ceil((nCoded + 20) / 16) * 16,
        nNew: 0,
        listStride: heavy + 200,
        keyStride: nCoded + 9,
        shortStride: short,
        attended: short + 200,
        posted: { begin: 2, end: rows[0].candEnd - 40 },
        posts: true,
        rows,
      };
      const groups = nKv * shape.subvectors, lists = nLists(shape, step);
      const query = Float32Array.from(below(lists * D, 3, 1), (value) => value + 1);
      const centroids = Float32Array.from(below(groups * shape.centroids * 12, 3, 2), (value) => value - 1);
      const codes = clusteredCodes(shape, step.codedStride, shape.centroids);
      const small = below(nKv * step.keyStride! * D, 4, 3);
      const keys = Float32Array.from(small, (x, ix) => special(ix % D, Math.floor(ix / D) % step.keyStride!) ?? x - 1);
      const counted = await runKernel(gpu, countCells, shape, step, { codes });
      const scanned = await runKernel(gpu, scanCells, shape, step, { cellCounts: counted.twin.cellCounts });
      const { twin: { postings } } = await runKernel(gpu, scatterCells, shape, step, { codes, ...scanned.twin });
      for (const [invocations, subgroupSize] of [[256, 0], [512, gpu.subgroupSize]]) {
        const reRanked = { elements: "f32", mostShort: short } as const;
        const kernel = cellStep({ mostHeavy: heavy, reRanked, invocations, subgroupSize, weights: true });
        const run = await runKernel(gpu, kernel, shape, step, {
          query,
          centroids,
          codes,
          postings,
          keys,
          weights: new Float32Array(lists * step.weightStride),
        });
        const { indices, lengths, weights } = run.gpu, { twin } = run;
        const expected = { indices: twin.indices, lengths: twin.lengths, weights: twin.weights };
        assertEquals({ indices, lengths, weights }, expected, `${invocations} invocations`);
      }
    });
  }
}
