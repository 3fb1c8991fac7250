// The step on @jax-js/jax (WebGPU): deno run -A jax_js.ts <folder> [--steps 200] [--blocks 16]
import { defaultDevice, getWebGPUDevice, init, jit, lax, numpy as np } from "@jax-js/jax";
import config from "./deno.json" with { type: "json" };
import { args, candidates, captureDevice, type Inputs, readCase, runPeer, time, writeOutputs } from "./common.ts";

type Step = (query: np.Array, centroids: np.Array, codes: np.Array, key: np.Array) => [np.Array, np.Array, np.Array];

const power2 = (n: number) => 2 ** Math.ceil(Math.log2(n));

/** Blocks of one length that hold `count` tokens; the sorts then have a power-of-two length and need no padding. */
function split(count: number, atMost: number, heavy: number): { blocks: number; length: number } {
  const length = Math.max(power2(Math.ceil(count / atMost)), power2(heavy));
  return { blocks: power2(Math.ceil(count / length)), length };
}

/** Four u8 codes in a u32 word (the library has no u8), each row padded to `length` codes. */
function packCodes(codes: Uint8Array, count: number, length: number): Uint32Array<ArrayBuffer> {
  const rows = codes.length / count, bytes = new Uint8Array(rows * length);
  for (let r = 0; r < rows; r++) bytes.set(codes.subarray(r * count, (r + 1) * count), r * length);
  return new Uint32Array(bytes.buffer);
}

function makeStep({ c }: Inputs, lo: number, count: number, blocks: number, length: number): Step {
  const { heads: H, headWidth: D, subvectors: M, tokens: N, sink: S, window: W, heavy: K } = c;
  const d = D / M, hi = lo + count;
  const range = (from: number, to: number) => np.arange(from, to, 1, { dtype: np.int32 });
  return (query, centroids, packed, key) => {
    // Code of the new key; argmin takes the first of equals.
    const distance = np.square(key.reshape([H, M, 1, d]).sub(centroids.ref)).sum(3);
    const newCodes = np.argmin(distance, 2);

    // score[h,i] = sum_m table[h,m,code]
    const table = query.reshape([H, M, 1, d]).mul(centroids).sum(3);
    const shifts = np.array([0, 8, 16, 24], { dtype: np.uint32 });
    const bytes = np.rightShift(packed.reshape([H, M, blocks * length / 4, 1]), shifts);
    const codes = np.bitwiseAnd(bytes, np.array(255, { dtype: np.uint32 })).astype(np.int32)
      .reshape([H, M, blocks * length]);
    const sum = np.unstack(np.takeAlongAxis(table, codes, 2), 1).reduce((a, b) => a.add(b));
    const score = np.where(range(0, blocks * length).less(count), sum, -Infinity);

    // The best K of each block, then of those; topK keeps the lower index of equals in both stages.
    const [top, at] = lax.topK(score.ref.reshape([H, blocks, length]), K);
    const tokens = at.add(range(0, blocks).mul(length).add(lo).reshape([blocks, 1])).reshape([H, blocks * K]);
    const [best, rank] = lax.topK(top.reshape([H, blocks * K]), K);
    const heavy = np.takeAlongAxis(tokens, rank, 1);
    const indices = np.concatenate([
      np.broadcastTo(range(0, S), [H, S]),
      np.sort(heavy.ref, 1),
      np.broadcastTo(range(N - W, N), [H, W]),
    ], 1);

    // Chosen are the tokens up to the K-th in the order (score down, token up).
    const lastScore = best.slice([], [K - 1, K]), lastToken = heavy.slice([], [K - 1, K]);
    const full = np.pad(score.slice([], [0, count]), [[0, 0], [lo, N - hi]]);
    const token = range(0, N);
    const tied = np.logicalAnd(np.equal(full.ref, lastScore.ref), token.ref.lessEqual(lastToken));
    const chosen = np.logicalAnd(
      np.logicalOr(full.greater(lastScore), tied),
      np.logicalAnd(token.ref.greaterEqual(lo), token.ref.less(hi)),
    );
    const fixed = np.logicalOr(token.ref.less(S), token.greaterEqual(N - W));
    return [indices, newCodes, np.logicalOr(chosen, fixed).astype(np.float32)];
  };
}

await runPeer("jax-js", async (at) => {
  at("arguments");
  const { dir, steps, options } = args();
  const inp = readCase(dir);
  const { heads: H, headWidth: D, subvectors: M, centroids: C, heavy: K } = inp.c;
  const { lo, hi, codes } = candidates(inp);
  const { blocks, length } = split(hi - lo, Number(options.get("blocks") ?? 16), K);

  at("WebGPU start");
  const kept = captureDevice();
  if (!(await init("webgpu")).includes("webgpu")) throw new Error("the library found no WebGPU device");
  defaultDevice("webgpu");
  const queue = getWebGPUDevice().queue;

  at("inputs");
  const padded = blocks * length;
  const query = np.array(inp.query, { shape: [H, D] });
  const centroids = np.array(inp.centroids, { shape: [H, M, C, D / M] });
  const packed = np.array(packCodes(codes, hi - lo, padded), { shape: [H, M, padded / 4] });
  const key = np.array(inp.newKey, { shape: [H, D] });

  at("step");
  const step = jit(makeStep(inp, lo, hi - lo, blocks, length) as never) as unknown as Step;
  const run = () => step(query.ref, centroids.ref, packed.ref, key.ref);
  const [indices, newCodes, weights] = run();
  writeOutputs(dir, "jax-js", {
    indices: await indices.data() as Int32Array,
    codes: await newCodes.data() as Int32Array,
    weights: await weights.data() as Float32Array,
  });

  at("timing");
  // The library is lazy: asking for the buffers submits the step. In Deno the call of onSubmittedWorkDone itself
  // blocks until the queue is idle; its promise resolves late.
  const submit = () => run().forEach((a) => a.gpuBufferSync());
  const fence = () => void queue.onSubmittedWorkDone();
  const timing = await time(steps, submit, fence);
  return {
    version: config.imports["@jax-js/jax"].split("@").at(-1),
    device: kept.info?.description,
    ...timing,
    notes: `jit; codes packed four to a u32; two-stage lax.topK (${blocks} x ${length}); ` +
      "the new code is computed but not appended (arrays are immutable); weights without scatter",
  };
});
