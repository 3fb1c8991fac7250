/**
 * The block of shared memory through which a pool of threads hands out jobs.
 *
 * @module
 */

/** Views of the control block and what its words mean. */
export interface PoolControl {
  /** i32 words. */
  readonly words: Int32Array;
  /** i64 words. */
  readonly tickets: BigInt64Array;
  /** Odd while the words below are written, else even; changes with every batch of jobs. */
  readonly GENERATION: number;
  /** Workers that have started. */
  readonly READY: number;
  /** Jobs of this batch that are done. */
  readonly DONE: number;
  /** Which layer the jobs belong to: the number of its latest announcement. */
  readonly LAYER: number;
  /** What kind of jobs they are. */
  readonly KIND: number;
  /** Jobs of this batch that threw in a worker. */
  readonly FAILED: number;
  /** Ticket of the next job; never goes back, so that a thread that comes late takes none of another batch. */
  readonly NEXT: number;
  /** Ticket of the batch's first job. */
  readonly BEGIN: number;
  /** Ticket after the batch's last job. */
  readonly END: number;
}

/** Size of a control block in bytes. */
export const CONTROL_BYTES = 64;

/** Views of a control block. */
export function control(memory: SharedArrayBuffer): PoolControl {
  return {
    words: new Int32Array(memory, 0, 8),
    tickets: new BigInt64Array(memory, 32, 4),
    GENERATION: 0,
    READY: 1,
    DONE: 2,
    LAYER: 3,
    KIND: 4,
    FAILED: 5,
    NEXT: 0,
    BEGIN: 1,
    END: 2,
  };
}

/** Number of the next job within its batch, or −1 if none is left. */
export function takeJob({ tickets, NEXT }: PoolControl, begin: bigint, end: bigint): number {
  let next = Atomics.load(tickets, NEXT);
  while (next < end) {
    const before = Atomics.compareExchange(tickets, NEXT, next, next + 1n);
    if (before === next) return Number(next - begin);
    next = before;
  }
  return -1;
}
