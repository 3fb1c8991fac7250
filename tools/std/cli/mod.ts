/**
 * Stand-in for the part of `jsr:@std/cli` that the scripts use. See `parse_args.ts`.
 *
 * @module
 */

export * from "./parse_args.ts";
