/**
 * How much attention a selection keeps, over M × bits × K × R × pooling: `deno task recall`.
 *
 * @module
 */

import { bold, type Command, runCommand } from "../cli.ts";
import { GRID_FLAGS, percent, runGrid, writeRows } from "../quality_runs.ts";
import { curves, writeSvg } from "./charts.ts";

const COMMAND: Command = {
  name: "recall",
  summary: "Measures recall and attention kept by selections on a capture, over M, bits, K and re-ranking.",
  flags: {
    ...GRID_FLAGS,
    heavy: { ...GRID_FLAGS.heavy, default: "64,128,256" },
    refine: { ...GRID_FLAGS.refine, default: "1,4,8,16" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const { setup, rows } = await runGrid(args, false);
    console.log(
      `${setup.input}: ${setup.steps} steps, sink ${setup.sinkSize}, window ${setup.windowSize}; means of all lists\n`,
    );
    const line = (cells: readonly (string | number)[]) =>
      cells.map((cell, ix) => String(cell).padStart([3, 6, 6, 4, 14, 10, 10, 12, 12, 12][ix])).join("");
    console.log(bold(line(["M", "bits", "K", "R", "pooling", "bits/key", "recall", "mass kept", "most", "recovered"])));
    for (const { subvectors, bits, heavySize, refine, pooling, bitsPerKey, quality } of rows) {
      const { recall, listMass, exactMass, recovered } = quality;
      const shares = [recall, listMass, exactMass, recovered].map(percent);
      console.log(line([subvectors, bits, heavySize, refine, pooling, bitsPerKey, ...shares]));
    }
    console.log(
      "\nrecall: of the exact top K; mass kept: attention on sink, heavy and window; most: with the\n" +
        "exact top K; recovered: of what heavy tokens can add, heads weighted by what they can gain;\n" +
        "R: heavy tokens are the best by exact score of the R·K best by code",
    );
    await writeRows(args, setup, rows);
    // One K, so that lines differ in little: the middle one.
    const heavies = [...new Set(rows.map(({ heavySize }) => heavySize))].sort((a, b) => a - b);
    const middle = heavies[Math.floor((heavies.length - 1) / 2)];
    const points = rows.filter(({ heavySize }) => heavySize === middle).map(
      ({ subvectors, refine, pooling, bitsPerKey, quality }) => ({
        x: bitsPerKey,
        y: quality.recovered,
        line: `M ${subvectors}, R ${refine}${pooling === "perQueryHead" ? "" : `, ${pooling}`}`,
      }),
    ).filter(({ y }) => !Number.isNaN(y));
    const heading = {
      title: "Attention recovered of what heavy tokens can add",
      subtitle: [`${setup.input}, ${setup.steps} steps, K ${middle}`],
    };
    const x = { title: "bits per key and KV head", log: true }, y = { title: "share", format: ".0%" };
    await writeSvg(args.text("out"), curves(heading, points, x, y));
    return 0;
  });
}
