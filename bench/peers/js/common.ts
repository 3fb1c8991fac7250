// Case folder I/O and timing shared by the peers.
export interface Case {
  heads: number;
  headWidth: number;
  subvectors: number;
  centroids: number;
  tokens: number;
  coded: number;
  initOffset: number;
  sink: number;
  window: number;
  heavy: number;
}

export interface Inputs {
  c: Case;
  query: Float32Array<ArrayBuffer>; // [H,D]
  centroids: Float32Array<ArrayBuffer>; // [H,M,C,d]
  codes: Uint8Array<ArrayBuffer>; // [H,M,coded], entry i is token initOffset+i
  newKey: Float32Array<ArrayBuffer>; // [H,1,D]
}

export interface Outputs {
  indices: ArrayLike<number>; // [H,S+K+W] ascending
  codes: ArrayLike<number>; // [H,M]
  weights?: Float32Array; // [H,N]
}

const f32 = (path: string) => new Float32Array(Deno.readFileSync(path).buffer);

export function readCase(dir: string): Inputs {
  return {
    c: JSON.parse(Deno.readTextFileSync(`${dir}/case.json`)),
    query: f32(`${dir}/query.f32`),
    centroids: f32(`${dir}/centroids.f32`),
    codes: Deno.readFileSync(`${dir}/codes.u8`),
    newKey: f32(`${dir}/new_keys.f32`),
  };
}

export function writeOutputs(dir: string, peer: string, out: Outputs): void {
  const bytes = (a: { buffer: ArrayBufferLike; byteOffset: number; byteLength: number }) =>
    new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
  Deno.writeFileSync(`${dir}/${peer}.indices.u32`, bytes(Uint32Array.from(out.indices)));
  Deno.writeFileSync(`${dir}/${peer}.codes.u8`, Uint8Array.from(out.codes));
  if (out.weights) Deno.writeFileSync(`${dir}/${peer}.weights.f32`, bytes(out.weights));
}

/** The first candidate token, the first token after the candidates, and their codes, [H,M,count]. */
export function candidates(inp: Inputs): { lo: number; hi: number; codes: Uint8Array<ArrayBuffer> } {
  const { heads, subvectors, tokens, coded, initOffset, sink, window } = inp.c;
  const lo = Math.max(initOffset, sink), hi = tokens - window;
  const codes = new Uint8Array(heads * subvectors * (hi - lo));
  for (let r = 0; r < heads * subvectors; r++) {
    const at = r * coded - initOffset;
    codes.set(inp.codes.subarray(at + lo, at + hi), r * (hi - lo));
  }
  return { lo, hi, codes };
}

export const median = (a: number[]) => a.toSorted((x, y) => x - y)[a.length >> 1];

export interface Timing {
  amortizedUs: number;
  wallUs: number;
  samples: number;
}

/** `queue` submits one step without waiting for it, `fence` waits until the device is idle. */
export async function time(
  steps: number,
  queue: () => unknown,
  fence: () => unknown,
  batches = 5,
  singles = 50,
): Promise<Timing> {
  const many = async (n: number) => {
    const t0 = performance.now();
    for (let i = 0; i < n; i++) {
      const p = queue();
      if (p instanceof Promise) await p;
    }
    const p = fence();
    if (p instanceof Promise) await p;
    return (performance.now() - t0) * 1000 / n;
  };
  await many(Math.min(steps, 20));
  const amortized: number[] = [], wall: number[] = [];
  for (let i = 0; i < batches; i++) amortized.push(await many(steps));
  for (let i = 0; i < Math.min(singles, steps); i++) wall.push(await many(1));
  return { amortizedUs: median(amortized), wallUs: median(wall), samples: batches };
}

/** Runs a peer and prints its one JSON line; a failure names the step it happened in. */
export async function runPeer(peer: string, body: (step: (name: string) => void) => Promise<object>): Promise<void> {
  let at = "start";
  try {
    const result = await body((name) => at = name);
    console.log(JSON.stringify({ peer, ...result }));
  } catch (e) {
    if (Deno.env.has("PEER_TRACE")) console.error(e);
    console.log(JSON.stringify({ peer, error: `${at}: ${e instanceof Error ? e.message : e}`.slice(0, 2000) }));
  }
  Deno.exit(0);
}

export function args(): { dir: string; steps: number; options: Map<string, string> } {
  const options = new Map<string, string>();
  let dir = "";
  for (let i = 0; i < Deno.args.length; i++) {
    if (Deno.args[i].startsWith("--")) options.set(Deno.args[i].slice(2), Deno.args[++i]);
    else dir = Deno.args[i];
  }
  if (!dir) throw new Error("usage: deno run -A <peer>.ts <folder> [--steps 200]");
  return { dir, steps: Number(options.get("steps") ?? 200), options };
}

/** Keeps the GPUDevice that a library asks for, so that its queue can be waited on. */
export function captureDevice(): { device?: GPUDevice; info?: GPUAdapterInfo } {
  const kept: { device?: GPUDevice; info?: GPUAdapterInfo } = {};
  const requestAdapter = navigator.gpu.requestAdapter.bind(navigator.gpu);
  navigator.gpu.requestAdapter = async (options) => {
    const adapter = await requestAdapter(options);
    if (!adapter) return adapter;
    kept.info = adapter.info;
    const requestDevice = adapter.requestDevice.bind(adapter);
    adapter.requestDevice = async (descriptor) => kept.device = await requestDevice(descriptor);
    return adapter;
  };
  return kept;
}
