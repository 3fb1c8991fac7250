import { assert, assertEquals } from "@std/assert";
import { PARAM_SLOTS, ParamsRing } from "../../indexer/pipelines/params_ring.ts";
import { packParams, PARAMS_BYTES, type StepShape } from "../../kernels/shape.ts";
import { oddStep, row } from "../support.ts";

/** A queue that keeps what was written. */
function fakeQueue(slotBytes: number) {
  const memory = new Uint8Array(slotBytes * PARAM_SLOTS);
  let writes = 0;
  const queue = {
    writeBuffer(_: GPUBuffer, offset: number, data: ArrayBufferView, from: number, length: number) {
      writes++;
      const words = data as Uint32Array;
      memory.set(new Uint8Array(words.slice(from, from + length).buffer), offset);
    },
  } as unknown as GPUQueue;
  const holds = (offset: number, step: StepShape) => {
    const packed = new Uint32Array(PARAMS_BYTES / 4);
    const words = packParams(step, packed);
    return [...new Uint32Array(memory.buffer, offset, words)].join() === [...packed.subarray(0, words)].join();
  };
  return { queue, holds, writes: () => writes };
}

const SLOT = 2304;
const decode = (n: number): StepShape => ({
  ...oddStep(600, 20),
  nCoded: n,
  nNew: 1,
  rows: [row(n + 7, 9, 20, 17, 7)],
});

Deno.test("ParamsRing: steps that go on alike are written many at a time, and hold what they should", () => {
  const { queue, holds, writes } = fakeQueue(SLOT);
  const ring = new ParamsRing(queue, {} as GPUBuffer, SLOT);
  for (let n = 0; n < 500; n++) {
    const offset = ring.place(decode(600 + n), PARAM_SLOTS);
    assertEquals(offset, n % PARAM_SLOTS * SLOT);
    assert(holds(offset, decode(600 + n)), `step ${n}`);
  }
  assert(writes() < 40, `${writes()} writes for 500 steps`);
});

Deno.test("ParamsRing: whatever comes, a slot holds its step, and slots that still wait are left alone", () => {
  const { queue, holds } = fakeQueue(SLOT);
  const ring = new ParamsRing(queue, {} as GPUBuffer, SLOT);
  const steps = [600, 601, 602, 603, 700, 701, 701, 701, 702, 50, 51, 52, 53, 54];
  let waiting: [number, StepShape][] = [];
  for (let k = 0; k < 400; k++) {
    const base = decode(steps[k % steps.length] + (k % 3 === 0 ? 0 : k));
    const step = k % 11 === 0 ? { ...base, rows: [...base.rows, base.rows[0]] } : base;
    if (waiting.length === PARAM_SLOTS || k % 29 === 0) waiting = []; // submitted
    waiting.push([ring.place(step, PARAM_SLOTS - waiting.length), step]);
    for (const [offset, waits] of waiting) assert(holds(offset, waits), `step ${k}`);
  }
});
