import { assert, assertEquals } from "@std/assert";
import { distanceBound, halfBound, halfUnit, isExact, scoreBound } from "../../indexer/bounds.ts";
import {
  checkCodes,
  checkOracle,
  checkOracleCodes,
  checkSelection,
  judgeExchanges,
  type SelectionCase,
} from "../../indexer/checks.ts";
import { resolveConfig } from "../../indexer/config.ts";
import { referenceCodes, referenceSelect, squaredDistance } from "../../indexer/reference.ts";
import type { SelectionData } from "../../indexer/selection.ts";
import { tied } from "../../experiments/inputs/synthetic.ts";
import { uniform } from "../support.ts";

function makeCase(integers: boolean): SelectionCase {
  const config = resolveConfig({
    heads: 4,
    kvHeads: 2,
    headWidth: 6,
    subvectors: 2,
    bits: 3,
    sinkSize: 3,
    windowSize: 5,
    heavySize: 7,
    initOffset: 2,
  });
  const count = 2 * 2 * 8 * 3;
  const codebook = { centroids: integers ? tied(count, 2, 1) : uniform(count, 1) };
  const codes = Uint8Array.from(tied(2 * 2 * 98, 1, 2), (value) => value + 1);
  const query = integers ? tied(4 * 6, 2, 3) : uniform(4 * 6, 3);
  return { config, initOffset: 2, codebook, codes, nTokens: 100, query, weights: true };
}

function oracle(test: SelectionCase): SelectionData {
  const { lists } = referenceSelect(test.config, test.codebook, test.codes, test.nTokens, test.query, test.initOffset);
  const listStride = 20, weightStride = 110;
  const indices = new Uint32Array(lists.length * listStride).fill(0xdead);
  const weights = new Float32Array(lists.length * weightStride);
  lists.forEach((list, l) => {
    indices.set(list, l * listStride);
    for (const token of list) weights[l * weightStride + token] = 1;
  });
  return { indices, weights, lengths: Uint32Array.from(lists, (list) => list.length), listStride, weightStride };
}

/** Replaces a token of list 0 and keeps order and weights in step. */
function replace(data: SelectionData, from: number, to: number): SelectionData {
  const list = [...data.indices.subarray(0, data.lengths[0])].map((token) => token === from ? to : token);
  const indices = data.indices.slice(), weights = data.weights!.slice();
  indices.set(list.sort((a, b) => a - b));
  weights[from] = 0;
  weights[to] = 1;
  return { ...data, indices, weights };
}

const rejects = (test: SelectionCase, data: SelectionData, why: string) => {
  const check = checkSelection(test, data);
  assert(check.errors > 0, `accepted: ${why}`);
  assert(check.firstError.includes(why), `${check.firstError} does not say ${why}`);
};

for (const integers of [true, false]) {
  const kind = integers ? "integers" : "uniform data";
  const test = makeCase(integers);
  const data = oracle(test);
  const listed = [...data.indices.subarray(0, data.lengths[0])];
  const { scores } = referenceSelect(test.config, test.codebook, test.codes, test.nTokens, test.query, test.initOffset);
  const score = (token: number) => scores[token - 2];
  const candidates = Array.from({ length: 92 }, (_, i) => i + 3);
  const heavy = listed.filter((token) => token >= 3 && token < 95);

  Deno.test(`checkSelection accepts the oracle's lists (${kind})`, () => {
    assertEquals({ ...checkSelection(test, data) }, { checked: 4, heavy: 28, exchanges: 0, errors: 0, firstError: "" });
    assertEquals(checkOracle(test, data).errors, 0);
  });

  Deno.test(`checkSelection fails when a tie is broken the other way (${kind})`, () => {
    let broken = 0;
    for (const taken of heavy) {
      for (const other of candidates) {
        if (other <= taken || heavy.includes(other) || score(other) !== score(taken)) continue;
        rejects(test, replace(data, taken, other), integers ? "" : "ties go to the lower token");
        assert(checkOracle(test, replace(data, taken, other)).errors > 0, "the oracle's check notices it as well");
        broken++;
      }
    }
    assert(broken > 0, "the case has a tie at the last rank");
  });

  Deno.test(`checkSelection fails when one entry is wrong (${kind})`, () => {
    const worst = candidates.reduce((least, token) => score(token) < score(least) ? token : least);
    rejects(test, replace(data, heavy[3], worst), `instead of ${heavy[3]}`);
    rejects(test, replace(data, 0, worst), "no candidate");
    rejects(test, replace(data, 99, worst), "no candidate");
    assert(checkOracle(test, replace(data, heavy[3], worst)).errors > 0);
    assert(checkOracle(test, replace(data, 99, worst)).errors > 0);
  });
}

Deno.test("checkSelection fails when a pipeline returns nothing, or repeats, or permutes", () => {
  const test = makeCase(true), data = oracle(test);
  rejects(test, { ...data, lengths: new Uint32Array(4) }, "has 0 tokens");
  rejects(test, { ...data, lengths: new Uint32Array(0) }, "0 lists");
  rejects(test, { ...data, indices: new Uint32Array(data.indices.length) }, "not ascending");
  rejects(test, {
    ...data,
    indices: data.indices.map((_, at) => data.indices[at % 20 < 15 ? at - at % 20 + 14 - at % 20 : at]),
  }, "not ascending");
  const weights = data.weights!.slice();
  for (const [value, at] of [[0.5, data.indices[3]], [NaN, 50], [1, 105], [NaN, data.indices[0]]]) {
    const wrong = weights.slice();
    wrong[at] = value;
    if (wrong[at] === weights[at]) continue;
    rejects(test, { ...data, weights: wrong }, `token ${at} is ${value}`);
  }
  rejects(test, { ...data, weights: weights.slice(0, 400) }, "weights");
  rejects(test, { ...data, weights: undefined }, "weights were asked for and are not there");
  rejects({ ...test, weights: false }, data, "weights were not asked for and are there");
});

Deno.test("checkOracle fails on order, extra tokens, missing tokens and weights", () => {
  const test = makeCase(true), data = oracle(test);
  const fails = (change: Partial<SelectionData>, why: string) => {
    const { errors, firstError } = checkOracle(test, { ...data, ...change });
    assert(errors > 0 && firstError.includes(why), `${firstError} for ${why}`);
  };
  const edit = (change: (list: Uint32Array) => void) => {
    const indices = data.indices.slice();
    change(indices.subarray(0, 20));
    return { indices };
  };
  fails(edit((list) => list.subarray(0, 15).reverse()), "not ascending");
  fails(edit((list) => list[14] = 5000), "beyond 100");
  fails({ lengths: data.lengths.map((length) => length - 1) }, "");
  fails({ lengths: new Uint32Array(0) }, "0 lists");
  fails({ weights: data.weights!.map(() => 7) }, "is 7");
  fails({ weights: undefined }, "not there");
});

Deno.test("checkOracleCodes accepts the reference's codes and no others", () => {
  for (const metric of ["euclidean", "ip"] as const) {
    const { shape } = resolveConfig({ heads: 2, headWidth: 6, subvectors: 2, bits: 3, metric });
    const codebook = {
      centroids: uniform(2 * 2 * 8 * (metric === "ip" ? 4 : 3), 1),
      phi: metric === "ip" ? new Float32Array(4).fill(3) : undefined,
    };
    const keys = uniform(2 * 40 * 6, 2);
    const codes = referenceCodes(shape, codebook, keys, 3);
    assertEquals(checkOracleCodes(shape, codebook, keys, codes, 3).errors, 0);
    assertEquals(checkOracleCodes(shape, codebook, keys, codes.map((code) => (code + 1) % 8), 3).errors, 148);
    assertEquals(checkOracleCodes(shape, codebook, keys, codes.fill(8, 0, 1), 3).errors, 1);
  }
});

Deno.test("checkSelection allows exchanges within the rounding bound and counts them", () => {
  // Two centroids whose scores differ by less than f32 can tell, but which are not the same.
  const config = resolveConfig({
    heads: 1,
    headWidth: 1,
    subvectors: 1,
    bits: 1,
    sinkSize: 0,
    windowSize: 0,
    heavySize: 4,
  });
  const codes = Uint8Array.from({ length: 20 }, (_, i) => i % 2);
  const near = { centroids: new Float32Array([1 / 3, Math.fround(1 / 3) * (1 + 2 ** -23)]) };
  const test = {
    config,
    initOffset: 0,
    codebook: near,
    codes,
    nTokens: 20,
    query: new Float32Array([0.7]),
    weights: false,
  };
  const lists = { lengths: new Uint32Array([4]), listStride: 4, weightStride: 0 };
  assertEquals(checkSelection(test, { ...lists, indices: new Uint32Array([1, 3, 5, 7]) }).exchanges, 0);
  const exchanged = checkSelection(test, { ...lists, indices: new Uint32Array([0, 1, 2, 3]) });
  assertEquals([exchanged.errors, exchanged.exchanges], [0, 2]);
  // Each exchange is within its bound; that half of what was chosen needs the excuse is an error.
  assertEquals(judgeExchanges([exchanged]).firstError.slice(0, 44), "2 of 4 heavy tokens were exchanged, more tha");
  assertEquals(
    judgeExchanges(
      Array.from({ length: 10 }, (_, ix) => ix === 0 ? { ...exchanged, exchanges: 2 } : { ...exchanged, exchanges: 0 }),
    ).errors,
    0,
  );
  assertEquals(judgeExchanges([]).errors, 0);
  const wrongTie = checkSelection(test, { ...lists, indices: new Uint32Array([0, 1, 3, 4]) });
  assertEquals(wrongTie.errors, 1);
  assert(wrongTie.firstError.includes("4 ties with 2"), wrongTie.firstError);
  const far = { ...test, codebook: { centroids: new Float32Array([1 / 3, 0.34]) } };
  assertEquals(checkSelection(far, { ...lists, indices: new Uint32Array([0, 1, 2, 3]) }).errors, 1);
});

Deno.test("checkSelection: NaN scores rank last and may not be exchanged", () => {
  const config = resolveConfig({
    heads: 1,
    headWidth: 1,
    subvectors: 1,
    bits: 1,
    sinkSize: 0,
    windowSize: 0,
    heavySize: 2,
  });
  const test = {
    config,
    initOffset: 0,
    codebook: { centroids: new Float32Array([NaN, -5]) },
    codes: new Uint8Array(20).fill(0, 0, 18).fill(1, 18),
    nTokens: 20,
    query: new Float32Array([1]),
    weights: false,
  };
  const lists = { lengths: new Uint32Array([2]), listStride: 2, weightStride: 0 };
  assertEquals(checkSelection(test, { ...lists, indices: new Uint32Array([18, 19]) }).errors, 0);
  assertEquals(checkSelection(test, { ...lists, indices: new Uint32Array([0, 1]) }).errors, 1);
  assertEquals(checkSelection(test, { ...lists, indices: new Uint32Array([17, 19]) }).errors, 1);
});

Deno.test("checkCodes accepts the reference's codes, fails on any other than rounding explains", () => {
  for (const metric of ["euclidean", "ip"] as const) {
    const { shape } = resolveConfig({ heads: 2, headWidth: 6, subvectors: 2, bits: 3, metric });
    const width = metric === "ip" ? 4 : 3;
    const codebook = {
      centroids: uniform(2 * 2 * 8 * width, 1),
      phi: metric === "ip" ? new Float32Array(4).fill(3) : undefined,
    };
    codebook.centroids.copyWithin(width, 0, width); // centroids 0 and 1 of the first group are the same
    const keys = uniform(2 * 40 * 6, 2);
    const codes = referenceCodes(shape, codebook, keys, 3);
    assertEquals({ ...checkCodes(shape, codebook, keys, codes, 3) }, {
      checked: 148,
      heavy: 0,
      exchanges: 0,
      errors: 0,
      firstError: "",
    });
    for (const at of [0, 50, 147]) {
      const wrong = codes.slice();
      wrong[at] = (wrong[at] + 3) % 8;
      assertEquals(checkCodes(shape, codebook, keys, wrong, 3).errors, 1);
    }
    const first = codes.subarray(0, 37).indexOf(0);
    assert(first >= 0, "some key is nearest to the doubled centroid");
    const otherWay = codes.slice();
    otherWay[first] = 1;
    assert(checkCodes(shape, codebook, keys, otherWay, 3).firstError.includes("tie goes to the identical centroid 0"));
    assertEquals(checkCodes(shape, codebook, keys, codes.fill(8, 0, 1), 3).errors, 1);
    assertEquals(checkCodes(shape, codebook, keys, new Uint8Array(0), 3).errors, 1);
  }
});

Deno.test("bounds hold for f32 arithmetic in several orders, and are not much wider than it needs", () => {
  const { shape } = resolveConfig({ heads: 1, headWidth: 32, subvectors: 1, bits: 1 });
  const f = Math.fround;
  let largestShare = 0;
  for (let seed = 0; seed < 300; seed++) {
    const q = uniform(32, seed), c = uniform(64, seed + 1000);
    let exact = 0, magnitude = 0, operands = 0, up = 0, down = 0, fused = 0;
    for (let j = 0; j < 32; j++) {
      exact += q[j] * c[j];
      magnitude += Math.abs(q[j] * c[j]);
      operands += Math.abs(q[j]) + Math.abs(c[j]);
      up = f(up + f(q[j] * c[j]));
      down = f(down + f(q[31 - j] * c[31 - j]));
      fused = f(fused + q[j] * c[j]);
    }
    const bound = scoreBound(shape, magnitude, operands, false);
    for (const got of [up, down, fused]) {
      assert(Math.abs(got - exact) <= bound);
      largestShare = Math.max(largestShare, Math.abs(got - exact) / bound);
    }
    const distance = squaredDistance(shape, { centroids: c }, [...q], 0, 0);
    let sum = 0;
    for (let j = 0; j < 32; j++) {
      const t = f(q[j] - c[j]);
      sum = f(sum + f(t * t));
    }
    assert(Math.abs(sum - distance) <= distanceBound(shape, { centroids: c }, [...q], 0, 0));
  }
  assert(largestShare > 0.02, `the bound is ${1 / largestShare} times what was seen`);
});

Deno.test("bounds: flushed subnormals, overflow, integers", () => {
  const { shape } = resolveConfig({ heads: 1, headWidth: 2, subvectors: 1, bits: 1 });
  // A product of 2^-140 may be flushed to 0.
  assert(scoreBound(shape, 2 ** -140, 1, false) >= 2 ** -140);
  assertEquals(scoreBound(shape, 3e38 * 2, 1, false), Infinity);
  assertEquals(scoreBound(shape, 100, 1, true), 0);
  assert(isExact([new Float32Array([1, -2])], 2 ** 23));
  assert(!isExact([new Float32Array([1, -2])], 2 ** 24));
  assert(!isExact([new Float32Array([1, 0.5])], 1));
  assert(!isExact([], NaN));
  const far = { centroids: new Float32Array([3e38, 3e38, 0, 0]) };
  assertEquals(distanceBound(shape, far, [-3e38, 0], 0, 0), Infinity);
});

Deno.test("bounds: the augmented column near phi, where the root loses half the digits", () => {
  const { shape } = resolveConfig({ heads: 1, headWidth: 3, subvectors: 1, bits: 1, metric: "ip" });
  const f = Math.fround;
  for (let seed = 0; seed < 500; seed++) {
    const x = uniform(3, seed);
    const norm = x[0] ** 2 + x[1] ** 2 + x[2] ** 2;
    const phi = f(norm * (1 + (seed % 5) * 1e-7));
    const codebook = { centroids: uniform(8, seed + 1), phi: new Float32Array([phi]) };
    let norm32 = 0;
    for (const value of x) norm32 = f(norm32 + f(value * value));
    const last32 = f(Math.sqrt(Math.max(f(phi - norm32), 0)));
    const exact = [...x, Math.sqrt(Math.max(phi - norm, 0))];
    let sum = 0;
    [...x, last32].forEach((value, j) => {
      const t = f(value - codebook.centroids[j]);
      sum = f(sum + f(t * t));
    });
    const error = Math.abs(sum - squaredDistance(shape, codebook, exact, 0, 0));
    assert(error <= distanceBound(shape, codebook, exact, 0, 0), `seed ${seed}: ${error}`);
  }
});

Deno.test("halfBound: what rounding a value to f16 under a scale can change, and not much more", () => {
  // One unit in the last place of f16 at a value, as rounding may go to either neighbor.
  const unitAt = (value: number) => 2 ** (Math.max(Math.floor(Math.log2(value)), -14) - 10);
  for (const scale of [1, 2 ** -20, 2 ** 30]) {
    for (const value of [0, 1e-9, 6e-5, 0.1, 1, 1.9999, 3.14159, 2049, 65503]) {
      const entry = value / scale;
      const error = Math.abs(Math.f16round(entry * scale) / scale - entry), bound = halfBound(entry, 1 / scale, false);
      assert(error <= bound, `${value}: ${error} beyond ${bound}`);
      const needed = (unitAt(value) + 2 ** -14) / scale; // rounded, flushed
      assert(bound <= 2 * needed, `${value}: ${bound} is wide for ${needed}`);
    }
  }
  assertEquals([halfBound(2048, 1, true), halfBound(3, 1, true)], [0, 0]);
  assert(halfBound(2049, 1, true) > 0);
});

Deno.test("halfUnit: the inverse of a table's scale, at most; it never falls", () => {
  assertEquals([0.25, 1, 16384, 65504].map((largest) => halfUnit(largest) >= 1), [true, true, true, true]);
  assertEquals([halfUnit(16384), halfUnit(131072), halfUnit(2 ** -10)], [1, 8, 2 ** -24]);
  let before = 0;
  for (let exponent = -149; exponent < 128; exponent += 0.5) {
    const unit = halfUnit(2 ** exponent);
    assert(unit >= before && unit > 0, `${exponent}: ${unit} after ${before}`);
    before = unit;
  }
});

Deno.test("checkSelection: f16 tables may exchange what f32 tables may not", () => {
  const base = makeCase(false), data = oracle(base);
  const { scores } = referenceSelect(base.config, base.codebook, base.codes, base.nTokens, base.query, base.initOffset);
  const listed = new Set(data.indices.subarray(0, data.lengths[0]));
  const candidates = Array.from({ length: 92 }, (_, i) => i + 3);
  const score = (token: number) => scores[token - 2];
  const heavy = candidates.filter((token) => listed.has(token)),
    other = candidates.filter((token) => !listed.has(token));
  const last = heavy.reduce((least, token) => score(token) <= score(least) ? token : least);
  const best = Math.max(...other.map(score).filter((value) => value < score(last)));
  const next = other.find((token) => score(token) === best)!;
  const worst = other.reduce((least, token) => score(token) < score(least) ? token : least);
  const exchanged = replace(data, last, next);
  for (const scale of [1, 2 ** -20, 2 ** 40]) {
    // An outlier among the entries is what makes the others coarse; scale alone excuses nothing.
    const scaled = { ...base, query: base.query.map((value) => value * scale) };
    assert(checkSelection(scaled, exchanged).errors > 0);
    assert(checkSelection({ ...scaled, halfTables: true }, replace(data, last, worst)).errors > 0, `scale ${scale}`);
    const near = score(last) - score(next) <= 2 * halfBound(Math.abs(score(last)), 0, false);
    assertEquals(checkSelection({ ...scaled, halfTables: true }, exchanged).errors === 0, near, `scale ${scale}`);
  }
});
