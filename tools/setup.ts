/**
 * Makes sure that WebGPU finds an adapter: `deno task setup`. Idempotent; writes to stderr only.
 *
 * On Debian and Ubuntu, as root, it installs Mesa's software Vulkan; elsewhere it prints the command
 * for that platform. It always exits 0: what needs a GPU says so itself.
 *
 * @module
 */

import { gpuInstallHint } from "../kernels/gpu/host.ts";

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

if (import.meta.main) {
  const machine: Machine = {
    hasAdapter: await hasAdapter(),
    isRoot: Deno.build.os === "linux" && Deno.uid() === 0,
    hasApt: Deno.build.os === "linux" && await run("apt-get", ["--version"], true) === 0,
  };
  const action = decide(machine);
  if (action === "install") {
    console.error(
      "setup: no WebGPU adapter; installing Mesa's software Vulkan (apt-get install mesa-vulkan-drivers) …",
    );
    const install = ["install", "-y", "-qq", "--no-install-recommends", "mesa-vulkan-drivers"];
    // The package lists may be missing or stale: update only if the first try fails.
    if (await run("apt-get", install, true) !== 0) {
      await run("apt-get", ["update", "-qq"]);
      await run("apt-get", install);
    }
    if (await hasAdapter()) console.error("setup: done, WebGPU runs on the CPU (llvmpipe)");
    else console.error(`setup: still no WebGPU adapter; ${gpuInstallHint()}`);
  } else if (action === "tell") {
    console.error(`setup: no WebGPU adapter; ${gpuInstallHint()}`);
  }
}
