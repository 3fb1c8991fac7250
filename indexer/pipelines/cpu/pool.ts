/**
 * Threads for the CPU pipeline: one pool per process, shared by all layers. Workers do not keep the process alive.
 *
 * @module
 */

import { hostThreads } from "../../../kernels/gpu/host.ts";
import { control, CONTROL_BYTES, type PoolControl, takeJob } from "./control.ts";
import { type CpuBuffers, doJob, type JobKind, Scratch } from "./jobs.ts";

/** A worker thread that did not start, or stopped. */
export class WorkerError extends Error {
  /** "WorkerError". */
  override name = "WorkerError";
}

const REMEDY = "use cpuPipeline({ threads: 1 })";

/** How long workers may take to start. */
const START_MS = 900;
/** How long jobs may make no progress. */
const STALL_MS = 60_000;

/** What of a worker the pool needs. */
interface Thread {
  readonly post: (message: unknown) => void;
  readonly stop: () => void;
}

/** Where a layer's buffers are from now on. */
export interface Announcement {
  /** Number of this announcement. */
  readonly number: number;
  /** Number of the one that it replaces. */
  readonly replaces: number;
  /** The buffers; none if the layer is gone. */
  readonly buffers: CpuBuffers | undefined;
}

/** Hands jobs to threads, the caller's among them. */
export class Pool {
  readonly #workers: readonly Thread[];
  readonly #control: PoolControl | undefined;
  readonly #scratch = new Scratch();
  #announcements = 0;
  #broken: WorkerError | undefined;

  private constructor(workers: readonly Thread[], poolControl: PoolControl | undefined) {
    this.#workers = workers;
    this.#control = poolControl;
  }

  /** Threads, the caller's included. */
  get threads(): number {
    return this.#workers.length + 1;
  }

  /** The caller's thread alone. */
  static single(): Pool {
    return new Pool([], undefined);
  }

  /**
   * Starts `threads` − 1 workers.
   *
   * @param script what they run; default: the project's own
   * @throws {WorkerError} within a second, if this runtime has no workers or one of them does not start
   */
  static async start(threads: number, script: URL = new URL("./worker.ts", import.meta.url)): Promise<Pool> {
    if (threads === 1) return Pool.single();
    const api = hostThreads();
    if (!api) {
      throw new WorkerError(
        `Cannot start ${threads} threads as this runtime has no workers with shared memory: ${REMEDY}`,
      );
    }
    const memory = new SharedArrayBuffer(CONTROL_BYTES);
    const pool = control(memory);
    let failure: string | undefined;
    const workers: Thread[] = [];
    const stopAll = () => workers.forEach((worker) => worker.stop());
    const result = new Pool(workers, pool);
    const fail = (why: string) => {
      failure ??= why;
      result.#broken ??= new WorkerError(`Cannot go on as a worker stopped: ${why}; ${REMEDY}`);
    };
    try {
      for (let ix = 1; ix < threads; ix++) {
        const { port1, port2 } = new api.MessageChannel();
        const worker = new api.Worker(script, { workerData: { memory, port: port2 }, transferList: [port2] });
        worker.on("error", (error) => fail(error instanceof Error ? error.message : String(error)));
        worker.on("exit", (code) => fail(`it exited with code ${code}`));
        worker.unref();
        port1.unref();
        workers.push({ post: (message) => port1.postMessage(message), stop: () => void worker.terminate() });
      }
    } catch (error) {
      stopAll();
      throw new WorkerError(`Cannot start a worker as it failed: ${(error as Error).message}; ${REMEDY}`);
    }
    const deadline = performance.now() + START_MS;
    while (Atomics.load(pool.words, pool.READY) < threads - 1) {
      if (failure !== undefined || performance.now() > deadline) {
        const why = failure ?? `it was not ready after ${START_MS} ms`; // stopped ones fail as well, for no reason of theirs
        stopAll();
        throw new WorkerError(`Cannot start a worker as it failed: ${why}; ${REMEDY}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    return result;
  }

  /**
   * Tells the workers where a layer's buffers are; undefined: nowhere any more.
   *
   * @param replaces the number of the layer's announcement before; 0 for its first
   * @returns the number of this one. Messages leave when the event loop turns: until it did, workers sleep on
   */
  announce(replaces: number, buffers: CpuBuffers | undefined): number {
    const number = ++this.#announcements;
    for (const worker of this.#workers) worker.post({ number, replaces, buffers } satisfies Announcement);
    return number;
  }

  /** Lets the event loop turn, so that workers get what was announced. */
  async deliver(): Promise<void> {
    if (this.#workers.length > 0) await new Promise((resolve) => setTimeout(resolve, 0));
  }

  /** Whether a worker stopped. */
  get isBroken(): boolean {
    return this.#broken !== undefined;
  }

  /**
   * Does jobs 0 … count − 1, and returns when all are done.
   *
   * @throws {WorkerError} if a worker stopped
   */
  run(layer: number, buffers: CpuBuffers, kind: JobKind, count: number): void {
    const pool = this.#control;
    if (!pool) {
      for (let job = 0; job < count; job++) doJob(buffers, kind, job, this.#scratch);
      return;
    }
    if (this.#broken) throw this.#broken;
    const { words, tickets } = pool;
    const begin = Atomics.load(tickets, pool.NEXT), end = begin + BigInt(count);
    Atomics.add(words, pool.GENERATION, 1);
    Atomics.store(words, pool.LAYER, layer);
    Atomics.store(words, pool.KIND, kind);
    Atomics.store(words, pool.DONE, 0);
    Atomics.store(words, pool.FAILED, 0);
    Atomics.store(tickets, pool.BEGIN, begin);
    Atomics.store(tickets, pool.END, end);
    Atomics.add(words, pool.GENERATION, 1);
    Atomics.notify(words, pool.GENERATION);
    let mine = 0, thrown: unknown, didThrow = false;
    for (let job = takeJob(pool, begin, end); job >= 0; job = takeJob(pool, begin, end)) {
      mine++;
      try {
        if (!didThrow) doJob(buffers, kind, job, this.#scratch);
      } catch (error) {
        // Whatever happened here, the workers' jobs of this batch must be over before the next begins.
        thrown = error;
        didThrow = true;
      }
    }
    let since = performance.now(), done = Atomics.load(words, pool.DONE);
    while (done < count - mine) {
      // Where a thread may not block (a browser's main thread), this spins; jobs are short.
      if (performance.now() - since > 0.2) waitFor(words, pool.DONE, done);
      const now = Atomics.load(words, pool.DONE);
      if (now > done) since = performance.now();
      done = now;
      if (performance.now() - since > STALL_MS) {
        this.#broken = new WorkerError(
          `Cannot go on as a worker made no progress for ${STALL_MS / 1000} s: ${REMEDY}`,
        );
        throw this.#broken;
      }
    }
    if (didThrow) throw thrown;
    const failed = Atomics.load(words, pool.FAILED);
    if (failed > 0) throw new WorkerError(`Cannot finish the step as ${failed} jobs failed in workers: ${REMEDY}`);
  }
}

function waitFor(words: Int32Array, at: number, value: number): void {
  try {
    Atomics.wait(words, at, value, 100);
  } catch {
    // This thread may not block.
  }
}

const pools = new Map<number, Promise<Pool>>();

/** The pool with so many threads: the same one for every layer, a new one if that broke. */
export async function sharedPool(threads: number): Promise<Pool> {
  const existing = await pools.get(threads)?.catch(() => undefined);
  if (existing && !existing.isBroken) return existing;
  const pool = Pool.start(threads);
  pools.set(threads, pool);
  return await pool;
}
