/**
 * The environment of our programs, set where it is not before they look for a WebGPU adapter. Import it first.
 *
 * Without XDG_RUNTIME_DIR Mesa prints error lines. The list of backends leaves out OpenGL: on Linux the exit handler of EGL
 * races with the thread of the last test file, and about one run in twenty ended in "double free or corruption" after all tests
 * had passed (Debian 12, Deno 2.9.6). Both are read at the first request for an adapter.
 *
 * @module
 */

const DEFAULTS = { XDG_RUNTIME_DIR: "/tmp", DENO_WEBGPU_BACKEND: "vulkan,metal,dx12" };

for (const [name, value] of Object.entries(DEFAULTS)) {
  if (Deno.env.get(name) === undefined) Deno.env.set(name, value);
}
