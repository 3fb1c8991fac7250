/**
 * Pooling by sums of scores on the CPU: a layer of summed queries.
 *
 * @module
 */

import type { ResolvedConfig } from "../../config.ts";
import { summedQuery } from "../../reference.ts";
import type { Selection } from "../../selection.ts";
import { hostArray, type Layer, type LayerStep } from "../pipeline.ts";

/** A layer whose lists are those of a layer that has one head per KV head, for the sum of the heads' queries. */
export class SummedLayer implements Layer {
  readonly operations: readonly string[];
  readonly maxKeyBytes: number;
  readonly #inner: Layer;
  readonly #config: ResolvedConfig;

  /** @param inner the layer of KV heads */
  constructor(inner: Layer, config: ResolvedConfig) {
    this.#inner = inner;
    this.#config = config;
    this.operations = inner.operations;
    this.maxKeyBytes = inner.maxKeyBytes;
  }

  reserve: Layer["reserve"] = (capacity, nCoded) => this.#inner.reserve(capacity, nCoded);
  setCodebook: Layer["setCodebook"] = (codebook) => this.#inner.setCodebook(codebook);
  importCodes: Layer["importCodes"] = (codes, n) => this.#inner.importCodes(codes, n);
  exportCodes: Layer["exportCodes"] = (n) => this.#inner.exportCodes(n);
  check: Layer["check"] = (step) => this.#inner.check(step);
  settle: Layer["settle"] = () => this.#inner.settle();
  record: Layer["record"] = (target, step) => this.#inner.record(target, step); // refuses
  dispatches: Layer["dispatches"] = () => 0;
  bytesMoved: Layer["bytesMoved"] = () => 0;
  destroy: Layer["destroy"] = () => this.#inner.destroy();

  // deno-lint-ignore require-await -- errors must reach the caller as a rejection, as on the GPU
  async run(step: LayerStep): Promise<Selection | undefined> {
    if (step.rows.length === 0) return this.#inner.run(step);
    const query = hostArray("cpu", "query", step.query);
    return this.#inner.run({ ...step, query: Float32Array.from(summedQuery(this.#config, query, step.rows.length)) });
  }
}
