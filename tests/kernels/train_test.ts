import { assert, assertEquals } from "@std/assert";
import type { ElementArray, Kernel } from "../../kernels/gpu/kernel.ts";
import { centroidWidth, type LayerShape, type StepShape } from "../../kernels/shape.ts";
import {
  nGroups,
  NO_KEY,
  nParts,
  nTiles,
  STATE,
  STATE_WORDS,
  TILE,
  trainShape,
  TrainView,
} from "../../kernels/train/train.ts";
import { trainingKernels } from "../../kernels/train/training.ts";
import { widenKeys } from "../../kernels/train/widen_keys.ts";
import { assertClose, gpuTest, runKernel, uniform } from "../support.ts";

/** Widths below, at and beside 16 columns; centroids below, at and beyond a block of 64; keys at and beside a tile. */
const CASES: Record<string, { shape: LayerShape; step: StepShape; elements: "f32" | "f16" }> = {
  "few centroids, odd width, f16": {
    shape: { batch: 2, heads: 3, kvHeads: 3, headWidth: 21, subvectors: 3, centroids: 2, augmented: false },
    step: trainShape(151, 5, 140, 128),
    elements: "f16",
  },
  "ip, 16 columns and one": {
    shape: { batch: 1, heads: 4, kvHeads: 2, headWidth: 32, subvectors: 2, centroids: 16, augmented: true },
    step: trainShape(300, 0, 300, 300),
    elements: "f32",
  },
  "subvectors wider than any workgroup array of a fixed size": {
    shape: { batch: 1, heads: 1, kvHeads: 1, headWidth: 600, subvectors: 1, centroids: 8, augmented: false },
    step: trainShape(200, 0, 200, 200),
    elements: "f32",
  },
  "two blocks of centroids": {
    shape: { batch: 1, heads: 1, kvHeads: 1, headWidth: 80, subvectors: 2, centroids: 128, augmented: false },
    step: trainShape(1100, 40, 1050, 1030),
    elements: "f32",
  },
};

/** A key without a finite value here and there. */
function keysOf(shape: LayerShape, step: StepShape, elements: "f32" | "f16"): ElementArray {
  const nKv = shape.batch * shape.kvHeads, stride = step.keyStride!;
  const values = uniform(nKv * stride * shape.headWidth, 3).map((x) => 2 * x + 1);
  const each = stride * shape.headWidth;
  values[(step.initOffset + 3) * shape.headWidth + 2] = NaN;
  values[(nKv - 1) * each + (step.initOffset + 7) * shape.headWidth] = -Infinity;
  const length = (nKv - 1) * each + (step.initOffset + step.nCoded) * shape.headWidth;
  const used = values.slice(0, length);
  if (elements === "f32") return used;
  const halves = new Float16Array(Math.ceil(length / 2) * 2);
  halves.set(used);
  return new Uint32Array(halves.buffer);
}

for (const [name, { shape, step, elements }] of Object.entries(CASES)) {
  gpuTest(`training, ${name}: every kernel does what its twin does`, async (gpu) => {
    const { start, iteration } = trainingKernels({ elements, tolerance: 0, startInvocations: 64 });
    const groups = nGroups(shape), width = centroidWidth(shape);
    const seeds = new Uint32Array(groups * STATE_WORDS);
    for (let group = 0; group < groups; group++) seeds[group * STATE_WORDS + STATE.seed] = 40 + group;
    // What the kernels find zero; the rest is poisoned until it is written.
    const all: Record<string, ElementArray> = {
      keys: keysOf(shape, step, elements),
      state: seeds,
      phi: new Float32Array(shape.augmented ? groups : 0),
      finite: new Uint32Array(shape.batch * shape.kvHeads),
      counts: new Uint32Array(groups * shape.centroids),
    };
    const sizeOf = (kernel: Kernel, buffer: string) =>
      kernel.buffers.find((use) => use.name === buffer)!.elements(shape, step);
    let compared = 0;
    for (const kernel of [...start, ...iteration, ...iteration]) {
      if (kernel.work(shape, step).workgroups === 0) continue;
      const inputs = Object.fromEntries(
        kernel.buffers.filter((use) => all[use.name]).map((use) => {
          const held = all[use.name];
          const array = use.type === "f32" || held instanceof Uint32Array ? held : new Uint32Array(held.buffer);
          return [use.name, array];
        }),
      );
      if (!shape.augmented) inputs.extra = new Float32Array(0);
      const { gpu: got, twin } = await runKernel(gpu, kernel, shape, step, inputs);
      for (const { name: buffer, access } of kernel.buffers) {
        if (access === "read") continue;
        const what = `${kernel.name}: ${buffer}`;
        const view = new TrainView(shape, step, { ...all, ...twin, keys: all.keys }, {
          elements,
          tolerance: 0,
          startInvocations: 64,
        });
        if (buffer === "owners") {
          assertOwners(view, step, got.owners, twin.owners);
        } else if (buffer === "state") {
          for (let group = 0; group < groups; group++) {
            const floats = (array: ElementArray) => new Float32Array(array.slice().buffer)[group * STATE_WORDS + 1];
            assertClose([floats(got.state)], [floats(twin.state)], 1e-4 * floats(twin.state), what);
            for (const word of [STATE.done, STATE.iterations, STATE.seed]) {
              assertEquals(got.state[group * STATE_WORDS + word], twin.state[group * STATE_WORDS + word], what);
            }
          }
        } else if (kernel.name === "largest_norms") {
          const bits = (array: ElementArray) => new Float32Array(array.slice().buffer);
          assertClose(bits(got.phi), bits(twin.phi), 1e-4, what);
        } else {
          const isExact = got[buffer] instanceof Uint32Array, isRoot = buffer === "extra";
          // A root of almost nothing has half as many digits: compared by its square.
          const [mine, theirs] = [got, twin].map((run) => isRoot ? run[buffer].map((x) => x * x) : run[buffer]);
          assertClose(mine, theirs, (ix) => isExact ? 0 : 8e-5 * (1 + Math.abs(theirs[ix])), what);
        }
        compared++;
        // What follows goes on from the twin's, so that a rounding does not grow.
        const value = twin[buffer].slice();
        all[buffer] = kernel.name === "largest_norms" ? new Float32Array(value.buffer) : value as ElementArray;
        assertEquals(all[buffer].length, sizeOf(kernel, buffer));
      }
    }
    assert(compared >= 22, `${compared}`);
    assert(all.sampled.every((row) => row === NO_KEY || row < step.nCoded));
    assertEquals(new Set(all.sampled.subarray(0, step.nNew)).size >= step.nNew - 1, true, "no key twice");
    assertEquals(all.centroids.length, groups * shape.centroids * width);
  });
}

/** Owners agree, or two centroids are as near as rounding can tell. */
function assertOwners(
  view: TrainView,
  step: StepShape,
  got: ElementArray,
  want: ElementArray,
): void {
  const a = new Uint8Array(got.slice().buffer), b = new Uint8Array(want.slice().buffer);
  for (let at = 0; at < a.length; at++) {
    if (a[at] === b[at]) continue;
    const group = Math.floor(at / (nTiles(step) * TILE)), point = view.relative(group, at % (nTiles(step) * TILE))!;
    const [x, y] = [a[at], b[at]].map((c) =>
      view.modelValues(group, c).reduce((sum, value, j) => sum + (point[j] - value) ** 2, 0)
    );
    assert(Math.abs(x - y) <= 1e-5 * (1 + y), `owners: ${a[at]} (${x}) for ${b[at]} (${y}) at ${at}`);
  }
}

gpuTest(
  "fill_empty: empty centroids take the tiles' farthest keys, once each, and none that lies on a centroid",
  async (gpu) => {
    const shape = { batch: 1, heads: 1, kvHeads: 1, headWidth: 4, subvectors: 1, centroids: 8, augmented: false };
    const step = trainShape(400, 0, 400, 400);
    const fill = trainingKernels({ elements: "f32", tolerance: 0, startInvocations: 64 }).iteration.at(-1)!;
    const inputs = {
      keys: uniform(1600, 1),
      sampled: Uint32Array.from({ length: 400 }, (_, i) => i),
      extra: new Float32Array(0),
      model: uniform(9 * 5, 2),
      state: new Uint32Array(STATE_WORDS),
      counts: Uint32Array.of(5, 0, 7, 0, 0, 0, 0, 1),
      // Four tiles: the third is nearest to its centroids, the last lies on them.
      tileStats: Float32Array.of(3, 2, 17, 0, 9, 8, 200, 0, 1, 0.5, 300, 0, 0, 0, 384, 0),
    };
    const { gpu: got, twin } = await runKernel(gpu, fill, shape, step, inputs);
    assertClose(got.model, twin.model, 1e-6, "model");
    const view = new TrainView(shape, step, { ...inputs, model: got.model });
    for (const [c, slot] of [[1, 200], [3, 17], [4, 300]]) {
      assertClose(view.modelValues(0, c), view.relative(0, slot)!, 1e-6, `centroid ${c}`);
    }
    for (const c of [0, 2, 5, 6, 7]) {
      const before = inputs.model.subarray(c * 5, c * 5 + 4);
      assertClose(view.modelValues(0, c), before, 0, `centroid ${c}`);
    }
    assertEquals([...got.counts], [0, 0, 0, 0, 0, 0, 0, 0]);
    assertEquals(got.state[STATE.done], 0, "not done while centroids are empty");
  },
);

gpuTest("a group that is done is left as it is", async (gpu) => {
  const { shape, step } = CASES["two blocks of centroids"];
  const state = new Uint32Array(nGroups(shape) * STATE_WORDS);
  state[STATE.done] = 1;
  for (const kernel of trainingKernels({ elements: "f32", tolerance: 0, startInvocations: 64 }).iteration) {
    const given = (name: string, fill: (length: number) => ElementArray) => {
      const use = kernel.buffers.find((use) => use.name === name);
      return use ? { [name]: fill(use.elements(shape, step)) } : {};
    };
    const inputs = {
      ...given("keys", (n) => uniform(n, 1)),
      ...given("sampled", (n) => Uint32Array.from({ length: n }, (_, i) => i)),
      ...given("model", (n) => uniform(n, 2)),
      ...given("owners", (n) => new Uint32Array(n)),
      ...given("tileStats", (n) => new Float32Array(n).fill(1)),
      ...given("work", (n) => uniform(n, 4)),
      ...given("counts", (n) => new Uint32Array(n).fill(2)),
      ...given("extra", (n) => new Float32Array(n)),
      state,
    };
    const { gpu: got, twin } = await runKernel(gpu, kernel, shape, step, inputs);
    let changed = false;
    for (const { name, access, elements } of kernel.buffers) {
      if (access === "read" || name === "state") continue;
      // The first of two groups.
      const half = name === "work" ? nParts(step) * shape.centroids * centroidWidth(shape) : elements(shape, step) / 2;
      assertClose(got[name].subarray(0, half), twin[name].subarray(0, half), 0, `${kernel.name}: ${name}`);
      const before = (inputs as Record<string, ElementArray>)[name];
      if (before) assertClose(got[name].subarray(0, half), before.subarray(0, half), 0, `${kernel.name}: ${name}`);
      changed ||= got[name].subarray(half).some((x, ix) => x !== (before ?? got[name])[before ? half + ix : ix]);
    }
    assert(changed, `${kernel.name}: the second one is not`);
  }
});

gpuTest("widen_keys: f16 to f32, some tokens of all heads", async (gpu) => {
  const { shape } = CASES["few centroids, odd width, f16"];
  const step = trainShape(151, 100, 13, 13);
  const keys = new Uint32Array(new Float16Array(uniform(2 * Math.ceil((5 * 151 + 113) * 21 / 2), 1)).buffer);
  const { gpu: got, twin } = await runKernel(gpu, widenKeys, shape, step, { keys });
  assertClose(got.newKeys, twin.newKeys, 0, "widened");
  assert(got.newKeys.every((x) => Math.abs(x) <= 1));
});

gpuTest(
  "assign_close: keys that lie close to a centroid far from the origin are assigned by differences",
  async (gpu) => {
    const shape = { batch: 1, heads: 1, kvHeads: 1, headWidth: 4, subvectors: 1, centroids: 8, augmented: false };
    const step = trainShape(300, 0, 300, 300), random = uniform(1200, 5);
    const close = trainingKernels({ elements: "f32", tolerance: 0, startInvocations: 64 }).iteration[1];
    assertEquals(close.name, "assign_close");
    // The second of three tiles holds no close key: it stays as it was.
    const keys = random.map((x, ix) => (ix >> 2) % 2 ? 8000 + x : -8000 - x);
    const model = new Float32Array(9 * 5);
    for (let c = 0; c < 8; c++) for (let j = 0; j < 4; j++) model[c * 5 + j] = keys[4 * (11 * c + 1) + j];
    const inputs = {
      keys,
      sampled: Uint32Array.from({ length: 300 }, (_, i) => i),
      extra: new Float32Array(0),
      model,
      state: new Uint32Array(STATE_WORDS),
      owners: new Uint32Array(3 * TILE / 4).fill(0x03030303),
      counts: Uint32Array.of(0, 0, 0, 300, 0, 0, 0, 0),
      tileStats: Float32Array.of(1, 1, 5, 1, 2, 2, 140, 0, 3, 3, 260, 1),
    };
    const { gpu: got, twin } = await runKernel(gpu, close, shape, step, inputs);
    assertEquals(got.owners, twin.owners);
    assertEquals(got.counts, twin.counts);
    assertEquals([...got.counts].reduce((a, b) => a + b, 0), 300);
    assertClose(got.tileStats, twin.tileStats, (ix) => 1e-4 * (1 + Math.abs(twin.tileStats[ix])), "tileStats");
    assert(new Uint8Array(got.owners.slice().buffer).subarray(128, 256).every((code) => code === 3));
    assert(new Set(new Uint8Array(got.owners.slice().buffer).subarray(0, 128)).size > 4);
  },
);
