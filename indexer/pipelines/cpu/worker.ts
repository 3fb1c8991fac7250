/**
 * A thread of the CPU pipeline. Sleeps on the pool's control block and takes jobs when there are some.
 *
 * @module
 */

import { type HostPort, hostThreads } from "../../../kernels/gpu/host.ts";
import { type CpuBuffers, doJob, type JobKind, Scratch, viewsOf } from "./jobs.ts";
import type { Announcement } from "./pool.ts";
import { control, type PoolControl, takeJob } from "./control.ts";

const { receiveMessageOnPort, workerData } = hostThreads()!;
const { memory, port } = workerData as { memory: SharedArrayBuffer; port: HostPort };
const pool: PoolControl = control(memory);
const layers = new Map<number, CpuBuffers>();
const scratch = new Scratch();

/** Takes what layers were announced, replaced or dropped. */
function readNews(): void {
  for (let news = receiveMessageOnPort(port); news !== undefined; news = receiveMessageOnPort(port)) {
    const { number, replaces, changed } = news.message as Announcement;
    const before = layers.get(replaces);
    layers.delete(replaces);
    // A layer's first announcement has all of its buffers.
    if (changed) layers.set(number, { ...before, ...viewsOf(changed) } as CpuBuffers);
  }
}

Atomics.add(pool.words, pool.READY, 1);
Atomics.notify(pool.words, pool.READY);
for (let seen = 0;;) {
  Atomics.wait(pool.words, pool.GENERATION, seen);
  const generation = Atomics.load(pool.words, pool.GENERATION);
  if (generation % 2 === 1 || generation === seen) continue; // being written
  const layer = Atomics.load(pool.words, pool.LAYER), kind = Atomics.load(pool.words, pool.KIND) as JobKind;
  const begin = Atomics.load(pool.tickets, pool.BEGIN), end = Atomics.load(pool.tickets, pool.END);
  if (Atomics.load(pool.words, pool.GENERATION) !== generation) continue;
  seen = generation;
  readNews();
  const buffers = layers.get(layer);
  if (!buffers) continue; // the news has not arrived: others do the jobs
  for (let job = takeJob(pool, begin, end); job >= 0; job = takeJob(pool, begin, end)) {
    try {
      doJob(buffers, kind, job, scratch);
    } catch {
      Atomics.add(pool.words, pool.FAILED, 1);
    }
    Atomics.add(pool.words, pool.DONE, 1);
    Atomics.notify(pool.words, pool.DONE);
  }
}
