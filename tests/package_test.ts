import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { PIPELINES } from "../indexer/pipelines/mod.ts";
import { hasGpu } from "./support.ts";

const ROOT = new URL("..", import.meta.url);
const read = (path: string) => Deno.readTextFile(new URL(path, ROOT));
const config = JSON.parse(await read("deno.json"));

interface ModuleInfo {
  readonly specifier: string;
  readonly local?: string;
  readonly error?: string;
}

/** The thin host file: the one place that may look for a runtime's own API, and only looks. */
const HOST_FILE = "kernels/gpu/host.ts";

/** What a published module graph may not hold: text imports, npm and node packages, Deno-only API. */
async function problemsOf(entry: string): Promise<string[]> {
  const args = ["info", "--json", "--quiet", entry];
  const { stdout, success } = await new Deno.Command(Deno.execPath(), { args, cwd: fileURLToPath(ROOT) }).output();
  assert(success, `deno info ${entry}`);
  const { modules } = JSON.parse(new TextDecoder().decode(stdout)) as { modules: ModuleInfo[] };
  const problems: string[] = [];
  for (const { specifier, local, error } of modules) {
    if (error) problems.push(`${specifier}: ${error}`);
    if (!specifier.startsWith("file:") && !specifier.startsWith("jsr:")) problems.push(`${specifier} is not from JSR`);
    if (!local || !specifier.startsWith("file:")) continue;
    if (!specifier.endsWith(".ts")) problems.push(`${specifier} is not TypeScript`);
    const source = await Deno.readTextFile(local);
    const code = source.replace(
      /\/\*[\s\S]*?\*\/|`(?:\\.|[^`\\])*`|"(?:\\.|[^"\\\n])*"|\/\/.*/g,
      (text) => text[0] === "/" ? "" : '""',
    );
    if (/\bwith\s*\{\s*type\b/.test(code)) problems.push(`${specifier} has an import with a type`);
    if (/\bimport\s*\(/.test(code)) problems.push(`${specifier} imports dynamically`);
    if (!specifier.endsWith(HOST_FILE) && /\bDeno\s*(\.|\[|\?\.)/.test(code)) problems.push(`${specifier} uses Deno`);
    if (/\b(process|Buffer|require)\s*[.(]/.test(code) && !specifier.endsWith(HOST_FILE)) {
      problems.push(`${specifier} uses Node`);
    }
  }
  assert(modules.length > 0);
  return problems;
}

Deno.test("the published module graph has no text import, no npm and no Deno-only dependency", async () => {
  assertEquals(await problemsOf("mod.ts"), []);
});

Deno.test("that check notices each of them", async () => {
  const folder = await Deno.makeTempDir({ prefix: "pq-indexer-" });
  try {
    await Deno.writeTextFile(`${folder}/x.wgsl`, "fn f() {}");
    const noticed = async (source: string, problem: string) => {
      await Deno.writeTextFile(`${folder}/entry.ts`, source);
      const problems = await problemsOf(`${folder}/entry.ts`);
      assert(problems.some((text) => text.includes(problem)), `${source}: ${problems}`);
    };
    await noticed('import x from "./x.wgsl" with { type: "text" };\nexport { x };', "with a type");
    await noticed('export { strict } from "node:assert";', "node:assert is not from JSR");
    await noticed("export const name = Deno.build.os;", "uses Deno");
    await noticed('export const x = () => import("./x.ts");', "imports dynamically");
    await noticed("export const x = process.env;", "uses Node");
    await noticed('export * from "./missing.ts";', "missing.ts");
    await Deno.writeTextFile(`${folder}/entry.ts`, '/** Not Deno.run. */ export const x = "Deno.run"; // Deno.run');
    assertEquals(await problemsOf(`${folder}/entry.ts`), []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the package holds every module of the published graph, and no test, capture or tool", async () => {
  const run = async (...args: string[]) => {
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args,
      cwd: fileURLToPath(ROOT),
      env: { NO_COLOR: "1" },
    }).output();
    return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  };
  const listing = await run("publish", "--dry-run", "--allow-dirty", "--no-check");
  const packed = [...listing.matchAll(/(file:\S+) \(/g)].map((match) => match[1]);
  const { modules } = JSON.parse(await run("info", "--json", "--quiet", "mod.ts")) as { modules: ModuleInfo[] };
  for (const { specifier } of modules) assert(packed.includes(specifier), `${specifier} is not in publish.include`);
  const strange = packed.filter((file) =>
    /\/(tests|experiments|bench|tools|\.ci|notebooks)\/|\.safetensors/.test(file)
  );
  assertEquals(strange, []);
});

Deno.test("deno.json describes the package", async () => {
  assertEquals([config.name, config.license, config.exports], ["@sparse-attention/pq-indexer", "MIT", "./mod.ts"]);
  assert(/^\d+\.\d+\.\d+$/.test(config.version));
  assertStringIncludes(await read("LICENSE"), "MIT License");
  // The same names, here for stand-ins that need no network. Links would warn whoever links this package.
  const jsr = JSON.parse(await read("deno.jsr.json"));
  assertEquals(
    Object.keys(config.imports).map((name) => name.split("/").slice(0, 2).join("/")),
    Object.keys(jsr.imports),
  );
  assertEquals([config.links, jsr.links], [undefined, undefined]);
});

/** Code blocks of a language in a Markdown file. */
function blocks(markdown: string, language: string): string[] {
  return [...markdown.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map((match) => match[1]);
}

const readme = await read("README.md");

Deno.test({
  name: "a project elsewhere that links this package runs the TypeScript of README and docs",
  ignore: !hasGpu,
  fn: async () => {
    const folder = await Deno.makeTempDir({ prefix: "pq-indexer-consumer-" });
    try {
      await Deno.writeTextFile(
        `${folder}/deno.json`,
        JSON.stringify({
          imports: { "@sparse-attention/pq-indexer": `jsr:@sparse-attention/pq-indexer@^${config.version}` },
          links: [fileURLToPath(ROOT)],
        }),
      );
      assert(readme.split("\n").length <= 151, "the README is short");
      assert(blocks(readme, "ts")[0].trim().split("\n").length <= 12, "ten lines, give or take a comment");
      const pages = [readme, await read("ARCHITECTURE.md"), await read("CONTRIBUTING.md")];
      for await (const { name } of Deno.readDir(new URL("docs/", ROOT))) pages.push(await read(`docs/${name}`));
      const examples = pages.flatMap((page) => blocks(page, "ts"));
      assert(examples.length >= 8);
      for (const [ix, code] of examples.entries()) {
        await Deno.writeTextFile(`${folder}/example${ix}.ts`, code);
        const args = ["run", "-A", "--check", `${folder}/example${ix}.ts`];
        const { code: exit, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
          args,
          cwd: folder,
          env: { NO_COLOR: "1" },
        }).output();
        assertEquals(exit, 0, new TextDecoder().decode(stderr));
        const printed = new TextDecoder().decode(stdout);
        for (const [, promised] of code.matchAll(/\/\/ prints (.*)/g)) assertStringIncludes(printed, promised.trim());
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});

Deno.test("every task that README and CONTRIBUTING name exists, and every iteration is in the results", async () => {
  const named = [...readme.matchAll(/deno(?:@[\d.]+)? task ([a-z:]+)/g)].map((match) => match[1]);
  assert(named.includes("walkthrough") && named.includes("test"));
  const contributing = await read("CONTRIBUTING.md");
  named.push(...[...contributing.matchAll(/deno task ([a-z:]+)/g)].map((match) => match[1]));
  for (const task of named) assert(task in config.tasks, `${task} is a task`);
  const results = await read("docs/results.md");
  for (const { id, title } of PIPELINES) {
    assert(new RegExp(`\\| ${id} +\\|.*${title}`).test(results), `${id} is in the results`);
  }
});

Deno.test("every file that ARCHITECTURE.md names exists", async () => {
  const tree = blocks(await read("ARCHITECTURE.md"), "text").find((block) => block.includes("mod.ts"))!;
  for (const [, path] of tree.matchAll(/^([\w./]+\/?)\s{2,}/gm)) {
    assert(await Deno.stat(new URL(path, ROOT)).then(() => true, () => false), `${path} exists`);
  }
});
