/**
 * Makes sure that WebGPU finds an adapter: `deno task setup`, or a task that needs one. Writes to stderr only. With
 * `--browser` also that Chromium is there.
 *
 * On Debian and Ubuntu, as root, it says what it installs and installs it: Mesa's software Vulkan, Debian's Chromium.
 * Elsewhere, and where PQ_INDEXER_NO_INSTALL is set or `--no-install` is given, it prints what to install. It always exits 0:
 * what needs a GPU or a browser says so itself.
 *
 * @module
 */

import "../experiments/environment.ts";
import { gpuInstallHint } from "../kernels/gpu/host.ts";
import { findChromium } from "./chromium.ts";

/** What the machine is, as far as setup cares. */
export interface Machine {
  readonly hasAdapter: boolean;
  readonly isRoot: boolean;
  /** Debian, Ubuntu and what derives from them: apt-get is there. */
  readonly hasApt: boolean;
  /** Whether the user forbids to install. */
  readonly mayInstall: boolean;
}

/** The flag that forbids to install. */
export const NO_INSTALL_FLAG = "--no-install";
/** The variable that forbids to install, unless it is empty or 0. */
export const NO_INSTALL = "PQ_INDEXER_NO_INSTALL";
const HOW_TO_FORBID = `${NO_INSTALL}=1 or ${NO_INSTALL_FLAG} forbids it`;

/** What setup does on a machine: nothing, install, or say what a person must do. */
export function decide(machine: Machine): "ready" | "install" | "tell" {
  if (machine.hasAdapter) return "ready";
  return machine.mayInstall && machine.isRoot && machine.hasApt ? "install" : "tell";
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

async function thisMachine(args: readonly string[]): Promise<Omit<Machine, "hasAdapter">> {
  const isLinux = Deno.build.os === "linux";
  return {
    isRoot: isLinux && Deno.uid() === 0,
    hasApt: isLinux && await run("apt-get", ["--version"], true) === 0,
    mayInstall: ["", "0", undefined].includes(Deno.env.get(NO_INSTALL)) && !args.includes(NO_INSTALL_FLAG),
  };
}

/** Finds an adapter, installs a software one where it may, or says what to do. */
export async function setupAdapter(args: readonly string[] = Deno.args): Promise<void> {
  if (await hasAdapter()) return;
  const action = decide({ ...await thisMachine(args), hasAdapter: false });
  if (action === "install") {
    console.error(
      `setup: no WebGPU adapter; installing Mesa's software Vulkan (apt-get install mesa-vulkan-drivers); ${HOW_TO_FORBID} …`,
    );
    await install("mesa-vulkan-drivers");
    if (await hasAdapter()) return console.error("setup: done, WebGPU runs on the CPU (llvmpipe)");
  }
  console.error(`setup: ${action === "install" ? "still " : ""}no WebGPU adapter; ${gpuInstallHint()}`);
}

/** Finds Chromium, installs it where it may, or says what to do. */
export async function setupBrowser(args: readonly string[] = Deno.args): Promise<void> {
  const isThere = () => findChromium().then((path) => path !== undefined);
  if (await isThere()) return;
  if (decide({ ...await thisMachine(args), hasAdapter: false }) === "install") {
    console.error(`setup: no Chromium; installing it (apt-get install chromium); ${HOW_TO_FORBID} …`);
    await install("chromium");
    if (await isThere()) return console.error("setup: done, Chromium is there");
  }
  console.error("setup: no Chromium; install it, or set CHROMIUM to the path of one");
}

if (import.meta.main) {
  const unknown = Deno.args.find((arg) => !["--browser", NO_INSTALL_FLAG].includes(arg));
  if (unknown !== undefined) {
    const isHelp = ["--help", "-h"].includes(unknown);
    console.error(
      `${isHelp ? "" : `error: Cannot understand ${unknown}\n`}Usage: deno task setup [--browser] [${NO_INSTALL_FLAG}]`,
    );
    Deno.exit(isHelp ? 0 : 2);
  }
  await setupAdapter();
  if (Deno.args.includes("--browser")) await setupBrowser();
}
