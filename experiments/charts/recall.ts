/**
 * How much attention a selection keeps, over M × bits × K × R × pooling: `deno task quality recall`.
 *
 * @module
 */

import { bold, type Command, runCommand } from "../cli.ts";
import { GRID_FLAGS, lineOf, percent, runGrid, writeRows } from "../quality_runs.ts";
import { curves, writeSvg } from "./charts.ts";

const COMMAND: Command = {
  name: "quality recall",
  summary: "Measures recall and attention kept by selections on a capture, over M, bits, K and re-ranking.",
  flags: {
    ...GRID_FLAGS,
    heavy: { ...GRID_FLAGS.heavy, default: "64,128,256" },
    refine: { ...GRID_FLAGS.refine, default: "1,4,8,16" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const { setups, rows } = await runGrid(args, false);
    const line = (cells: readonly (string | number)[]) =>
      cells.map((cell, ix) => String(cell).padStart([2, 5, 5, 3, 14, 11, 9, 11, 9, 9, 11, 9][ix])).join("");
    const head = [
      "M",
      "bits",
      "K",
      "R",
      "pooling",
      "bytes/key",
      "recall",
      "mass kept",
      "most",
      "window",
      "same len.",
      "recov.",
    ];
    for (const { input, steps, sinkSize, windowSize } of setups) {
      console.log(`${input}: ${steps} steps, sink ${sinkSize}, window ${windowSize}; means of all lists\n`);
      console.log(bold(line(head)));
      for (const row of rows.filter(({ capture }) => capture === input)) {
        const { subvectors, bits, heavySize, refine, pooling, bytesPerKey, quality } = row;
        const { recall, listMass, exactMass, windowMass, sameLengthWindowMass, recovered } = quality;
        const shares = [recall, listMass, exactMass, windowMass, sameLengthWindowMass, recovered].map(percent);
        console.log(line([subvectors, bits, heavySize, refine, pooling, bytesPerKey, ...shares]));
      }
      console.log();
    }
    console.log(
      "bytes/key: of codes per KV head as stored, one u8 per subvector; e08 keeps 4 more for postings\n" +
        "recall: of the exact top K; mass kept: attention on sink, heavy and window; most: with the\n" +
        "exact top K; window: on sink and window alone; same len.: on a window as long as the whole list;\n" +
        "recov.: share of what lies between window and most, heads weighted by what they can gain;\n" +
        "R: heavy tokens are the best by exact score of the R·K best by code",
    );
    await writeRows(args, setups, rows);
    // One K, so that lines differ in little: the middle one.
    const heavies = [...new Set(rows.map(({ heavySize }) => heavySize))].sort((a, b) => a - b);
    const middle = heavies[Math.floor((heavies.length - 1) / 2)];
    const points = rows.filter(({ heavySize }) => heavySize === middle).map((row) => ({
      x: row.bits,
      y: row.quality.recovered,
      line: lineOf(row, setups.length > 1),
    })).filter(({ y }) => !Number.isNaN(y));
    const heading = {
      title: "Attention recovered of what heavy tokens can add",
      subtitle: [`${setups.map(({ input }) => input).join(", ")}; ${setups[0].steps} steps, K ${middle}`],
    };
    const x = { title: "bits per code" }, y = { title: "share", format: ".0%" };
    await writeSvg(args.text("out"), curves(heading, points, x, y));
    return 0;
  });
}
