/**
 * Notebooks: `deno task notebooks` opens JupyterLab, `deno task notebooks:run` executes all of them headlessly and
 * refreshes their outputs, both after making a Python environment in `.venv/` with what they need.
 *
 *     deno run -A tools/notebooks.ts open | run | check [--small] [--only NAME]
 *
 * `run --small` executes at reduced size and writes nothing; `check` type-checks the cells.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "@std/cli/parse-args";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FOLDER = `${ROOT}notebooks/`;
const VENV = `${ROOT}.venv`;
/** Versions that were tried; JupyterLab 4 draws Vega-Lite up to 5. */
const PACKAGES = ["jupyterlab==4.6.6", "nbclient==0.11.0"];
/** Changes when the environment must be made anew. */
const STAMP = `${VENV}/pq-indexer.txt`;

/** A failure that needs no stack. */
class SetupError extends Error {}

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
  const wanted = PACKAGES.join("\n");
  if (await Deno.readTextFile(STAMP).catch(() => "") !== wanted) {
    console.error(`setup: making .venv with ${PACKAGES.join(" and ")} (about half a minute) …`);
    const make = ["-m", "venv", VENV];
    if (!await run("python3", make)) {
      // Debian and Ubuntu keep venv in a package of its own.
      const canInstall = Deno.build.os === "linux" && Deno.uid() === 0;
      if (
        !canInstall || !await run("apt-get", ["install", "-y", "-qq", "python3-venv"]) || !await run("python3", make)
      ) {
        throw new SetupError(
          "Cannot make a Python environment as python3 with venv must be there: install it, on Debian and Ubuntu with " +
            "`sudo apt-get install -y python3-venv`",
        );
      }
    }
    if (!await run(`${VENV}/bin/pip`, ["install", "--quiet", ...PACKAGES])) {
      throw new SetupError(`Cannot install ${PACKAGES.join(" ")} with pip: its output is above`);
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
  for await (const { name } of Deno.readDir(FOLDER)) if (name.endsWith(".ipynb")) names.push(name);
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

if (import.meta.main) {
  const usage = "usage: deno task notebooks | deno task notebooks:run [--small] [--only NAME]";
  const args = parseArgs(Deno.args, { boolean: ["small", "help"], string: ["only"] });
  const [command] = args._;
  if (args.help) {
    console.log(usage);
    Deno.exit(0);
  }
  const all = await notebookNames();
  const names = all.filter((name) => args.only === undefined || name.includes(args.only));
  if (names.length === 0 || !["open", "run", "check"].includes(String(command))) {
    console.error(
      names.length === 0 ? `error: Cannot find ${args.only} as the notebooks are ${all.join(", ")}` : usage,
    );
    Deno.exit(2);
  }
  try {
    const done = command === "open"
      ? await open()
      : command === "run"
      ? await execute(names, args.small)
      : await check(names);
    Deno.exit(done ? 0 : 1);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.error(`error: ${error.message}`);
    Deno.exit(1);
  }
}
