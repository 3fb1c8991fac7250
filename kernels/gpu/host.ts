/**
 * The thin host file: the only place of the library that knows which runtime it is in.
 * Everything it asks for is looked up at run time, so it also loads in Node and in browsers.
 *
 * @module
 */

interface HostGlobals {
  Deno?: {
    build?: { os?: string };
    readTextFile?: (path: string | URL) => Promise<string>;
    permissions?: {
      query: (
        what: { name: "run"; command: string } | { name: "env"; variable: string },
      ) => Promise<{ state: string }>;
    };
    env?: { get(name: string): string | undefined; set(name: string, value: string): void; delete(name: string): void };
    Command?: new (program: string, options: { args: string[]; stderr: "null" }) => {
      output(): Promise<{ success: boolean; stdout: Uint8Array }>;
    };
  };
  process?: { platform?: string; getuid?: () => number; getBuiltinModule?: (name: string) => unknown };
  navigator?: { gpu?: GPU };
}

const globals = globalThis as unknown as HostGlobals;

/** The runtime's WebGPU entry point, or undefined where there is none. */
export function hostGpu(): GPU | undefined {
  return globals.navigator?.gpu;
}

/**
 * Asks for an adapter. On Linux Mesa prints two error lines if XDG_RUNTIME_DIR is not set, so Deno's process has one for as long
 * as the call takes, where it may be set without asking.
 */
export async function hostRequestAdapter(api: GPU, request: GPURequestAdapterOptions): Promise<GPUAdapter | null> {
  const { env, permissions, build } = globals.Deno ?? {}, variable = "XDG_RUNTIME_DIR";
  const mayAsk = env && build?.os === "linux" &&
    (await permissions?.query({ name: "env", variable }))?.state === "granted";
  if (!mayAsk || env.get(variable) !== undefined) return await api.requestAdapter(request);
  env.set(variable, "/tmp");
  try {
    return await api.requestAdapter(request);
  } finally {
    env.delete(variable);
  }
}

/** True in Deno, whose Naga compiler refuses `enable subgroups;` lines and whose queue can block. */
export function isDeno(): boolean {
  return globals.Deno !== undefined;
}

/** One end of a channel between threads. */
export interface HostPort {
  /** Sends a message. */
  postMessage(message: unknown): void;
  /** Does not keep the process alive. */
  unref(): void;
}

/** What is needed of node:worker_threads, which Deno and Node have and browsers do not. */
export interface HostThreads {
  /** A thread. */
  readonly Worker: new (script: URL, options: { workerData: unknown; transferList: unknown[] }) => {
    on(event: "error" | "exit", listener: (reason: unknown) => void): void;
    unref(): void;
    terminate(): Promise<unknown>;
  };
  /** Two connected ports. */
  readonly MessageChannel: new () => { readonly port1: HostPort; readonly port2: HostPort };
  /** The next message without waiting, if there is one. */
  receiveMessageOnPort(port: HostPort): { readonly message: unknown } | undefined;
  /** In a thread: what it was started with. */
  readonly workerData: unknown;
}

/** Threads with shared memory, or undefined where the runtime has none. */
export function hostThreads(): HostThreads | undefined {
  if (typeof SharedArrayBuffer === "undefined") return undefined;
  return globals.process?.getBuiltinModule?.("node:worker_threads") as HostThreads | undefined;
}

/**
 * Reads a text file; where there are no files, fetches it.
 *
 * @throws {Error} the runtime's, if it cannot be read
 */
export async function hostReadText(path: string | URL): Promise<string> {
  if (globals.Deno?.readTextFile) return await globals.Deno.readTextFile(path);
  const files = globals.process?.getBuiltinModule?.("node:fs/promises") as
    | { readFile(path: string | URL, encoding: "utf8"): Promise<string> }
    | undefined;
  if (files) return await files.readFile(path, "utf8");
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}: ${path}`);
  return await response.text();
}

const drivers = new Map<string, Promise<string>>();

/** The driver's version where a tool of the platform tells it and may be run without asking, else "unknown". Asked once. */
export function hostDriver(adapter: Parameters<typeof askForDriver>[0]): Promise<string> {
  const known = drivers.get(adapter.description) ?? askForDriver(adapter);
  drivers.set(adapter.description, known);
  return known;
}

async function askForDriver(
  adapter: { vendor: string; description: string; isSoftware: boolean },
): Promise<string> {
  if (/nvidia/i.test(`${adapter.vendor} ${adapter.description}`)) {
    const version = await hostOutput("nvidia-smi", ["--query-gpu=driver_version", "--format=csv,noheader"]);
    if (version) return `NVIDIA ${version.split("\n")[0]}`;
  }
  if (adapter.isSoftware) {
    const version = await hostOutput("dpkg-query", ["--show", "--showformat=${Version}", "mesa-vulkan-drivers"]);
    if (version) return `Mesa ${version}`;
  }
  return "unknown";
}

/** A program's trimmed output; undefined if it is not there, fails, or may not be run without asking. */
export async function hostOutput(program: string, args: string[]): Promise<string | undefined> {
  const { Command, permissions } = globals.Deno ?? {};
  if (!Command || (await permissions?.query({ name: "run", command: program }))?.state !== "granted") return undefined;
  try {
    const { success, stdout } = await new Command(program, { args, stderr: "null" }).output();
    return success ? new TextDecoder().decode(stdout).trim() : undefined;
  } catch {
    return undefined;
  }
}

/** "linux", "darwin", "win32" … or "browser". */
export function hostPlatform(): string {
  return globals.Deno?.build?.os ?? globals.process?.platform ?? "browser";
}

/** What a person must do on this platform to get a WebGPU adapter: one sentence with the exact command. */
export function gpuInstallHint(platform: string = hostPlatform()): string {
  switch (platform) {
    case "linux":
      return "install a Vulkan driver: your GPU vendor's, or Mesa's software Vulkan with " +
        "`sudo apt-get install -y mesa-vulkan-drivers` (Debian, Ubuntu), " +
        "`sudo dnf install -y mesa-vulkan-drivers` (Fedora) or `sudo pacman -S vulkan-swrast` (Arch)";
    case "darwin":
      return "Metal drives WebGPU on macOS and needs no package: update macOS, and run outside of a VM without a GPU";
    case "windows":
    case "win32":
      return "update the graphics driver (Direct3D 12 or Vulkan): `winget upgrade --all`, or the GPU vendor's installer";
    default:
      return "use a runtime with WebGPU: Deno 2.9 or later, or a browser where `navigator.gpu` exists";
  }
}
