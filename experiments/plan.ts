/**
 * Prints what a step will do: `deno task plan`.
 *
 * @module
 */

import { Gpu } from "../kernels/gpu/device.ts";
import { GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { resolveConfig } from "../indexer/config.ts";
import { DEFAULT_PIPELINE, pipelineById } from "../indexer/pipelines/mod.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { bold, type Command, dim, prepareOutput, runCommand, UsageError } from "./cli.ts";

const COMMAND: Command = {
  name: "plan",
  summary: "Prints the kernels, sizes, workgroups and bytes of a step, without running it.",
  flags: {
    pipeline: { value: "ID", help: "which iteration", default: DEFAULT_PIPELINE.id },
    tokens: { value: "N", help: "tokens after the step", default: "32000" },
    batch: { value: "B", help: "sequences", default: "1" },
    heads: { value: "H", help: "query heads", default: "32" },
    "kv-heads": { value: "N", help: "KV heads (default: as many as query heads)" },
    "head-width": { value: "D", help: "width of a head", default: "128" },
    subvectors: { value: "M", help: "subvectors per key", default: "2" },
    bits: { value: "N", help: "bits per code, 1 to 8", default: "6" },
    sink: { value: "S", help: "sink tokens, or a share such as 1%", default: "128" },
    window: { value: "W", help: "window tokens, or a share", default: "128" },
    heavy: { value: "K", help: "heavy tokens, or a share", default: "128" },
    rows: { value: "N", help: "query rows", default: "1" },
    "new-tokens": { value: "N", help: "new keys per KV head", default: "1" },
    "no-weights": { value: "", help: "without dense weights" },
    "any-device": { value: "", help: "plan for WebGPU's default limits in place of this machine's adapter" },
    json: { value: "FILE", help: "write the plan as JSON" },
  },
};

const WIDTHS = [-16, 11, 12, 10, 13];

function line(cells: readonly string[]): string {
  return WIDTHS.map((width, ix) => width < 0 ? cells[ix].padEnd(-width) : cells[ix].padStart(width)).join("");
}

if (import.meta.main) {
  await runCommand(COMMAND, async (args) => {
    const most = 2 ** 20;
    let pipeline, config;
    const heads = args.integer("heads", 1, most);
    try {
      pipeline = pipelineById(args.text("pipeline")!);
      config = resolveConfig({
        batch: args.integer("batch", 1, most),
        heads,
        kvHeads: args.text("kv-heads") === undefined ? heads : args.integer("kv-heads", 1, most),
        headWidth: args.integer("head-width", 1, most),
        subvectors: args.integer("subvectors", 1, most),
        bits: args.integer("bits", 1, 8),
        sinkSize: args.size("sink"),
        windowSize: args.size("window"),
        heavySize: args.size("heavy"),
      });
    } catch (error) {
      if (error instanceof RangeError) throw new UsageError(error.message);
      throw error;
    }
    const tokens = args.integer("tokens", 1, 2 ** 31), rows = args.integer("rows", 1, 64);
    const newTokens = args.integer("new-tokens", 0, tokens);
    if (rows > tokens) throw new UsageError(`Cannot plan ${rows} rows as there must be a token for each: ${tokens}`);
    await prepareOutput(args.text("json"));
    const gpu = args.has("any-device") ? undefined : await Gpu.shared().catch((error) => {
      if (error instanceof GpuUnavailableError) return undefined;
      throw error;
    });
    const device = gpu ?? DEFAULT_DEVICE;
    const plan = planStep(pipeline, { config, device, weights: !args.has("no-weights"), tokens, rows, newTokens });
    console.log(
      `${pipeline.id} ${pipeline.title} on ${gpu?.info.description ?? "any device (WebGPU's default limits)"}`,
    );
    if (plan.kernels.length === 0) console.log("runs on the CPU: no kernels");
    else {
      console.log(bold(line(["kernel", "workgroups", "invocations", "wg. bytes", "bytes moved"])));
      for (const kernel of plan.kernels) {
        const sizes = Object.entries(kernel.overrides).map(([name, value]) => `${name.toLowerCase()} ${value}`).join(
          " ",
        );
        const count = (value: number) => value.toLocaleString("en");
        const text = line([
          kernel.name,
          kernel.workgroups > 0 ? count(kernel.workgroups) : "not needed",
          count(kernel.invocations),
          count(kernel.workgroupBytes),
          count(kernel.bytesMoved),
        ]);
        console.log(kernel.workgroups > 0 ? text : dim(text));
        if (sizes && kernel.workgroups > 0) console.log(dim(`    ${sizes}`));
      }
      console.log(`${plan.dispatches} dispatches, ${plan.bytesMoved.toLocaleString("en")} bytes moved`);
      console.log(bold("\nbuffers of the layer, bytes"));
      for (const [name, bytes] of Object.entries(plan.buffers)) {
        const over = bytes > device.limits.maxStorageBufferBindingSize ? "  beyond one binding of this device" : "";
        console.log(`${name.padEnd(16)}${bytes.toLocaleString("en").padStart(14)}${over}`);
      }
    }
    const json = args.text("json");
    if (json) await Deno.writeTextFile(json, JSON.stringify({ pipeline: pipeline.id, ...plan }, null, 2) + "\n");
    return 0;
  });
}
