/**
 * Prints what a step will do: `deno task plan`.
 *
 * @module
 */

import { Gpu } from "../kernels/gpu/device.ts";
import { GpuUnavailableError } from "../kernels/gpu/errors.ts";
import { DEFAULT_PIPELINE, pipelineById } from "../indexer/pipelines/mod.ts";
import { DEFAULT_DEVICE, planStep } from "../indexer/pipelines/plan.ts";
import { tuningFor } from "../indexer/tuning.ts";
import { CONFIG_FLAGS, configFrom } from "./config_flags.ts";
import { bold, type Command, dim, prepareOutput, runCommand, UsageError } from "./cli.ts";
import { writeReport } from "./json_rows.ts";

const COMMAND: Command = {
  name: "plan",
  summary: "Prints the kernels, sizes, workgroups and bytes of a step, without running it.",
  flags: {
    pipeline: { value: "ID", help: "which iteration", default: DEFAULT_PIPELINE.id },
    tokens: { value: "N", help: "tokens after the step", default: "32000" },
    ...CONFIG_FLAGS,
    rows: { value: "N", help: "query rows", default: "1" },
    "new-tokens": { value: "N", help: "new keys per KV head", default: "1" },
    "no-weights": { value: "", help: "without dense weights" },
    tuning: { value: "FILE", help: "take sizes from what deno task tune wrote for this machine" },
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
    const { config } = configFrom(args);
    let pipeline;
    try {
      pipeline = pipelineById(args.text("pipeline")!);
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
    const device = gpu ?? DEFAULT_DEVICE, weights = !args.has("no-weights");
    const file = args.text("tuning");
    if (file !== undefined) {
      const tuning = gpu && await tuningFor(file, gpu.info, config, weights);
      if (tuning && pipeline.tuned) pipeline = pipeline.tuned(tuning);
      else console.log(`${file} has nothing for this device, driver and shape: the defaults`);
    }
    const plan = planStep(pipeline, { config, device, weights, tokens, rows, newTokens });
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
    if (json) await writeReport(json, { pipeline: pipeline.id, ...plan });
    return 0;
  });
}
