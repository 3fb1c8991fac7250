/**
 * Results as JSON with a row a line, so that a file of results has as many lines as it has rows, and a change of one row
 * is a change of one line.
 *
 * @module
 */

/** A value as JSON on one line, with a space after colons and commas outside of strings. */
function oneLine(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map((each) => oneLine(each ?? null)).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    const fields = Object.entries(value).filter(([, each]) => each !== undefined);
    if (fields.length === 0) return "{}";
    return `{ ${fields.map(([name, each]) => `${JSON.stringify(name)}: ${oneLine(each)}`).join(", ")} }`;
  }
  return JSON.stringify(value);
}

function lines(value: unknown, indent: string): string {
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.every((each) => typeof each !== "object" || each === null)) return oneLine(value);
    return `[\n${value.map((each) => inner + oneLine(each ?? null)).join(",\n")}\n${indent}]`;
  }
  if (typeof value === "object" && value !== null) {
    const fields = Object.entries(value).filter(([, each]) => each !== undefined);
    if (fields.length === 0) return "{}";
    const body = fields.map(([name, each]) => `${inner}${JSON.stringify(name)}: ${lines(each, inner)}`);
    return `{\n${body.join(",\n")}\n${indent}}`;
  }
  return JSON.stringify(value);
}

/**
 * A report as JSON: objects as usual, each element of an array of objects on one line, however much it holds.
 *
 * @param report what `JSON.stringify` takes: numbers that are not finite become null, undefined fields are left out
 */
export function reportJson(report: object): string {
  return `${lines(report, "")}\n`;
}

/** Writes a report to a file; see {@linkcode reportJson}. */
export async function writeReport(path: string, report: object): Promise<void> {
  await Deno.writeTextFile(path, reportJson(report));
}
