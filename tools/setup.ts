/**
 * Makes sure that WebGPU finds an adapter: `deno task setup`. Idempotent; writes to stderr only. With `--browser` also
 * that Chromium is there.
 *
 * On Debian and Ubuntu, as root, it installs Mesa's software Vulkan and Debian's Chromium; elsewhere it prints what to
 * install. It always exits 0: what needs a GPU or a browser says so itself.
 *
 * @module
 */

import { gpuInstallHint } from "../kernels/gpu/host.ts";
import { findChromium } from "./chromium.ts";

/** What the machine is, as far as setup cares. */
export interface Machine {
  readonly hasAdapter: boolean;
  readonly isRoot: boolean;
  /** Debian, Ubuntu and what derives from them: apt-get is there. */
  readonly hasApt: boolean;
}

/** What setup does on a machine: nothing, install, or say what a person must do. */
export function decide(machine: Machine): "ready" | "install" | "tell" {
  if (machine.hasAdapter) return "ready";
  return machine.isRoot && machine.hasApt ? "install" : "tell";
}

/** The program's exit code; its output goes to stderr. -1 if it cannot be started. */
async function run(program: string, args: string[], quiet = false): Promise<number> {
  try {
    const env = { DEBIAN_FRONTEND: "noninteractive" };
    const command = new Deno.Command(program, { args, env, stdin: "null", stdout: "piped", stderr: "piped" });
    const { code, stdout, stderr } = await command.output();
    if (!quiet && code !== 0) {
      Deno.stderr.writeSync(stdout);
      Deno.stderr.writeSync(stderr);
    }
    return code;
  } catch {
    return -1;
  }
}

/** In a process of its own: a runtime that once found no driver does not look again. */
async function hasAdapter(): Promise<boolean> {
  const probe = "Deno.exit(await navigator.gpu?.requestAdapter() ? 0 : 3)";
  return await run(Deno.execPath(), ["eval", probe], true) === 0;
}

/** Installs a package as root; the package lists may be missing or stale, so they are updated if the first try fails. */
async function install(name: string): Promise<void> {
  const args = ["install", "-y", "-qq", "--no-install-recommends", name];
  if (await run("apt-get", args, true) === 0) return;
  await run("apt-get", ["update", "-qq"]);
  await run("apt-get", args);
}

async function setupAdapter(machine: Omit<Machine, "hasAdapter">): Promise<void> {
  const action = decide({ ...machine, hasAdapter: await hasAdapter() });
  if (action === "ready") return;
  if (action === "install") {
    console.error(
      "setup: no WebGPU adapter; installing Mesa's software Vulkan (apt-get install mesa-vulkan-drivers) …",
    );
    await install("mesa-vulkan-drivers");
    if (await hasAdapter()) return console.error("setup: done, WebGPU runs on the CPU (llvmpipe)");
  }
  console.error(`setup: ${action === "install" ? "still " : ""}no WebGPU adapter; ${gpuInstallHint()}`);
}

async function setupBrowser({ isRoot, hasApt }: Omit<Machine, "hasAdapter">): Promise<void> {
  const isThere = () => findChromium().then((path) => path !== undefined);
  if (await isThere()) return;
  if (isRoot && hasApt) {
    console.error("setup: no Chromium; installing it (apt-get install chromium) …");
    await install("chromium");
    if (await isThere()) return console.error("setup: done, Chromium is there");
  }
  console.error("setup: no Chromium; install it, or set CHROMIUM to the path of one");
}

if (import.meta.main) {
  const machine = {
    isRoot: Deno.build.os === "linux" && Deno.uid() === 0,
    hasApt: Deno.build.os === "linux" && await run("apt-get", ["--version"], true) === 0,
  };
  await setupAdapter(machine);
  if (Deno.args.includes("--browser")) await setupBrowser(machine);
}
