/**
 * Draws the README's picture from committed results: every iteration at the seed configuration, beside PyTorch and Triton
 * on the same GPU. `deno task picture`; with `--check` it writes nothing and exits 1 if the picture is stale.
 *
 * @module
 */

import { committedPeers, committedResults } from "../../bench/report.ts";
import { SEED_WORKLOAD } from "../inputs/workload.ts";
import { bars, renderSvg } from "./charts.ts";

const PICTURE = new URL("iterations.svg", import.meta.url);

/** The picture as SVG. */
export async function picture(): Promise<string> {
  const { report } = (await committedResults()).findLast(({ report }) => !report.provenance.software)!;
  const seed = report.rows.filter((row) => row.factor === "N" && row.value === SEED_WORKLOAD.tokens && row.gpuUs);
  const peers = (await committedPeers()).findLast(({ report }) => report.rows.some(({ peer }) => peer.includes("triton")))!;
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
  return await renderSvg(bars(
    {
      title: `GPU time of one decode step of the index, ${adapter}`,
      subtitle: [
        "32 heads of width 128, 32,000 tokens, M 2, 6 bits, K 128, weights; every result checked before it was timed",
        `driver ${driver}; ${date.slice(0, 10)}`,
      ],
    },
    rows,
    "µs",
  ));
}

if (import.meta.main) {
  const fresh = await picture(), old = await Deno.readTextFile(PICTURE).catch(() => "");
  if (fresh === old) {
    console.error("iterations.svg is fresh");
  } else if (Deno.args.includes("--check")) {
    console.error("experiments/charts/iterations.svg is stale: run `deno task picture`");
    Deno.exit(1);
  } else {
    await Deno.writeTextFile(PICTURE, fresh);
    console.error("experiments/charts/iterations.svg written");
  }
}
