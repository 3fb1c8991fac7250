/**
 * Where the steps of a layer find their `Params`: a ring of slots in one uniform buffer. Steps of a decode loop differ
 * by the same amounts again and again, so once two in a row did, the slots ahead are written for the steps to
 * come: one write in many steps, where each would cost the host and the queue more than its bytes.
 *
 * @module
 */

import { packParams, PARAMS_BYTES, type StepShape } from "../../kernels/shape.ts";

/** Recorded steps of one layer whose `Params` can wait for their submit at once. */
export const PARAM_SLOTS = 64;

/** Slots that one write fills ahead at most. */
const AHEAD = 32;

/** The ring. What slots hold is compared, never assumed: a step that was not foreseen is written when it comes. */
export class ParamsRing {
  readonly #queue: Pick<GPUQueue, "writeBuffer">;
  readonly #buffer: GPUBuffer;
  readonly #slotWords: number;
  /** What the slots hold. */
  readonly #slots: Uint32Array<ArrayBuffer>;
  readonly #packed = new Uint32Array(PARAMS_BYTES / 4);
  readonly #last = new Uint32Array(PARAMS_BYTES / 4);
  readonly #change = new Uint32Array(PARAMS_BYTES / 4);
  #lastWords = 0;
  #slot = 0;

  /** @param slotBytes bytes from one slot to the next */
  constructor(queue: Pick<GPUQueue, "writeBuffer">, buffer: GPUBuffer, slotBytes: number) {
    this.#queue = queue;
    this.#buffer = buffer;
    this.#slotWords = slotBytes / 4;
    this.#slots = new Uint32Array(this.#slotWords * PARAM_SLOTS);
  }

  /**
   * Puts a step's `Params` into the next slot.
   *
   * @param free slots from the next one on that no unsubmitted step reads, at least 1
   * @returns the slot's byte offset
   */
  place(step: StepShape, free: number): number {
    const packed = this.#packed, last = this.#last, change = this.#change;
    const words = packParams(step, packed), slot = this.#slot, at = slot * this.#slotWords;
    let isThere = true, isSteady = words === this.#lastWords;
    for (let i = 0; i < words; i++) {
      if (this.#slots[at + i] !== packed[i]) isThere = false;
      const now = (packed[i] - last[i]) >>> 0;
      if (now !== change[i]) isSteady = false;
      change[i] = now;
      last[i] = packed[i];
    }
    this.#lastWords = words;
    if (!isThere) {
      const count = isSteady ? Math.min(AHEAD, free, PARAM_SLOTS - slot) : 1;
      for (let k = 0; k < count; k++) {
        for (let i = 0; i < words; i++) this.#slots[at + k * this.#slotWords + i] = packed[i] + k * change[i];
      }
      const length = (count - 1) * this.#slotWords + words;
      this.#queue.writeBuffer(this.#buffer, 4 * at, this.#slots, at, length);
    }
    this.#slot = (slot + 1) % PARAM_SLOTS;
    return 4 * at;
  }
}
