/**
 * The thin host file: the only place of the library that knows which runtime it is in.
 * Everything it asks for is looked up at run time, so it also loads in Node and in browsers.
 *
 * @module
 */

interface HostGlobals {
  Deno?: {
    build?: { os?: string };
  };
  process?: { platform?: string; getuid?: () => number; getBuiltinModule?: (name: string) => unknown };
  navigator?: { gpu?: GPU };
}

const globals = globalThis as unknown as HostGlobals;

/** The runtime's WebGPU entry point, or undefined where there is none. */
export function hostGpu(): GPU | undefined {
  return globals.navigator?.gpu;
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
