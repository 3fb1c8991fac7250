/**
 * Writes `kernels/wgsl_files.ts`, the module of strings that the published package imports, from the
 * `.wgsl` files. With `--check` it writes nothing and exits 1 if the module is stale.
 *
 * @module
 */

const ROOT = new URL("../kernels/", import.meta.url);
const MODULE = new URL("wgsl_files.ts", ROOT);

async function wgslPaths(folder: URL, prefix = ""): Promise<string[]> {
  const paths: string[] = [];
  for await (const entry of Deno.readDir(folder)) {
    const path = prefix + entry.name;
    if (entry.isDirectory) paths.push(...await wgslPaths(new URL(`${entry.name}/`, folder), `${path}/`));
    else if (entry.name.endsWith(".wgsl")) paths.push(path);
  }
  return paths.sort();
}

/** The module's text, made from the files as they are now. */
export async function generate(): Promise<string> {
  const entries: string[] = [];
  for (const path of await wgslPaths(ROOT)) {
    const text = await Deno.readTextFile(new URL(path, ROOT));
    const literal = text.replaceAll("\\", "\\\\").replaceAll("`", "\\`").replaceAll("${", "\\${");
    entries.push(`  ${JSON.stringify(path)}: \`${literal}\`,\n`);
  }
  return `// Generated from the .wgsl files by \`deno task generate\`: edit those, not this.
// deno-fmt-ignore-file

/** WGSL texts by path below \`kernels/\`. */
export const WGSL_FILES: Readonly<Record<string, string>> = {
${entries.join("")}};
`;
}

if (import.meta.main) {
  const text = await generate();
  const old = await Deno.readTextFile(MODULE).catch(() => "");
  if (old === text) {
    console.error("kernels/wgsl_files.ts is fresh");
  } else if (Deno.args.includes("--check")) {
    console.error("kernels/wgsl_files.ts is stale: run `deno task generate`");
    Deno.exit(1);
  } else {
    await Deno.writeTextFile(MODULE, text);
    console.error("kernels/wgsl_files.ts written");
  }
}
