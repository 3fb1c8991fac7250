import { assert, assertEquals } from "@std/assert";
import { choose, TASKS } from "../tools/run.ts";
import { ROOT, withFolder } from "./support.ts";

Deno.test("choose: tasks, subcommands, defaults, and what is neither", () => {
  const programOf = (...args: string[]) => {
    const chosen = choose(args);
    return "program" in chosen ? [chosen.program.deno.at(-1), ...chosen.rest] : [chosen.code, chosen.text];
  };
  assertEquals(programOf("plan", "--tokens", "5"), ["experiments/plan.ts", "--tokens", "5"]);
  assertEquals(programOf("bench"), ["bench/bench.ts"]);
  assertEquals(programOf("bench", "--full"), ["bench/bench.ts", "--full"]);
  assertEquals(programOf("bench", "report", "a.json"), ["bench/report.ts", "a.json"]);
  assertEquals(programOf("test", "tests/x_test.ts"), ["tests/", "tests/x_test.ts"]);
  assertEquals(programOf("bench", "--help")[0], 0);
  for (const bad of [["bench", "speed"], ["constructor"], ["bench", "constructor"], [], ["quality", "Recall"]]) {
    const [code, text] = programOf(...bad);
    assert(code === 2 && String(text).startsWith("error: Cannot run"), `${bad}: ${code} ${text}`);
  }
});

/** Runs a task on a machine without an adapter, with an apt-get that only notes that it was called. */
async function runTask(args: readonly string[], folder: string, env: Record<string, string> = {}) {
  const calls = `${folder}/calls`;
  await Deno.writeTextFile(`${folder}/apt-get`, `#!/bin/sh\necho "$@" >> ${calls}\n`, { mode: 0o755 });
  await Deno.remove(calls).catch(() => {});
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "tools/run.ts", ...args],
    cwd: ROOT,
    env: { PATH: `${folder}:${Deno.env.get("PATH")}`, DENO_WEBGPU_BACKEND: "dx12", NO_COLOR: "1", ...env },
  }).output();
  const called = await Deno.readTextFile(calls).catch(() => "");
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  return { code, text, installs: called.split("\n").filter((line) => line.startsWith("install")) };
}

Deno.test({
  name: "no task installs anything for --help, for wrong flags, for plan, report and drawing, or where it is forbidden",
  ignore: Deno.build.os !== "linux",
  fn: () =>
    withFolder(async (folder) => {
      const names = Object.entries(TASKS).flatMap(([name, task]) =>
        Array.isArray(task.deno) ? [[name]] : Object.keys(task).map((sub) => [name, sub])
      );
      // Those that draw need npm packages, which a machine may not reach; their flags are read by the same function.
      for (
        const name of names.filter(([name, sub]) =>
          !["quality", "crossover", "draw", "test"].includes(name) && sub !== "wall"
        )
      ) {
        const { code, text, installs } = await runTask([...name, "--help"], folder);
        assertEquals([code, installs], [0, []], `${name}: ${text}`);
        assert(text.includes("Usage: deno task"), `${name}: ${text}`);
      }
      for (
        const args of [
          ["walkthrough", "--stepz", "3"],
          ["walkthrough", "--bits", "99"],
          ["walkthrough", "--steps", "1e9"],
          ["walkthrough", "--capture", "/nope"],
          ["bench", "steps", "nonsense"],
          ["bench", "--pipelines", "nonsense"],
          ["ok", "--skip", "nonsense"],
          ["plan", "--n", "5000"],
        ]
      ) {
        const { installs, text } = await runTask(args, folder);
        assertEquals(installs, [], `${args}: ${text}`);
      }
      if (Deno.uid() !== 0) return; // only root installs
      const wanted = await runTask(["verify"], folder);
      assertEquals(wanted.installs.length > 0, true, wanted.text);
      assert(
        wanted.text.includes("apt-get install mesa-vulkan-drivers") && wanted.text.includes("forbids"),
        wanted.text,
      );
      for (
        const [args, env] of [[["verify"], { PQ_INDEXER_NO_INSTALL: "1" }], [["verify", "--no-install"], {}]] as const
      ) {
        const { installs, text } = await runTask(args, folder, env);
        assertEquals(installs, [], text);
        assert(text.includes("no WebGPU adapter"), text);
      }
    }),
});
