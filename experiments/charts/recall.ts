/**
 * How much attention a selection keeps, over M × bits × K: `deno task recall`.
 *
 * @module
 */

import { bold, type Command, runCommand } from "../cli.ts";
import { GRID_FLAGS, percent, runGrid, writeRows } from "../quality_runs.ts";
import { curves, writeSvg } from "./charts.ts";

const COMMAND: Command = {
  name: "recall",
  summary: "Measures recall and attention kept by selections on a capture, over M, bits and K.",
  flags: {
    ...GRID_FLAGS,
    heavy: { ...GRID_FLAGS.heavy, default: "64,128,256" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const { setup, rows } = await runGrid(args, false);
    console.log(
      `${setup.input}: ${setup.steps} steps, sink ${setup.sinkSize}, window ${setup.windowSize}; means of all lists\n`,
    );
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
    await writeRows(args, setup, rows);
    const points = rows.map(({ subvectors, heavySize, bitsPerKey, quality }) => ({
      x: bitsPerKey,
      y: quality.recovered,
      line: `M ${subvectors}, K ${heavySize}`,
    })).filter(({ y }) => !Number.isNaN(y));
    const heading = {
      title: "Attention recovered of what heavy tokens can add",
      subtitle: [`${setup.input}, ${setup.steps} steps`],
    };
    const x = { title: "bits per key and KV head", log: true }, y = { title: "share", format: ".0%" };
    await writeSvg(args.text("out"), curves(heading, points, x, y));
    return 0;
  });
}
