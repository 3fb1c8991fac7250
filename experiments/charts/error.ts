/**
 * How far is the output of sparse attention from that of dense attention, in f64, over M × bits × K: `deno task quality error`.
 *
 * @module
 */

import { bold, type Command, runCommand } from "../cli.ts";
import { GRID_FLAGS, lineOf, percent, runGrid, writeRows } from "../quality_runs.ts";
import { curves, writeSvg } from "./charts.ts";

const COMMAND: Command = {
  name: "quality error",
  summary: "Measures the error of attention over selections against dense attention on a capture.",
  flags: {
    ...GRID_FLAGS,
    heavy: { ...GRID_FLAGS.heavy, default: "128,512" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const { setups, rows } = await runGrid(args, true);
    const line = (cells: readonly (string | number)[]) =>
      cells.map((cell, ix) => String(cell).padStart([3, 6, 6, 4, 14, 12, 14, 16, 12][ix])).join("");
    for (const { input, steps, sinkSize, windowSize } of setups) {
      console.log(`${input}: ${steps} steps, sink ${sinkSize}, window ${windowSize}\n`);
      console.log(bold(line(["M", "bits", "K", "R", "pooling", "error", "exact top K", "sink + window", "cosine"])));
      for (const { subvectors, bits, heavySize, refine, pooling, quality } of rows.filter((r) => r.capture === input)) {
        const { listError, exactError, windowError, listCosine } = quality;
        const shares = [listError, exactError, windowError].map(percent);
        console.log(line([subvectors, bits, heavySize, refine, pooling, ...shares, listCosine.toFixed(4)]));
      }
      console.log();
    }
    console.log(
      "error: |o - o_dense| / |o_dense| of the attention output, mean of all heads and steps; exact\n" +
        "top K and sink + window: the same for these; cosine: of the output over the list and the dense one",
    );
    await writeRows(args, setups, rows);
    const least = Math.min(...rows.map(({ heavySize }) => heavySize)); // one K, so that lines differ in little
    const points = rows.filter(({ heavySize }) => heavySize === least).map((row) => ({
      x: row.bits,
      y: row.quality.listError,
      line: lineOf(row, setups.length > 1),
    }));
    const subtitle = [`${setups.map(({ input }) => input).join(", ")}; ${setups[0].steps} steps, K ${least}`];
    const heading = { title: "Error of the attention output", subtitle };
    const x = { title: "bits per code" }, y = { title: "relative L2 error", format: ".0%" };
    await writeSvg(args.text("out"), curves(heading, points, x, y));
    return 0;
  });
}
