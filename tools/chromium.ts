/**
 * Runs a TypeScript module of the project in headless Chromium: WebGPU by Dawn and Tint, on SwiftShader. No DevTools
 * protocol and no bundler: Deno.serve hands out the project's files with their types stripped, a page imports one of
 * them and POSTs back what its `main` returns.
 *
 * @module
 */

import { stripTypeScriptTypes } from "node:module";

const PROGRAM = "/usr/bin/chromium";

/** What gives WebGPU without a GPU, without a display and as root. */
const FLAGS = ["--headless=new", "--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/** Path of Chromium; undefined where there is none. `deno task test browser` installs it where it can. */
export async function findChromium(): Promise<string | undefined> {
  const path = Deno.env.get("CHROMIUM") ?? PROGRAM;
  return await Deno.stat(path).then(() => path, () => undefined);
}

/** Options of {@linkcode inChromium}. */
export interface ChromiumOptions {
  /** Folder whose `.ts` files the page may import. */
  readonly root: string;
  /** The module below `root` that exports `main(input)`. What goes in and comes out must survive JSON. */
  readonly entry: string;
  /** What `main` is given. */
  readonly input?: unknown;
  /** How long start and `main` may take together. Default 60 s. */
  readonly timeoutMs?: number;
}

const page = ({ entry, input = null }: ChromiumOptions) =>
  `<!doctype html><script type="module">
const post = (result) => fetch("/result", { method: "POST", body: JSON.stringify(result) });
try {
  const { main } = await import("/${entry}");
  await post({ value: await main(${JSON.stringify(input).replaceAll("<", "\\u003c")}) });
} catch (error) {
  await post({ error: String(error?.stack ?? error) });
}
</script>`;

/**
 * Starts Chromium, runs `main` in it, and stops it.
 *
 * @throws {Error} with the page's stack if `main` throws, with Chromium's stderr if nothing comes back
 */
export async function inChromium<T>(program: string, options: ChromiumOptions): Promise<T> {
  const { root, entry, timeoutMs = 60_000 } = options;
  const result = Promise.withResolvers<{ value?: T; error?: string }>();
  const answer = (body: string, type: string) => new Response(body, { headers: { "content-type": type } });
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
    const { pathname } = new URL(request.url);
    if (pathname === "/") return answer(page(options), "text/html");
    if (pathname === "/result") result.resolve(await request.json());
    if (!pathname.endsWith(".ts")) return answer("", "text/plain");
    try {
      const code = stripTypeScriptTypes(await Deno.readTextFile(root + pathname));
      return answer(code, "text/javascript");
    } catch (error) {
      result.resolve({ error: `cannot serve ${pathname}: ${error}` });
      return new Response(null, { status: 404 });
    }
  });
  const profile = await Deno.makeTempDir({ prefix: "chromium-" });
  const args = [...FLAGS, `--user-data-dir=${profile}`, `http://127.0.0.1:${server.addr.port}/`];
  const chromium = new Deno.Command(program, { args, stdin: "null", stdout: "null", stderr: "piped" }).spawn();
  const stderr = new Response(chromium.stderr).text();
  chromium.status.then(({ code }) => result.resolve({ error: `it ended with code ${code}` }));
  const timer = setTimeout(() => result.resolve({ error: `no result after ${timeoutMs} ms` }), timeoutMs);
  const { value, error } = await result.promise;
  clearTimeout(timer);
  try {
    chromium.kill("SIGTERM");
  } catch {
    // It has ended already.
  }
  const late = setTimeout(() => chromium.kill("SIGKILL"), 5000);
  await chromium.status;
  clearTimeout(late);
  // It always complains about the missing D-Bus.
  const log = (await stderr).split("\n").filter((line) => !/dbus|unexpected operator/.test(line)).join("\n");
  await server.shutdown();
  await Deno.remove(profile, { recursive: true }).catch(() => {});
  if (error !== undefined) throw new Error(`Cannot run ${entry} in Chromium: ${error}\n${log}`);
  return value as T;
}
