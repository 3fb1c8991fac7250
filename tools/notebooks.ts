/**
 * Notebooks: `deno task notebooks` opens JupyterLab, `deno task notebooks run` executes all of them headlessly and
 * refreshes their outputs, both after making a Python environment in `.venv/` with what they need.
 *
 *     deno run -A tools/notebooks.ts open | run | check [--small] [--only NAME]
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { type Command, runCommand, UsageError } from "../experiments/cli.ts";
import { setupAdapter } from "./setup.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FOLDER = `${ROOT}notebooks/`;
const VENV = `${ROOT}.venv`;
/** Versions that were tried; JupyterLab 4 draws Vega-Lite up to 5. */
const PACKAGES = ["jupyterlab==4.6.6", "nbclient==0.11.0"];
/** Changes when the environment must be made anew. */
const STAMP = `${VENV}/pq-indexer.txt`;

async function run(program: string, args: readonly string[], quiet = true): Promise<boolean> {
  try {
    const stdio = quiet ? "piped" : "inherit";
    const command = new Deno.Command(program, { args: [...args], stdin: "null", stdout: stdio, stderr: stdio });
    const { success, stdout, stderr } = await command.output() as Deno.CommandOutput;
    if (!success && quiet) {
      Deno.stderr.writeSync(stdout);
      Deno.stderr.writeSync(stderr);
    }
    return success;
  } catch {
    return false;
  }
}

/** Makes `.venv/` with JupyterLab and the Deno kernel, unless it is there. */
export async function setup(): Promise<void> {
  // Scripts in an environment hold its path, so one that was moved is made anew.
  const wanted = [VENV, ...PACKAGES].join("\n");
  const isThere = await Deno.readTextFile(STAMP).catch(() => "") === wanted;
  if (!isThere || !await run(`${VENV}/bin/jupyter`, ["--version"])) {
    await Deno.remove(VENV, { recursive: true }).catch(() => {});
    console.error(`setup: making .venv with ${PACKAGES.join(" and ")} (about half a minute) …`);
    const make = ["-m", "venv", VENV];
    if (!await run("python3", make)) {
      // Debian and Ubuntu keep venv in a package of its own.
      const canInstall = Deno.build.os === "linux" && Deno.uid() === 0;
      if (
        !canInstall || !await run("apt-get", ["install", "-y", "-qq", "python3-venv"]) || !await run("python3", make)
      ) {
        throw new Error(
          "Cannot make a Python environment as python3 with venv must be there: install it, on Debian and Ubuntu with " +
            "`sudo apt-get install -y python3-venv`",
        );
      }
    }
    if (!await run(`${VENV}/bin/pip`, ["install", "--quiet", ...PACKAGES])) {
      throw new Error(`Cannot install ${PACKAGES.join(" ")} with pip: its output is above`);
    }
    await Deno.writeTextFile(STAMP, wanted);
  }
  const kernel = `${VENV}/share/jupyter/kernels/deno`;
  await Deno.mkdir(kernel, { recursive: true });
  await Deno.writeTextFile(
    `${kernel}/kernel.json`,
    JSON.stringify({
      argv: [Deno.execPath(), "jupyter", "--quiet", "--kernel", "--conn", "{connection_file}"],
      display_name: "Deno",
      language: "typescript",
      env: {
        DENO_WEBGPU_BACKEND: "vulkan,metal,dx12",
        NODE_OPTIONS: "--no-warnings",
        NO_COLOR: "1",
        XDG_RUNTIME_DIR: Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp",
      },
    }),
  );
}

/** Names of the notebooks, in order. */
export async function notebookNames(): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(FOLDER)) if (/^[^_].*\.ipynb$/.test(name)) names.push(name);
  return names.sort();
}

interface Cell {
  readonly cell_type: string;
  readonly source: string | readonly string[];
}

/** The code of a notebook as one module. */
export async function codeOf(name: string): Promise<string> {
  const { cells } = JSON.parse(await Deno.readTextFile(FOLDER + name)) as { cells: readonly Cell[] };
  const text = ({ source }: Cell) => typeof source === "string" ? source : source.join("");
  return cells.filter(({ cell_type }) => cell_type === "code").map(text).join("\n\n") + "\n\nexport {};\n";
}

/** Type-checks the cells of notebooks, each as a module beside it. */
async function check(names: readonly string[]): Promise<boolean> {
  const paths: string[] = [];
  try {
    for (const name of names) {
      const path = `${FOLDER}_${name.replace(/\.ipynb$/, ".ts")}`;
      await Deno.writeTextFile(path, await codeOf(name));
      paths.push(path);
    }
    const options = { args: ["check", "--quiet", "--config", `${FOLDER}deno.json`, ...paths] };
    return (await new Deno.Command(Deno.execPath(), options).spawn().status).success;
  } finally {
    for (const path of paths) await Deno.remove(path);
  }
}

/** Executes notebooks by the real kernel; progress goes to stderr. */
async function execute(names: readonly string[], small: boolean): Promise<boolean> {
  await setup();
  const args = [`${ROOT}tools/run_notebooks.py`, ...(small ? [] : ["--write"]), ...names.map((name) => FOLDER + name)];
  const env = { NOTEBOOK_SIZE: small ? "small" : "full" };
  return (await new Deno.Command(`${VENV}/bin/python`, { args, env }).spawn().status).success;
}

async function open(): Promise<boolean> {
  await setup();
  const args = ["lab", "--notebook-dir", FOLDER, ...(Deno.uid() === 0 ? ["--allow-root"] : [])];
  return (await new Deno.Command(`${VENV}/bin/jupyter`, { args }).spawn().status).success;
}

const COMMAND: Command = {
  name: "notebooks run",
  summary:
    "Executes the notebooks by the real kernel and replaces their outputs. (deno task notebooks opens them instead.)",
  flags: {
    small: { value: "", help: "at reduced size, and leave the files as they are" },
    only: { value: "NAME", help: "only notebooks whose name contains this: 03" },
  },
  positional: "run | open | check (given by the tasks; check: types of the cells)",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const [command, ...more] = args.positional, only = args.text("only");
    if (more.length > 0 || !["open", "run", "check"].includes(command)) {
      throw new UsageError(`Cannot understand ${[command, ...more].join(" ")} as it must be one of open, run, check`);
    }
    if (command === "open" && (only !== undefined || args.has("small"))) {
      throw new UsageError(
        "Cannot open some of the notebooks, or small ones, as JupyterLab shows the folder: leave the flags out",
      );
    }
    const all = await notebookNames(), names = all.filter((name) => only === undefined || name.includes(only));
    if (names.length === 0) throw new UsageError(`Cannot find ${only} as the notebooks are ${all.join(", ")}`);
    if (command !== "check") await setupAdapter();
    const done = command === "open"
      ? await open()
      : command === "run"
      ? await execute(names, args.has("small"))
      : await check(names);
    return done ? 0 : 1;
  });
}
