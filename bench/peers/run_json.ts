/**
 * Programs that measure others: what they print as JSON.
 *
 * @module
 */

/** A peer that hangs must not keep the others from running. */
const LIMIT_MS = 240_000;

/** Runs a program and parses the last line of its output as JSON. */
export async function runJson(
  program: string,
  args: readonly string[],
  cwd?: string,
): Promise<Record<string, unknown>> {
  let result: Deno.CommandOutput;
  try {
    result = await new Deno.Command(program, {
      args: [...args],
      cwd,
      stdin: "null",
      signal: AbortSignal.timeout(LIMIT_MS),
    }).output();
  } catch (error) {
    throw new Error(`${program} could not be started: ${(error as Error).message}`);
  }
  const lines = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim().split("\n");
  const last = lines(result.stdout).at(-1) ?? "";
  if (last.startsWith("{")) return JSON.parse(last);
  if (result.signal) throw new Error(`it took longer than ${LIMIT_MS / 1000} s or was ended (${result.signal})`);
  const complaint = lines(result.stderr).filter((line) => line.trim() !== "" && !line.includes("XDG_RUNTIME_DIR"));
  throw new Error(
    (complaint.find((line) => /error|no CUDA/i.test(line)) ?? complaint.at(-1) ?? "no output").slice(0, 300),
  );
}
