/**
 * Which distance should code the keys, Euclidean or the one that is made for inner products? `deno task quality metric`.
 *
 * @module
 */

import { bold, type Command, runCommand } from "../cli.ts";
import type { Quality } from "../quality.ts";
import type { Metric } from "../../indexer/config.ts";
import { beginRun, configFor, measureQuality, percent, QUALITY_FLAGS, trainOn, writeRows } from "../quality_runs.ts";
import { curves, writeSvg } from "./charts.ts";

/** One combination. */
export interface MetricRow {
  readonly metric: Metric;
  readonly subvectors: number;
  readonly bits: number;
  readonly quality: Quality;
}

const COMMAND: Command = {
  name: "quality metric",
  summary: 'Compares codes by metric "euclidean" with codes by metric "ip" on a capture.',
  flags: {
    ...QUALITY_FLAGS,
    subvectors: { value: "M,…", help: "subvectors per key", default: "2,4,8" },
    bits: { value: "N", help: "bits per code, 1 to 8", default: "8" },
  },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const all = args.integers("subvectors", 1, 4096), bits = args.integer("bits", 1, 8);
    const [heavySize] = args.integers("heavy", 1, 4096);
    const { setup, progress } = await beginRun(args, all);
    const rows: MetricRow[] = [];
    progress.phase("train and replay");
    for (const [ix, subvectors] of all.entries()) {
      for (const [nth, metric] of (["euclidean", "ip"] as const).entries()) {
        progress.update(2 * ix + nth, 2 * all.length);
        const config = configFor(setup, { subvectors, bits, heavySize, metric });
        const codebook = trainOn(setup, config, setup.capture.tokens - setup.steps);
        rows.push({ metric, subvectors, bits, quality: (await measureQuality(setup, config, codebook)).all });
      }
    }
    progress.done();
    console.log(`${setup.input}: ${bits} bits, K ${heavySize}, ${setup.steps} steps\n`);
    const line = (cells: readonly (string | number)[]) =>
      cells.map((cell, ix) => String(cell).padStart([3, 12, 12, 12, 12][ix])).join("");
    console.log(bold(line(["M", "metric", "recall", "mass kept", "recovered"])));
    for (const { metric, subvectors, quality } of rows) {
      console.log(line([subvectors, metric, ...[quality.recall, quality.listMass, quality.recovered].map(percent)]));
    }
    await writeRows(args, [setup], rows);
    const points = rows.map(({ metric, subvectors, quality }) => ({
      x: subvectors,
      y: quality.recovered,
      line: metric,
    }));
    const heading = {
      title: "Euclidean codes against codes for inner products",
      subtitle: [`${setup.input}, ${bits} bits, K ${heavySize}`],
    };
    const x = { title: "M, subvectors", log: true };
    await writeSvg(args.text("out"), curves(heading, points, x, { title: "attention recovered", format: ".0%" }));
    return 0;
  });
}
