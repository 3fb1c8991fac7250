/**
 * How much attention a selection keeps, over M × bits × K: `deno task recall`.
 *
 * @module
 */

import { bold, type Command, prepareOutput, Progress, runCommand, UsageError } from "../cli.ts";
import type { Quality } from "../quality.ts";
import {
  configFor,
  integersOf,
  measureQuality,
  percent,
  QUALITY_FLAGS,
  qualityProvenance,
  setupFrom,
  trainOn,
} from "../quality_runs.ts";
import { curves, renderSvg } from "./charts.ts";

/** One combination. */
export interface RecallRow {
  readonly subvectors: number;
  readonly bits: number;
  readonly heavySize: number;
  /** Bits that the codes of a key say, per KV head. */
  readonly bitsPerKey: number;
  /** Bytes that they take as they are stored, a byte per code. */
  readonly bytesPerKey: number;
  readonly quality: Quality;
  readonly byHead: readonly Quality[];
}

const COMMAND: Command = {
  name: "recall",
  summary: "Measures recall and attention kept by selections on a capture, over M, bits and K.",
  flags: {
    ...QUALITY_FLAGS,
    heavy: { ...QUALITY_FLAGS.heavy, default: "64,128,256" },
    subvectors: { value: "M,…", help: "subvectors per key", default: "2,4,8" },
    bits: { value: "N,…", help: "bits per code, 1 to 8", default: "4,6,8" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const all = integersOf(args, "subvectors", 1, 4096), bits = integersOf(args, "bits", 1, 8);
    const heavies = integersOf(args, "heavy", 0, 4096);
    for (const file of ["json", "out"]) await prepareOutput(args.text(file));
    const progress = new Progress();
    progress.phase("load the capture");
    const setup = await setupFrom(args);
    const odd = all.find((subvectors) => setup.capture.headWidth % subvectors !== 0);
    if (odd !== undefined) {
      throw new UsageError(`Cannot use --subvectors ${odd} as it must divide the capture's width ${setup.capture.headWidth}`);
    }
    const rows: RecallRow[] = [];
    progress.phase("train and replay");
    let done = 0;
    for (const subvectors of all) {
      for (const each of bits) {
        const codebook = trainOn(
          setup,
          configFor(setup, { subvectors, bits: each, heavySize: 1 }),
          setup.capture.tokens - setup.steps,
        );
        for (const heavySize of heavies) {
          progress.update(done++, all.length * bits.length * heavies.length);
          const config = configFor(setup, { subvectors, bits: each, heavySize });
          const { all: quality, byHead } = await measureQuality(setup, config, codebook);
          const bitsPerKey = subvectors * each;
          rows.push({ subvectors, bits: each, heavySize, bitsPerKey, bytesPerKey: subvectors, quality, byHead });
        }
      }
    }
    progress.done();
    console.log(`${setup.input}: ${setup.steps} steps, sink ${setup.sinkSize}, window ${setup.windowSize}; means of all lists\n`);
    const line = (cells: readonly (string | number)[]) =>
      cells.map((cell, ix) => String(cell).padStart([3, 6, 6, 10, 10, 12, 12, 12][ix])).join("");
    console.log(bold(line(["M", "bits", "K", "bits/key", "recall", "mass kept", "most", "recovered"])));
    for (const { subvectors, bits, heavySize, bitsPerKey, quality } of rows) {
      const { recall, listMass, exactMass, recovered } = quality;
      const shares = [recall, listMass, exactMass, recovered].map(percent);
      console.log(line([subvectors, bits, heavySize, bitsPerKey, ...shares]));
    }
    console.log(
      "\nrecall: of the exact top K; mass kept: attention on sink, heavy and window; most: with the\n" +
        "exact top K; recovered: of what heavy tokens can add, heads weighted by what they can gain",
    );
    const json = args.text("json"), out = args.text("out");
    if (json) await Deno.writeTextFile(json, JSON.stringify({ rows, provenance: await qualityProvenance(setup) }, null, 1) + "\n");
    if (out) {
      const points = rows.map(({ subvectors, heavySize, bitsPerKey, quality }) => ({
        x: bitsPerKey,
        y: quality.recovered,
        line: `M ${subvectors}, K ${heavySize}`,
      })).filter(({ y }) => !Number.isNaN(y));
      const heading = { title: "Attention recovered of what heavy tokens can add", subtitle: [`${setup.input}, ${setup.steps} steps`] };
      const x = { title: "bits per key and KV head", log: true }, y = { title: "share", format: ".0%" };
      await Deno.writeTextFile(out, await renderSvg(curves(heading, points, x, y)));
      console.log(`written: ${out}`);
    }
    return 0;
  });
}
