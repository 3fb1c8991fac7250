/**
 * Does a codebook of the first keys serve a text that goes on? `deno task quality drift`: trained on the first T keys, all others
 * appended, against one that is trained on all of them.
 *
 * @module
 */

import { bold, type Command, runCommand } from "../cli.ts";
import type { Quality } from "../quality.ts";
import { beginRun, configFor, measureQuality, percent, QUALITY_FLAGS, trainOn, writeRows } from "../quality_runs.ts";
import { curves, writeSvg } from "./charts.ts";

/** One codebook. */
export interface DriftRow {
  /** Keys that it was trained on, the first ones. */
  readonly trainedOn: number;
  /** Keys cached before the steps. */
  readonly tokens: number;
  readonly quality: Quality;
}

const COMMAND: Command = {
  name: "quality drift",
  summary: "Measures how selections suffer from a codebook that was trained on the first keys only.",
  flags: {
    ...QUALITY_FLAGS,
    subvectors: { value: "M", help: "subvectors per key", default: "8" },
    bits: { value: "N", help: "bits per code, 1 to 8", default: "8" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const subvectors = args.integer("subvectors", 1, 4096), bits = args.integer("bits", 1, 8);
    const [heavySize] = args.integers("heavy", 1, 4096);
    const { setup, progress } = await beginRun(args, [subvectors]);
    const config = configFor(setup, { subvectors, bits, heavySize });
    const prompt = setup.capture.tokens - setup.steps;
    // From the fewest that 2^bits centroids can be trained on; the last is the codebook that is refreshed.
    const least = Math.max(1024, 2 ** bits + setup.sinkSize);
    const trained = [...Array.from({ length: 20 }, (_, k) => least * 2 ** k).filter((t) => t < prompt), prompt];
    const rows: DriftRow[] = [];
    progress.phase("train and replay");
    for (const [ix, trainedOn] of trained.entries()) {
      progress.update(ix, trained.length);
      const { all } = await measureQuality(setup, config, trainOn(setup, config, trainedOn));
      rows.push({ trainedOn, tokens: prompt, quality: all });
    }
    progress.done();
    console.log(
      `${setup.input}: M ${subvectors}, ${bits} bits, K ${heavySize}; the last ${setup.steps} of ${setup.capture.tokens} tokens\n`,
    );
    const line = (cells: readonly string[]) => cells.map((cell, ix) => cell.padStart([12, 12, 12, 12][ix])).join("");
    console.log(bold(line(["trained on", "recall", "mass kept", "recovered"])));
    for (const { trainedOn, quality } of rows) {
      const shares = [quality.recall, quality.listMass, quality.recovered].map(percent);
      console.log(line([trainedOn.toLocaleString("en"), ...shares]) + (trainedOn === prompt ? "  all: refreshed" : ""));
    }
    await writeRows(args, [setup], rows);
    const refreshed = rows.at(-1)!.quality;
    const points = rows.flatMap(({ trainedOn, quality }) => [
      { x: trainedOn, y: quality.recovered, line: "frozen: trained on the first T keys" },
      { x: trainedOn, y: refreshed.recovered, line: "refreshed: trained on all" },
    ]);
    const heading = {
      title: "A codebook of the first keys",
      subtitle: [`${setup.input}, M ${subvectors}, ${bits} bits, K ${heavySize}`],
    };
    const x = { title: "T, keys that it was trained on", log: true, format: "~s" };
    await writeSvg(args.text("out"), curves(heading, points, x, { title: "attention recovered", format: ".0%" }));
    return 0;
  });
}
