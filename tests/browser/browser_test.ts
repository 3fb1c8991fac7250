import { assert, assertEquals } from "@std/assert";
import { PIPELINES } from "../../indexer/pipelines/mod.ts";
import { ROOT } from "../support.ts";
import { findChromium, inChromium } from "../../tools/chromium.ts";
import type { Report } from "./page.ts";

const program = await findChromium();
if (!program && Deno.env.get("BROWSER_REQUIRED") === "1") {
  throw new Error(
    "Cannot test in a browser as Chromium is not installed: sudo apt-get install -y chromium (Debian), or set CHROMIUM " +
      "to the path of a Chromium of your own",
  );
}

Deno.test({
  name:
    "in Chromium: every WGSL text (f16 where there is f16) compiles with its enable lines, and a step of every pipeline is right",
  ignore: !program,
  fn: async () => {
    const options = { root: ROOT.replace(/\/$/, ""), entry: "tests/browser/page.ts", timeoutMs: 240_000 };
    const { adapter, texts, without, withSubgroups, messages, ran, problems } = await inChromium<Report>(
      program!,
      options,
    );
    assert(/swiftshader/i.test(adapter), adapter);
    assertEquals(messages, []);
    assertEquals(problems, []);
    assert(texts > 25 && withSubgroups > 5, `${texts} texts, ${withSubgroups} with subgroups`);
    assert(without.every((kernel) => kernel === "score_tiles"), `left out without f16: ${without}`);
    const ids = PIPELINES.filter(({ runsOn }) => runsOn === "gpu").map(({ id }) => id);
    assertEquals(Object.keys(ran), [...ids, "e07 long"]);
    assertEquals([ran.e07, ran["e07 long"]], [2, 2]);
  },
});

Deno.test({
  name: "in Chromium: what a page throws reaches the test",
  ignore: !program,
  fn: async () => {
    const folder = await Deno.makeTempDir({ prefix: "pq-indexer-" });
    try {
      await Deno.writeTextFile(
        `${folder}/broken.ts`,
        'export const main = (): never => { throw new Error("as meant"); };',
      );
      const failure = await inChromium(program!, { root: folder, entry: "broken.ts" }).catch((error: Error) => error);
      assert(failure instanceof Error && failure.message.includes("as meant"), String(failure));
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
