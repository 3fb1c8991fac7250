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
  process?: { platform?: string; getuid?: () => number };
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
