/**
 * Exact re-ranking of the CPU pipeline's shortlists.
 *
 * @module
 */

import { shortRow } from "../../../kernels/refine/refine_list.ts";
import type { Capacity, ResolvedConfig } from "../../config.ts";
import { bestExact } from "../../reference.ts";
import { Selection, type SelectionData } from "../../selection.ts";
import { hostArray, type Layer, type LayerStep } from "../pipeline.ts";

/** A layer whose lists are the best of those of a layer that makes shortlists. */
export class RefinedLayer implements Layer {
  readonly operations: readonly string[];
  readonly maxKeyBytes: number;
  readonly #short: Layer;
  readonly #config: ResolvedConfig;
  readonly #weights: boolean;
  #capacity: Capacity | undefined;

  /** @param short makes lists whose heavy tokens are the shortlist; without weights */
  constructor(short: Layer, config: ResolvedConfig, weights: boolean) {
    this.#short = short;
    this.#config = config;
    this.#weights = weights;
    this.operations = [...short.operations, "refine"];
    this.maxKeyBytes = short.maxKeyBytes;
  }

  reserve(capacity: Capacity, nCoded: number): Promise<void> {
    this.#capacity = capacity;
    return this.#short.reserve({ ...capacity, heavy: capacity.short, list: capacity.shortList }, nCoded);
  }

  setCodebook: Layer["setCodebook"] = (codebook) => this.#short.setCodebook(codebook);
  importCodes: Layer["importCodes"] = (codes, n) => this.#short.importCodes(codes, n);
  exportCodes: Layer["exportCodes"] = (n) => this.#short.exportCodes(n);
  check: Layer["check"] = (step) => this.#short.check(step);
  settle: Layer["settle"] = () => this.#short.settle();
  dispatches: Layer["dispatches"] = () => 0;
  bytesMoved: Layer["bytesMoved"] = () => 0;
  destroy: Layer["destroy"] = () => this.#short.destroy();

  record(target: Parameters<Layer["record"]>[0], step: LayerStep): Selection | undefined {
    return this.#short.record(target, step); // refuses
  }

  async run(step: LayerStep): Promise<Selection | undefined> {
    const rows = step.rows.map(shortRow);
    const selection = await this.#short.run({ ...step, rows });
    if (!selection) return undefined;
    const short = await selection.read();
    const lists = this.#config.shape.batch * this.#config.shape.heads * rows.length;
    const listStride = Math.max(1, this.#capacity!.list), weightStride = this.#capacity!.tokens;
    const indices = new Uint32Array(lists * listStride), lengths = new Uint32Array(lists);
    const weights = this.#weights ? new Float32Array(lists * weightStride) : undefined;
    const query = hostArray("cpu", "query", step.query);
    const needsKeys = step.rows.some((row) => row.nHeavy > 0);
    const keys = needsKeys ? hostArray("cpu", "cached keys", step.keys) : new Float32Array(0);
    for (let list = 0; list < lists; list++) {
      const row = step.rows[list % step.rows.length], shortRow = rows[list % rows.length];
      const at = list * short.listStride;
      const all = short.indices.subarray(at, at + short.lengths[list]);
      const heavyEnd = row.nSink + shortRow.nHeavy;
      const shortlist = [...all.subarray(row.nSink, heavyEnd)];
      const heavy = bestExact(
        this.#config.shape,
        query,
        keys,
        step.keyStride ?? 0,
        list,
        rows.length,
        shortlist,
        row.nHeavy,
      );
      const tokens = [...all.subarray(0, row.nSink), ...heavy, ...all.subarray(heavyEnd)];
      indices.set(tokens, list * listStride);
      lengths[list] = tokens.length;
      for (const token of tokens) if (weights) weights[list * weightStride + token] = 1;
    }
    const data: SelectionData = { indices, lengths, weights, listStride, weightStride };
    return new Selection(this.#config.shape, rows.length, data, undefined, async () => {
      await selection.read(); // refuses if a later call has replaced it
      return data;
    });
  }
}
