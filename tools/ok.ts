/**
 * The one gate: `deno task ok`. Runs every check, says what each took, and exits 1 if any failed.
 * `--skip NAME` leaves one out.
 *
 * @module
 */

import { type Command, runCommand, UsageError } from "../experiments/cli.ts";
import { setupAdapter } from "./setup.ts";

const FOLDERS = ["mod.ts", "kernels", "indexer", "experiments", "bench", "tools", "tests"];
/** A backend that no Linux or macOS machine has: WebGPU then finds no adapter. */
const NO_GPU = { DENO_WEBGPU_BACKEND: "dx12", GPU_OPTIONAL: "1", PROPERTY_CASES: "24" };
const CHECKS: Readonly<Record<string, readonly string[]>> = {
  fmt: ["fmt", "--check"],
  lint: ["lint"],
  check: ["check", ...FOLDERS],
  generated: ["run", "-A", "tools/generate_wgsl.ts", "--check"],
  "README table": ["run", "-A", "tools/generate_readme.ts", "--check"],
  "doc lint": ["doc", "--lint", "mod.ts"],
  test: ["test", "-A", "--quiet", "--ignore=tests/browser/", "tests/"],
  "500 random cases": ["test", "-A", "--quiet", "tests/indexer/pipelines_test.ts", "--filter", "random cases"],
  "test, no GPU": ["test", "-A", "--quiet", "--ignore=tests/browser/", "tests/"],
  "fmt of charts": ["fmt", "--check", "--config", "notebooks/deno.json", "experiments/charts/", "notebooks/"],
  "lint of charts": ["lint", "--quiet", "--config", "notebooks/deno.json", "experiments/charts/", "notebooks/"],
  charts: ["test", "-A", "--quiet", "--config", "notebooks/deno.json", "experiments/charts/"],
  "notebook cells": ["run", "-A", "tools/notebooks.ts", "check"],
  notebooks: ["run", "-A", "tools/notebooks.ts", "run", "--small"],
  browser: ["run", "-A", "tools/run.ts", "test", "browser"],
  jupyterlab: ["test", "-A", "--quiet", "--config", "notebooks/deno.json", "notebooks/"],
  "doc examples": ["test", "-A", "--quiet", "--doc", "mod.ts", "indexer/", "kernels/"],
  verify: ["run", "-A", "experiments/verify.ts"],
  publish: ["publish", "--dry-run", "--allow-dirty"],
};

const COMMAND: Command = {
  name: "ok",
  summary: `Runs every check: ${Object.keys(CHECKS).join(", ")}.`,
  flags: { skip: { value: "NAME", help: "leave one out" } },
};

await runCommand(COMMAND, async (args) => {
  const skip = args.text("skip");
  if (skip !== undefined && !Object.hasOwn(CHECKS, skip)) {
    throw new UsageError(`Cannot skip ${skip} as the checks are ${Object.keys(CHECKS).join(", ")}`);
  }
  await setupAdapter();
  let passed = 0;
  const failed: string[] = [];
  for (const [name, command] of Object.entries(CHECKS)) {
    if (name === skip) continue;
    console.error(`${name} …`);
    const begin = performance.now();
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [...command],
      env: {
        NODE_OPTIONS: "--no-warnings",
        ...(name === "500 random cases" ? { PROPERTY_CASES: "500" } : {}),
        ...(name === "test, no GPU" ? NO_GPU : {}),
        ...(name === "jupyterlab" ? { BROWSER_REQUIRED: "1" } : {}), // the check before it installs Chromium
      },
    }).output();
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    console.log(`${success ? "✓" : "✗"} ${name.padEnd(14)} ${seconds.padStart(6)} s   deno ${command.join(" ")}`);
    if (success) {
      passed++;
    } else {
      failed.push(name);
      Deno.stdout.writeSync(stdout);
      Deno.stderr.writeSync(stderr);
    }
  }
  if (failed.length > 0) console.log(`failed: ${failed.join(", ")}`);
  console.log(`gate: ${passed} passed, ${failed.length} failed`);
  return failed.length === 0 ? 0 : 1;
});
