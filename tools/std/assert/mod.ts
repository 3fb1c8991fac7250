/**
 * Stand-in for the part of `jsr:@std/assert` that the tests use, for machines that cannot reach JSR:
 * the same names and signatures, each a thin wrapper of `node:assert/strict`. `deno.jsr.json` runs
 * the same tests with the real one.
 *
 * @module
 */

import nodeAssert from "node:assert/strict";

/** Thrown by every assertion that fails. */
export const AssertionError = nodeAssert.AssertionError;

// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

/** Fails unless `expr` is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  nodeAssert.ok(expr, msg || undefined);
}

/** Fails unless both are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  nodeAssert.deepStrictEqual(actual, expected, msg);
}

/** Fails if both are deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  nodeAssert.notDeepStrictEqual(actual, expected, msg);
}

/** Fails unless the string holds the other. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  nodeAssert.ok(
    actual.includes(expected),
    msg ?? `Expected ${JSON.stringify(actual)} to include ${JSON.stringify(expected)}`,
  );
}

/** Fails unless the string matches. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  nodeAssert.match(actual, expected, msg);
}

/** Fails unless `fn` throws an `ErrorClass` whose message includes `msgIncludes`; returns the error. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  errorClass?: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E {
  let caught: unknown;
  nodeAssert.throws(fn, (error) => {
    caught = error;
    return checkError(error, errorClass, msgIncludes, msg);
  });
  return caught as E;
}

/** Fails unless `fn` rejects with an `ErrorClass` whose message includes `msgIncludes`; resolves to the error. */
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  errorClass?: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E> {
  let caught: unknown;
  await nodeAssert.rejects(async () => await fn(), (error) => {
    caught = error;
    return checkError(error, errorClass, msgIncludes, msg);
  });
  return caught as E;
}

function checkError<E extends Error>(
  error: unknown,
  errorClass: ErrorClass<E> | undefined,
  msgIncludes: string | undefined,
  msg: string | undefined,
): true {
  if (errorClass) nodeAssert.ok(error instanceof errorClass, msg ?? `Expected ${errorClass.name}, got ${error}`);
  if (msgIncludes !== undefined) assertStringIncludes((error as Error).message, msgIncludes, msg);
  return true;
}
