/**
 * From how many cached tokens on does an index pay, drawn: `deno task crossover`.
 *
 * @module
 */

import { type Command, runCommand } from "../cli.ts";
import { COMMAND, runCrossover } from "../crossover.ts";
import { curves, writeSvg } from "./charts.ts";

const DRAWN: Command = {
  ...COMMAND,
  flags: { ...COMMAND.flags, out: { value: "FILE", help: "the picture, an SVG", default: "crossover.svg" } },
};

if (import.meta.main) {
  await runCommand(DRAWN, async (args) => {
    const { rows, provenance, pipeline, steps } = await runCrossover(args);
    const lines = {
      "dense attention": "denseUs",
      "index + sparse attention": "bothUs",
      "the same with training": "withTrainingUs",
    } as const;
    const points = Object.entries(lines).flatMap(([line, of]) =>
      rows.map((row) => ({ x: row.tokens, y: row[of], line }))
    );
    const heading = {
      title: "When does an index pay?",
      subtitle: [`${provenance.adapter}, pipeline ${pipeline}, f16 keys and values; a training serves ${steps} steps`],
    };
    const x = { title: "N, cached tokens", log: true, format: ".3~s" };
    const y = { title: "µs per layer and step", log: true, format: "~s" };
    await writeSvg(args.text("out"), curves(heading, points, x, y));
    return 0;
  });
}
