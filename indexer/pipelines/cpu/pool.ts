/**
 * Threads for the CPU pipeline: one pool per process, shared by all layers. Workers do not keep the process alive.
 *
 * @module
 */

import { hostThreads } from "../../../kernels/gpu/host.ts";
import { control, CONTROL_BYTES, type PoolControl, takeJob } from "./control.ts";
import { type CpuBuffers, type CpuMemory, doJob, type JobKind, memoryOf, Scratch } from "./jobs.ts";

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

/**
 * Where a layer's buffers are from now on. Memory is posted, never typed arrays: to receive one of those takes Deno time per
 * element (16 MiB: 2.1 s), to receive a SharedArrayBuffer none.
 */
export interface Announcement {
  /** Number of this announcement. */
  readonly number: number;
  /** Number of the one that it replaces. */
  readonly replaces: number;
  /** Memory of the buffers that changed; the others stay where they were. None if the layer is gone. */
  readonly changed: CpuMemory | undefined;
}

/** Hands jobs to threads, the caller's among them. */
export class Pool {
  readonly #workers: readonly Thread[];
  readonly #control: PoolControl | undefined;
  readonly #scratch = new Scratch();
  /** Shared memory that no layer uses, by its bytes. */
  readonly #free = new Map<number, SharedArrayBuffer[]>();
  #announcements = 0;
  #willWake = false;
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
   * Memory for a buffer of a layer: `bytes` or more, which may hold what a layer before left; shared where there are workers. Memory that was given back
   * is used again. A worker that sleeps never collects its garbage, so shared memory that is let go stays allocated.
   */
  take(bytes: number): ArrayBuffer {
    if (this.#workers.length === 0) return new ArrayBuffer(bytes);
    const size = sizeClass(bytes);
    return (this.#free.get(size)?.pop() ?? new SharedArrayBuffer(size)) as ArrayBufferLike as ArrayBuffer;
  }

  /** Takes back what {@linkcode Pool.take} gave, when no job uses it any more. */
  giveBack(memory: ArrayBufferLike): void {
    // Without workers nothing is shared, and a page may lack the very name SharedArrayBuffer.
    if (this.#workers.length === 0 || !(memory instanceof SharedArrayBuffer)) return;
    const free = this.#free.get(memory.byteLength) ?? [];
    this.#free.set(memory.byteLength, free);
    free.push(memory);
  }

  /**
   * Tells the workers which of a layer's buffers are elsewhere now; undefined: all are gone.
   *
   * @param replaces the number of the layer's announcement before; 0 for its first
   * @returns the number of this one. Messages leave when the event loop turns; then sleeping workers are woken to read them,
   * so that what was destroyed does not wait for the next job
   */
  announce(replaces: number, changed: Partial<CpuBuffers> | undefined): number {
    const number = ++this.#announcements;
    const news: Announcement = { number, replaces, changed: changed && memoryOf(changed) };
    for (const worker of this.#workers) worker.post(news);
    if (!this.#willWake && this.#workers.length > 0) {
      this.#willWake = true;
      setTimeout(() => this.#wake(), 0);
    }
    return number;
  }

  /** Lets sleeping workers read their news: a new generation with the jobs of the last, all of which are taken. */
  #wake(): void {
    this.#willWake = false;
    const { words, GENERATION } = this.#control!;
    Atomics.add(words, GENERATION, 2);
    Atomics.notify(words, GENERATION);
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

/** Bytes rounded up, four sizes to an octave, so that layers of nearly one size can use each other's memory. */
function sizeClass(bytes: number): number {
  const step = 2 ** Math.max(4, Math.ceil(Math.log2(Math.max(bytes, 1))) - 3);
  return Math.ceil(Math.max(bytes, 1) / step) * step;
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
