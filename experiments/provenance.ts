/**
 * Where numbers come from: everything that must stand beside a measurement.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import type { GpuInfo } from "../kernels/gpu/device.ts";
import { hostDriver, hostOutput } from "../kernels/gpu/host.ts";

/** Provenance of a run. */
export interface Provenance {
  /** Adapter as the runtime names it, "none" without a GPU. */
  readonly adapter: string;
  /** Whether the adapter is a software rasterizer. */
  readonly software: boolean;
  /** Driver version where a tool of the platform tells it, else "unknown". */
  readonly driver: string;
  /** Deno's version. */
  readonly deno: string;
  /** Operating system and architecture. */
  readonly platform: string;
  /** Logical CPU cores. */
  readonly cores: number;
  /** Commit of the project, with "+changes" if files differ from it; "unknown" outside a checkout. */
  readonly commit: string;
  /** UTC time, ISO 8601. */
  readonly date: string;
}

/** Asks the machine. */
export async function provenance(info: GpuInfo | undefined): Promise<Provenance> {
  return {
    adapter: info?.description ?? "none",
    software: info?.isSoftware ?? false,
    driver: info ? await hostDriver(info) : "none",
    deno: Deno.version.deno,
    platform: `${Deno.build.os} ${Deno.build.arch}`,
    cores: navigator.hardwareConcurrency,
    commit: await commit(),
    date: new Date().toISOString(),
  };
}

async function commit(): Promise<string> {
  const cwd = fileURLToPath(new URL("..", import.meta.url));
  const hash = await hostOutput("git", ["-C", cwd, "rev-parse", "--short=12", "HEAD"]);
  if (!hash) return "unknown";
  const changes = await hostOutput("git", ["-C", cwd, "status", "--porcelain", "--untracked-files=no"]);
  return changes === "" ? hash : `${hash}+changes`;
}
