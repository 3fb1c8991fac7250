/**
 * e00 reference: the oracle as a pipeline. Plain TypeScript, f64, on the CPU; written to be
 * obviously right, not to be fast. Everything else is compared with it.
 *
 * @module
 */

import type { Capacity, ResolvedConfig } from "../config.ts";
import { type Codebook, referenceCodes, referenceSelect } from "../reference.ts";
import { Selection, type SelectionData } from "../selection.ts";
import { hostArray, type Layer, type LayerContext, type LayerStep, type Pipeline } from "./pipeline.ts";

/** The oracle. */
export const e00: Pipeline = {
  id: "e00",
  title: "reference",
  change: "plain TypeScript in f64 on the CPU: the oracle",
  runsOn: "cpu",
  kernels: [],
  kernelsFor: () => [],
  create: (context: LayerContext) => Promise.resolve(new ReferenceLayer(context)),
};

class ReferenceLayer implements Layer {
  readonly operations = ["assign", "score", "select"];
  readonly maxKeyBytes = Infinity;
  readonly #config: ResolvedConfig;
  readonly #weights: boolean;
  #codebook: Codebook | undefined;
  /** Per (batch, KV head, subvector) the codes so far. */
  #rows: Uint8Array[];
  #capacity: Capacity | undefined;
  /** Counts steps: a selection is valid until the next one. */
  #generation = 0;

  constructor({ config, weights }: LayerContext) {
    this.#config = config;
    this.#weights = weights;
    this.#rows = Array.from(
      { length: config.shape.batch * config.shape.kvHeads * config.shape.subvectors },
      () => new Uint8Array(0),
    );
  }

  reserve(capacity: Capacity): Promise<void> {
    try {
      this.#rows = this.#rows.map((row) => {
        const grown = new Uint8Array(Math.max(capacity.tokens, row.length));
        grown.set(row);
        return grown;
      });
    } catch (error) {
      const needed = `${this.#rows.length} rows of ${capacity.tokens} codes`;
      return Promise.reject(
        new RangeError(`Cannot reserve ${capacity.tokens} tokens as this runtime must allocate ${needed}: ${error}`),
      );
    }
    this.#capacity = capacity;
    return Promise.resolve();
  }

  setCodebook(codebook: Codebook): void {
    this.#codebook = { centroids: codebook.centroids.slice(), phi: codebook.phi?.slice() };
  }

  importCodes(codes: Uint8Array, n: number): void {
    this.#rows.forEach((row, group) => row.set(codes.subarray(group * n, (group + 1) * n)));
  }

  exportCodes(n: number): Promise<Uint8Array> {
    return Promise.resolve(this.#codes(n));
  }

  #codes(n: number): Uint8Array {
    const codes = new Uint8Array(this.#rows.length * n);
    this.#rows.forEach((row, group) => codes.set(row.subarray(0, n), group * n));
    return codes;
  }

  check(step: LayerStep): void {
    if (step.out) throw new TypeError("Cannot write to GPU buffers as pipeline e00 runs on the CPU: leave out `out`");
  }

  settle(): void {}

  // deno-lint-ignore require-await -- errors must reach the caller as a rejection, as on the GPU
  async run(step: LayerStep): Promise<Selection | undefined> {
    this.check(step);
    const generation = ++this.#generation;
    const { shape } = this.#config;
    if (step.nNew > 0) {
      const keys = hostArray("e00", "new keys", step.newKeys);
      const codes = referenceCodes(shape, this.#codebook!, keys, step.firstNewKey);
      const perRow = step.nNewKeys - step.firstNewKey;
      this.#rows.forEach((row, group) => {
        row.set(codes.subarray(group * perRow, group * perRow + step.nNew), step.nCoded - step.nNew);
      });
    }
    if (step.rows.length === 0) return undefined;
    const query = hostArray("e00", "query", step.query);
    const nTokens = step.rows[step.rows.length - 1].nTokens;
    const n = this.#codebook ? step.nCoded : 0;
    const codebook = n > 0 ? this.#codebook : undefined;
    const cached = step.keys && { keys: hostArray("e00", "cached keys", step.keys), stride: step.keyStride! };
    const codes = this.#codes(n);
    const { lists } = referenceSelect(this.#config, codebook, codes, nTokens, query, step.initOffset, cached);
    const data = this.#pack(lists);
    return new Selection(this.#config.listShape, step.rows.length, data, undefined, () => {
      if (generation === this.#generation) return Promise.resolve(data);
      return Promise.reject(
        new RangeError(
          "Cannot read this selection as a selection is valid until the index's next call: the index was called since",
        ),
      );
    });
  }

  #pack(lists: readonly number[][]): SelectionData {
    const listStride = Math.max(1, this.#capacity!.list), weightStride = this.#capacity!.tokens;
    const indices = new Uint32Array(lists.length * listStride);
    const weights = this.#weights ? new Float32Array(lists.length * weightStride) : undefined;
    lists.forEach((list, ix) => {
      indices.set(list, ix * listStride);
      for (const token of list) if (weights) weights[ix * weightStride + token] = 1;
    });
    const lengths = Uint32Array.from(lists, (list) => list.length);
    return { indices, lengths, weights, listStride, weightStride };
  }

  record(): never {
    throw new TypeError("Cannot record into a GPU pass as pipeline e00 runs on the CPU: use step()");
  }

  dispatches(): number {
    return 0;
  }

  bytesMoved(): number {
    return 0;
  }

  destroy(): void {
    this.#rows = [];
  }
}
