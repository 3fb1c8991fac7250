/**
 * Postings: for each cell (combination of codes), the tokens in it, so that a step can rank cells instead of tokens.
 * See `postings.wgsl`. Three kernels make them anew from the codes, in a step now and then; the tokens that came since are
 * the tail, which a step ranks one by one.
 *
 * @module
 */

import { type BufferDef, type Kernel, layerOverrides, reads, writes } from "../gpu/kernel.ts";
import { packedCodesBuffer } from "../quantize/assign_packed.ts";
import { type LayerShape, type Posted, type StepShape } from "../shape.ts";
import { scanBytes, scanOverrides, scanPart } from "../topk/scan.ts";

/** The most cells that pay: 12 bits of codes. */
export const MOST_CELLS = 4096;

/** The fewest invocations of a kernel that ranks cells: it has four tokens of the tail for each, and compares 15² pairs. */
export const LEAST_INVOCATIONS = 256;

/** The most tokens of a tail: four per invocation, wherever they begin within a word. */
export const MOST_TAIL: number = 4 * LEAST_INVOCATIONS - 24;

/** Tokens per workgroup while postings are made, and as many chunks at most. */
const LEAST_CHUNK = 4096, MOST_CHUNKS = 16;

/** Bits of a code. */
export function codeBits(shape: LayerShape): number {
  return Math.ceil(Math.log2(shape.centroids));
}

/** C^M: combinations of codes. */
export function nCells(shape: LayerShape): number {
  return 2 ** (codeBits(shape) * shape.subvectors);
}

/** Words before a row's tokens; twin of CELL_ROOM. */
function cellRoom(shape: LayerShape): number {
  return Math.ceil(nCells(shape) / 4) * 4 + 4;
}

/** u32 `[B, Hkv, CELL_ROOM + codedStride]`: where each cell begins, then the tokens, by cell and ascending */
export const postings: BufferDef = {
  name: "postings",
  type: "u32",
  elements: (shape, step) => shape.batch * shape.kvHeads * (cellRoom(shape) + step.codedStride),
};

function mostChunks({ codedStride }: StepShape): number {
  return Math.min(Math.ceil(codedStride / LEAST_CHUNK), MOST_CHUNKS);
}

/** u32 `[B, Hkv, chunks, cells]`: counts while postings are made */
export const cellCounts: BufferDef = {
  name: "cellCounts",
  type: "u32",
  elements: (shape, step) => shape.batch * shape.kvHeads * mostChunks(step) * nCells(shape),
};

/** The overrides that `postings.wgsl` declares. */
export function postingOverrides(shape: LayerShape): Record<string, number> {
  return { CELLS: nCells(shape), CODE_BITS: codeBits(shape) };
}

/**
 * Which tokens the postings hold in a step, and whether it makes them anew: where what they held has other codes now, or is
 * no candidate any more, or the tail would become too long.
 *
 * @param had what they held after the step before; undefined if nothing that can be trusted
 */
export function postedIn(
  { nCoded, nNew, rows }: Pick<StepShape, "nCoded" | "nNew" | "rows">,
  had: Posted | undefined,
): { readonly posted: Posted | undefined; readonly posts: boolean } {
  const kept = had && had.end <= nCoded - nNew ? had : undefined;
  const ranked = rows.filter((row) => row.nHeavy > 0);
  if (ranked.length === 0) return { posted: kept, posts: false };
  const begin = ranked[0].candBegin;
  const end = Math.min(...ranked.map((row) => row.candEnd)), last = Math.max(...ranked.map((row) => row.candEnd));
  const serves = kept && kept.begin === begin && kept.end <= end && last - kept.end <= MOST_TAIL;
  return serves ? { posted: kept, posts: false } : { posted: { begin, end }, posts: true };
}

function chunkTokens(posted: Posted): number {
  return Math.max(Math.ceil(posted.end / (256 * MOST_CHUNKS)) * 256, LEAST_CHUNK);
}

function nChunks(posted: Posted): number {
  return Math.ceil(posted.end / chunkTokens(posted));
}

function cellOf(shape: LayerShape, step: StepShape, codes: ArrayLike<number>, kv: number, i: number): number {
  let cell = 0;
  for (let m = 0; m < shape.subvectors; m++) {
    const word = codes[(kv * shape.subvectors + m) * step.codedStride / 4 + (i >> 2)];
    cell |= (word >>> (i & 3) * 8 & 0xff) << m * codeBits(shape);
  }
  return cell;
}

/** Calls back for every (batch, KV head) and chunk with the chunk's tokens. */
function eachChunk(
  shape: LayerShape,
  { posted }: StepShape,
  visit: (kv: number, chunk: number, begin: number, end: number) => void,
): void {
  if (!posted) return;
  for (let kv = 0; kv < shape.batch * shape.kvHeads; kv++) {
    for (let chunk = 0; chunk < nChunks(posted); chunk++) {
      const first = chunk * chunkTokens(posted);
      visit(kv, chunk, Math.max(first, posted.begin), Math.min(first + chunkTokens(posted), posted.end));
    }
  }
}

const nKv = (shape: LayerShape) => shape.batch * shape.kvHeads;

/** Workgroups and bytes of a kernel that goes over all chunks; `perToken` bytes beside the codes. */
function chunkWork(shape: LayerShape, { posted, posts }: StepShape, perToken: number) {
  if (!posts || !posted) return { workgroups: 0, bytesMoved: 0 };
  const chunks = nKv(shape) * nChunks(posted);
  const tokens = nKv(shape) * (posted.end - posted.begin);
  return { workgroups: chunks, bytesMoved: tokens * (shape.subvectors + perToken) + chunks * nCells(shape) * 4 };
}

/** Counts the tokens of each chunk in each cell. */
export const countCells: Kernel = {
  name: "count_cells",
  wgsl: ["layer/layer.wgsl", "postings/postings.wgsl", "postings/cell_of.wgsl", "postings/count_cells.wgsl"],
  buffers: [reads(packedCodesBuffer), writes(cellCounts)],
  plan: (shape) => ({
    overrides: { ...layerOverrides(shape), ...postingOverrides(shape), WG: 256 },
    invocations: 256,
    workgroupBytes: 4 * nCells(shape),
  }),
  work: (shape, step) => chunkWork(shape, step, 0),
  twin(shape, step, { codes, cellCounts }) {
    eachChunk(shape, step, (kv, chunk, begin, end) => {
      const row = (kv * mostChunks(step) + chunk) * nCells(shape);
      cellCounts.fill(0, row, row + nCells(shape));
      for (let i = begin; i < end; i++) cellCounts[row + cellOf(shape, step, codes, kv, i)]++;
    });
  },
};

/** Replaces counts by where they begin. */
export const scanCells: Kernel = {
  name: "scan_cells",
  wgsl: ["layer/layer.wgsl", scanPart({ subgroupSize: 0 }), "postings/postings.wgsl", "postings/scan_cells.wgsl"],
  buffers: [writes(cellCounts), writes(postings)],
  plan: (shape) => ({
    overrides: {
      ...layerOverrides(shape),
      ...postingOverrides(shape),
      ...scanOverrides({ invocations: 256, subgroupSize: 0 }),
    },
    invocations: 256,
    workgroupBytes: scanBytes({ invocations: 256, subgroupSize: 0 }) + 16,
  }),
  work(shape, { posts, posted }) {
    if (!posts || !posted) return { workgroups: 0, bytesMoved: 0 };
    return { workgroups: nKv(shape), bytesMoved: nKv(shape) * nCells(shape) * 4 * (3 * nChunks(posted) + 1) };
  },
  twin(shape, step, { cellCounts, postings }) {
    const stride = cellRoom(shape) + step.codedStride, chunks = step.posted ? nChunks(step.posted) : 0;
    for (let kv = 0; kv < nKv(shape); kv++) {
      let at = 0;
      for (let cell = 0; cell < cellRoom(shape); cell++) {
        postings[kv * stride + cell] = at;
        for (let chunk = 0; chunk < chunks && cell < nCells(shape); chunk++) {
          const ix = (kv * mostChunks(step) + chunk) * nCells(shape) + cell, count = cellCounts[ix];
          cellCounts[ix] = at;
          at += count;
        }
      }
    }
  },
};

/** Writes the tokens, by cell and ascending. */
export const scatterCells: Kernel = {
  name: "scatter_cells",
  wgsl: ["layer/layer.wgsl", "postings/postings.wgsl", "postings/cell_of.wgsl", "postings/scatter_cells.wgsl"],
  buffers: [reads(packedCodesBuffer), writes(cellCounts), writes(postings)],
  plan: (shape) => ({
    overrides: { ...layerOverrides(shape), ...postingOverrides(shape), WG: 256 },
    invocations: 256,
    workgroupBytes: 4 * 256,
  }),
  work: (shape, step) => chunkWork(shape, step, 4),
  twin(shape, step, { codes, cellCounts, postings }) {
    const stride = cellRoom(shape) + step.codedStride;
    eachChunk(shape, step, (kv, chunk, begin, end) => {
      const row = (kv * mostChunks(step) + chunk) * nCells(shape);
      for (let i = begin; i < end; i++) {
        const at = cellCounts[row + cellOf(shape, step, codes, kv, i)]++;
        postings[kv * stride + cellRoom(shape) + at] = i;
      }
    });
  },
};

/** The kernels that make postings, in order. */
export const POSTING_KERNELS: readonly Kernel[] = [countCells, scanCells, scatterCells];

/** Bytes of a list's step that the postings cost: where cells begin, and the tokens that are taken. */
export function postingBytes(shape: LayerShape, nHeavy: number): number {
  return 4 * (nCells(shape) + 1 + nHeavy);
}
