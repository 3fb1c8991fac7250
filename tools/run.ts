/**
 * Runs a task: `deno task NAME [SUBCOMMAND] [flags]`. The one list of what the tasks are.
 *
 * Gives the program its environment, and passes flags, streams and exit code through. Tasks that need a GPU tell the program
 * so by `PQ_INDEXER_SETUP=1`: it looks for an adapter, and installs one where it may, once its flags are checked.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { NO_INSTALL, NO_INSTALL_FLAG, setupAdapter, setupBrowser } from "./setup.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
/** For scripts that draw, whose npm packages are in a config of their own. */
const CHARTS = ["--quiet", "--config", "notebooks/deno.json"];

/** A program that a task runs. */
interface Program {
  /** What it does, in one line. */
  readonly summary: string;
  /** Arguments of `deno`; the task's own follow. */
  readonly deno: readonly string[];
  /** What it needs and may be installed. Before it starts, or by the program itself once it has checked its flags. */
  readonly needs?: "adapter once flags are read" | "adapter" | "browser";
  /** Its environment, beside that of all. */
  readonly env?: Readonly<Record<string, string>>;
}

const GPU = "adapter once flags are read";
const script = (summary: string, path: string, needs?: Program["needs"]): Program => ({
  summary,
  deno: ["run", "-A", path],
  needs,
});
const chart = (summary: string, name: string, needs?: Program["needs"]): Program => ({
  summary,
  deno: ["run", "-A", ...CHARTS, `experiments/charts/${name}.ts`],
  needs,
  env: { NODE_OPTIONS: "--no-warnings" },
});

/** Tasks: a program, or programs by subcommand, of which the first is the default. */
export const TASKS: Readonly<Record<string, Program | Readonly<Record<string, Program>>>> = {
  walkthrough: script("64 decode steps of a real layer through every iteration", "experiments/walkthrough.ts", GPU),
  verify: script("check every pipeline against golden files", "experiments/verify.ts", GPU),
  plan: script("print what a step will do", "experiments/plan.ts"),
  trace: script("draw a step of every pipeline as a Chrome trace", "experiments/trace.ts", GPU),
  tune: script("measure sizes for this device and keep the best", "experiments/tune.ts", GPU),
  bench: {
    steps: script("measure every pipeline", "bench/bench.ts", GPU),
    attend: script("measure attention over a selection and over all tokens", "bench/attend.ts", GPU),
    train: script("measure the training of codebooks", "bench/train.ts", GPU),
    refine: script("measure exact re-ranking", "bench/refine.ts", GPU),
    peers: script("measure PyTorch, Triton, jax-js and ONNX Runtime beside ours", "bench/peers/peers.ts", GPU),
    report: script("print tables of result files", "bench/report.ts"),
    wall: {
      summary: "measure wall time of steps by deno bench",
      deno: ["bench", "-A", "--quiet", "bench/steps_bench.ts"],
      needs: "adapter",
    },
  },
  quality: {
    recall: chart("how much attention selections keep, over M, bits, K and R", "recall", GPU),
    error: chart("the output of sparse attention against dense attention", "error", GPU),
    drift: chart("a codebook of the first keys against one of all", "drift", GPU),
    metric: chart("codes by Euclidean distance against codes for inner products", "metric", GPU),
  },
  crossover: chart("from how many cached tokens on the index pays", "crossover", GPU),
  draw: {
    picture: chart("draw the README's picture from committed results", "readme_picture"),
    scaling: chart("draw time over tokens, heads and K from committed results", "scaling"),
  },
  notebooks: {
    open: { summary: "open them in JupyterLab", deno: ["run", "-A", "tools/notebooks.ts", "open"] },
    run: {
      summary: "execute them and refresh their outputs",
      deno: ["run", "-A", "tools/notebooks.ts", "run"],
    },
  },
  test: {
    all: {
      summary: "run the tests",
      deno: ["test", "-A", "--quiet", "--ignore=tests/browser/", "tests/"],
      needs: "adapter",
    },
    browser: {
      summary: "compile every kernel and run every pipeline in headless Chromium",
      deno: ["test", "-A", "--quiet", "tests/browser/"],
      needs: "browser",
      env: { BROWSER_REQUIRED: "1" },
    },
    jsr: {
      summary: "run the tests with the real jsr:@std packages",
      deno: ["test", "-A", "--quiet", "--ignore=tests/browser/", "--config", "deno.jsr.json", "tests/"],
      needs: "adapter",
    },
  },
  ok: script("the one gate: everything that must hold before a change lands", "tools/ok.ts"),
};

const isProgram = (task: (typeof TASKS)[string]): task is Program => Array.isArray(task.deno);

/** What a task's arguments ask for: a program and the arguments left for it, or a text to print and an exit code. */
export function choose(
  args: readonly string[],
): { readonly program: Program; readonly rest: readonly string[] } | { readonly text: string; readonly code: number } {
  const [name = "", sub = "", ...rest] = args;
  if (!Object.hasOwn(TASKS, name)) {
    return {
      text: `error: Cannot run ${JSON.stringify(name)} as the tasks are ${Object.keys(TASKS).join(", ")}`,
      code: 2,
    };
  }
  const task = TASKS[name];
  if (isProgram(task)) return { program: task, rest: args.slice(1) };
  if (Object.hasOwn(task, sub)) return { program: task[sub], rest };
  const names = Object.keys(task);
  const list = Object.entries(task).map(([sub, { summary }]) => `  ${sub.padEnd(10)}${summary}`).join("\n");
  const usage = `Usage: deno task ${name} [${names.join(" | ")}] [flags]\n\n${list}\n\nWithout one: ${
    names[0]
  }. \`deno task ${name} ${names[0]} --help\` lists its flags.`;
  if (sub === "--help" || sub === "-h") return { text: usage, code: 0 };
  if (sub !== "" && !sub.startsWith("-") && (names[0] !== "all" || !sub.includes("/"))) {
    return {
      text: `error: Cannot run ${name} ${JSON.stringify(sub)} as its subcommands are ${names.join(", ")}`,
      code: 2,
    };
  }
  return { program: task[names[0]], rest: args.slice(1) };
}

/** Arguments of `deno`: files that are named take the place of the tests' folder. */
function argumentsOf({ deno }: Program, rest: readonly string[]): readonly string[] {
  const namesFiles = deno[0] === "test" && rest.some((arg) => !arg.startsWith("-") && arg.includes("/"));
  return [...(namesFiles ? deno.slice(0, -1) : deno), ...rest];
}

if (import.meta.main) {
  const chosen = choose(Deno.args);
  if ("text" in chosen) {
    (chosen.code === 0 ? console.log : console.error)(chosen.text);
    Deno.exit(chosen.code);
  }
  const { program } = chosen;
  const rest = chosen.rest.filter((arg) => arg !== NO_INSTALL_FLAG);
  if (rest.length < chosen.rest.length) Deno.env.set(NO_INSTALL, "1");
  const asksForHelp = rest.some((arg) => arg === "--help" || arg === "-h");
  if (program.needs === "adapter" && !asksForHelp) await setupAdapter();
  if (program.needs === "browser" && !asksForHelp) await setupBrowser();
  const child = new Deno.Command(Deno.execPath(), {
    args: [...argumentsOf(program, rest)],
    cwd: ROOT,
    env: { ...(program.needs === GPU ? { PQ_INDEXER_SETUP: "1" } : {}), ...program.env },
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  // A terminal signals the whole group; others signal this process alone.
  for (const signal of Deno.build.os === "windows" ? [] : ["SIGTERM", "SIGHUP"] as const) {
    Deno.addSignalListener(signal, () => child.kill(signal));
  }
  const { success, code } = await child.status;
  Deno.exit(success ? 0 : code);
}
