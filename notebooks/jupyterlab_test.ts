import { assert, assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { chromium, type Page } from "playwright-core";
import { findChromium } from "../tools/chromium.ts";
import { setup } from "../tools/notebooks.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const program = await findChromium();
if (!program && Deno.env.get("BROWSER_REQUIRED") === "1") {
  throw new Error(
    "Cannot test notebooks in a browser as Chromium is not installed: deno run -A tools/setup.ts --browser",
  );
}

/** The notebook that is run, beside the others, as its imports say; the name is one that git ignores. */
const COPY = "_browser_test.ipynb";

/** A copy without outputs and counts: what is seen afterwards was made by this run. */
async function writeCopy(): Promise<void> {
  const notebook = JSON.parse(await Deno.readTextFile(`${ROOT}notebooks/00_why.ipynb`));
  for (const cell of notebook.cells) {
    if (cell.cell_type === "code") Object.assign(cell, { outputs: [], execution_count: null });
  }
  await Deno.writeTextFile(`${ROOT}notebooks/${COPY}`, JSON.stringify(notebook));
}

/** Starts JupyterLab; returns the address of the copy and how to stop it. */
async function startLab(): Promise<{ url: string; stop: () => Promise<void> }> {
  const token = crypto.randomUUID(), own = await Deno.makeTempDir({ prefix: "pq-indexer-" });
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  listener.close();
  const lab = new Deno.Command(`${ROOT}.venv/bin/jupyter`, {
    args: [
      "lab",
      "--no-browser",
      "--allow-root",
      "--ip=127.0.0.1",
      `--port=${port}`,
      `--notebook-dir=${ROOT}`,
      `--IdentityProvider.token=${token}`,
      "--LabApp.news_url=",
    ],
    env: {
      NOTEBOOK_SIZE: "small",
      XDG_RUNTIME_DIR: "/tmp",
      // Nothing of the person's own: JupyterLab opens what was open before.
      JUPYTER_CONFIG_DIR: own,
      JUPYTERLAB_SETTINGS_DIR: own,
      JUPYTERLAB_WORKSPACES_DIR: own,
    },
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  const at = `http://127.0.0.1:${port}`;
  for (let k = 0; k < 120; k++) {
    const isUp = await fetch(`${at}/api`).then((response) => response.text()).then(() => true, () => false);
    if (isUp) break;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  return {
    url: `${at}/lab/tree/notebooks/${COPY}?token=${token}`,
    stop: async () => {
      lab.kill("SIGINT");
      lab.kill("SIGTERM");
      await lab.status;
      await Deno.remove(own, { recursive: true });
    },
  };
}

/** Runs every cell by the menu and waits until none is running. */
async function runAll(page: Page): Promise<void> {
  await page.getByRole("menuitem", { name: "Run", exact: true }).click();
  await page.getByText("Restart Kernel and Run All Cells…", { exact: false }).first().click();
  await page.locator(".jp-Dialog .jp-mod-accept").click();
}

Deno.test({
  name: "JupyterLab in Chromium: cells run, charts are interactive Vega views, tables are tables",
  ignore: !program,
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    await setup();
    await writeCopy();
    const lab = await startLab();
    const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
    try {
      // So high that JupyterLab, which draws only what is in view, draws all cells.
      const page = await browser.newPage({ viewport: { width: 1400, height: 6000 } });
      await page.goto(lab.url);
      await page.locator(".jp-Notebook").waitFor({ timeout: 60_000 });
      await page.locator(".jp-Notebook .jp-CodeCell").first().waitFor();
      await runAll(page);
      // The last cell's table, freshly made: its prompt has a number again when it has run.
      const cells = page.locator(".jp-Notebook .jp-CodeCell");
      await page.waitForFunction(
        `(() => {
          const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")];
          return prompts.length > 4 && prompts.every(({ textContent }) => /\\[\\d+\\]/.test(textContent));
        })()`,
        undefined,
        { timeout: 60_000 },
      );
      const bad = ["error", "stderr"].map((kind) =>
        `.jp-RenderedText[data-mime-type="application/vnd.jupyter.${kind}"]`
      );
      assertEquals(await cells.locator(bad.join(", ")).allTextContents(), []);
      const charts = page.locator(".jp-RenderedVegaCommon5 .vega-embed");
      await charts.first().waitFor({ timeout: 60_000 });
      assert(await charts.count() >= 3, `${await charts.count()} charts`);
      // An interactive view has a canvas or SVG with marks and the menu of vega-embed; a picture has neither.
      assert(await charts.first().locator("canvas, svg.marks").count() >= 1, "a drawn view");
      assert(await charts.first().locator("details, .vega-actions").count() >= 1, "vega-embed's menu");
      const table = page.locator(".jp-RenderedMarkdown table").last();
      assertEquals(await table.locator("tbody tr").count(), 4);
      assert((await table.locator("td").allTextContents()).every((text) => text !== "" && text !== "NaN"));
      const folder = Deno.env.get("SCREENSHOTS");
      if (folder) await page.screenshot({ path: `${folder}/jupyterlab.png` });
    } catch (error) {
      const folder = Deno.env.get("SCREENSHOTS"), [page] = browser.contexts()[0]?.pages() ?? [];
      if (folder && page) await page.screenshot({ path: `${folder}/failed.png` });
      throw error;
    } finally {
      await browser.close();
      await lab.stop();
      await Deno.remove(`${ROOT}notebooks/${COPY}`);
    }
  },
});
