/**
 * Draws the README's picture from committed results: every iteration at the seed configuration, beside PyTorch and Triton
 * on the same GPU. `deno task draw picture`.
 *
 * @module
 */

import { committedPeers, newestGpuResults } from "../../bench/report.ts";
import { type Command, runCommand, UsageError } from "../cli.ts";
import { SEED_WORKLOAD } from "../inputs/workload.ts";
import { dots, renderSvg } from "./charts.ts";

const PICTURE = new URL("iterations.svg", import.meta.url);

/** The picture as SVG. */
export async function picture(): Promise<string> {
  const { report } = await newestGpuResults();
  const seed = report.rows.filter((row) => row.factor === "N" && row.value === SEED_WORKLOAD.tokens && row.gpuUs);
  const peers = (await committedPeers()).findLast(({ report }) =>
    report.rows.some(({ peer }) => peer.includes("triton"))
  );
  if (!peers) {
    throw new UsageError("Cannot draw peers as bench/results/peers/ holds no run with Triton: deno task bench peers");
  }
  const theirs = peers.report.rows.filter(({ peer, gpuUs, tokens }) =>
    /torch|triton/.test(peer) && gpuUs !== null && tokens === SEED_WORKLOAD.tokens
  );
  const rows = [
    ...seed.map(({ id, title, gpuUs }) => ({
      name: `${id} ${title}`,
      value: gpuUs!.median,
      part: "this project, WebGPU: with its pass",
    })),
    ...theirs.map(({ peer, gpuUs }) => ({
      name: peer,
      value: gpuUs!,
      part: "PyTorch and Triton, CUDA graph: without a launch",
    })),
  ];
  const { adapter, driver, date } = report.provenance;
  return await renderSvg(dots(
    {
      title: `GPU time of one decode step of the index, ${adapter}`,
      subtitle: [
        "32 heads of width 128, 32,000 tokens, M 2, 6 bits, K 128, weights; every result checked before it was timed",
        `driver ${driver}; ${date.slice(0, 10)}`,
      ],
    },
    rows,
    "µs, logarithmic",
  ));
}

const COMMAND: Command = {
  name: "draw picture",
  summary: "Draws the README's picture from committed results.",
  flags: { check: { value: "", help: "write nothing, and exit 1 if the picture is stale" } },
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const fresh = await picture(), old = await Deno.readTextFile(PICTURE).catch(() => "");
    if (fresh === old) {
      console.error("iterations.svg is fresh");
      return 0;
    }
    if (args.has("check")) {
      console.error("experiments/charts/iterations.svg is stale: run `deno task draw picture`");
      return 1;
    }
    await Deno.writeTextFile(PICTURE, fresh);
    console.error("experiments/charts/iterations.svg written");
    return 0;
  });
}
