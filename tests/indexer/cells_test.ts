import { assert, assertEquals, assertThrows } from "@std/assert";
import { E08, e08 } from "../../indexer/pipelines/e08_cells.ts";
import { gpuPipeline } from "../../indexer/pipelines/gpu_layer.ts";
import { pipelineById } from "../../indexer/pipelines/mod.ts";
import type { Pipeline } from "../../indexer/pipelines/pipeline.ts";
import { PqIndexer } from "../../indexer/pq_indexer.ts";
import type { Gpu } from "../../kernels/gpu/device.ts";
import { MOST_TAIL, scatterCells } from "../../kernels/postings/postings.ts";
import { cellList } from "../../kernels/score_topk_list/cell_list.ts";
import { clustered } from "../../experiments/inputs/synthetic.ts";
import { gpuTest, uniform } from "../support.ts";

const SHAPE = { heads: 2, kvHeads: 1, headWidth: 8, subvectors: 2, bits: 3, sinkSize: 3, windowSize: 5, heavySize: 12 };
const D = 8;
const keysOf = (t: number, seed: number) => clustered(t, D, 6, 0.1, seed);

/** The pipeline as hardware would have it, where a software device would code in a dispatch of its own. */
const asHardware = gpuPipeline({
  ...E08,
  kernelsFor: ({ config, device, weights }) =>
    e08.kernelsFor({
      config,
      weights,
      device: {
        limits: device.limits,
        subgroupSize: device.subgroupSize,
        features: device.features,
        info: { ...device.info, isSoftware: false },
      },
    }),
});

/** What happens to an index, in order. */
type Act = (index: PqIndexer, gpu: Gpu) => Promise<unknown>;

const append = (t: number, seed: number): Act => (index) => index.append(keysOf(t, seed));
const step = (t: number, seed: number): Act => async (index) => {
  const data = await (await index.step(uniform(2 * t * D, seed), keysOf(t, seed + 1))).read();
  const lists = Array.from(
    data.lengths,
    (length, list) => data.indices.slice(list * data.listStride, list * data.listStride + length).join(),
  );
  const weights = Array.from(
    data.lengths,
    (_, list) => data.weights!.slice(list * data.weightStride, list * data.weightStride + index.tokens).join(""),
  );
  return [lists, weights, (await index.readCodes()).join()];
};

const SEQUENCES: Record<string, readonly Act[]> = {
  "decoding": [append(400, 1), step(1, 2), step(1, 3), step(3, 4), step(1, 5)],
  "tokens taken back, and others in their place": [
    append(400, 1),
    step(1, 2),
    (index) => index.truncate(150),
    step(1, 3),
    (index) => index.truncate(120),
    append(300, 4),
    step(1, 5),
  ],
  "training again between two steps": [
    append(400, 1),
    step(1, 2),
    (index) => index.retrain(keysOf(index.tokens, 7)),
    step(1, 3),
  ],
  "a training that fails": [
    append(400, 1),
    step(1, 2),
    (index) => index.retrain(keysOf(index.tokens - 1, 7)).catch(() => {}),
    step(1, 3),
  ],
  "a tail that becomes too long": [
    append(400, 1),
    step(1, 2),
    append(MOST_TAIL - 1, 3),
    step(1, 4),
    step(1, 5),
    append(30, 6),
    step(1, 7),
  ],
  "buffers that grow": [append(400, 1), step(1, 2), (index) => index.reserve(5000, 3), step(3, 4)],
  "a recorded step that throws": [
    append(400, 1),
    step(1, 2),
    (index) => index.reserve(4000),
    async (index, gpu) => {
      using query = await gpu.upload("query", uniform(2 * D, 3));
      assertThrows(
        () =>
          index.record(() => {
            throw new Error("as meant");
          }, { query: query.buffer }),
        Error,
        "as meant",
      );
    },
    step(1, 4),
  ],
  "a submit that fails": [
    append(400, 1),
    step(1, 2),
    (index) => index.reserve(4000),
    async (index, gpu) => {
      const { queue } = gpu.device;
      const submit = queue.submit;
      queue.submit = () => {
        throw new Error("as meant");
      };
      try {
        await index.select(uniform(2 * D, 3)).then(
          () => assert(false),
          (error) => assertEquals(error.message, "as meant"),
        );
      } finally {
        queue.submit = submit;
      }
    },
    step(1, 4),
  ],
  "lists that shrink to all tokens": [
    append(400, 1),
    step(1, 2),
    (index) => index.truncate(10),
    step(1, 3),
    step(1, 4),
  ],
  "keys before any list": [append(3, 1), step(1, 2), step(2, 3), append(2, 4), step(1, 5), append(60, 6), step(1, 7)],
};

for (const [name, acts] of Object.entries(SEQUENCES)) {
  gpuTest(`e08 lists what e05 lists: ${name}`, async (gpu) => {
    const codebook = { centroids: uniform(8 * D, 9), tokens: 0 };
    const run = async (pipeline: Pipeline) => {
      using index = await PqIndexer.create({
        ...SHAPE,
        pipeline,
        device: gpu.device,
        weights: true,
        codebook,
        initOffset: 2,
      });
      const seen: unknown[] = [];
      for (const act of acts) seen.push(await act(index, gpu));
      return { seen, operations: index.operations };
    };
    const expected = await run(pipelineById("e05"));
    for (const pipeline of [e08, asHardware]) {
      const { seen, operations } = await run(pipeline);
      assert(operations.includes(scatterCells.name) && operations.some((operation) => operation.startsWith("cell_")));
      assertEquals(seen, expected.seen);
    }
  });
}

gpuTest("e08 goes on by tiles where a binding no longer holds the postings", async () => {
  const adapter = (await navigator.gpu.requestAdapter())!;
  const device = await adapter.requestDevice();
  const largest = 4 * (64 + 4 + 1024); // postings of 1,024 tokens
  const limits = new Proxy(device.limits, {
    get: (target, name) => name === "maxStorageBufferBindingSize" ? largest : Reflect.get(target, name, target),
  });
  Object.defineProperty(device, "limits", { value: limits });
  const codebook = { centroids: uniform(8 * D, 9), tokens: 0 };
  const run = async (pipeline: Pipeline) => {
    using index = await PqIndexer.create({ ...SHAPE, pipeline, device, codebook, initOffset: 2, capacity: 1024 });
    const seen: unknown[] = [];
    const look = async (seed: number) => {
      const data = await (await index.step(uniform(2 * D, seed), keysOf(1, seed))).read();
      seen.push(
        Array.from(data.lengths, (length, list) => [...data.indices.slice(list * data.listStride).slice(0, length)]),
      );
    };
    await index.append(keysOf(900, 1));
    await look(2);
    await index.append(keysOf(600, 3));
    await look(4);
    return { seen, operations: index.operations };
  };
  const expected = await run(pipelineById("e05")), got = await run(e08);
  assertEquals(got.seen, expected.seen);
  // A software device codes new keys in a dispatch of its own, hardware beside the lists.
  const ranksCells = got.operations.some((name) => name === "cell_list" || name === "cell_step");
  assert(ranksCells && got.operations.includes("score_tiles"), got.operations.join());
  device.destroy();
});

Deno.test("cell_list: refuses sizes that it cannot have", () => {
  const options = { mostHeavy: 10, weights: false, subgroupSize: 0 };
  for (const invocations of [128, 300]) {
    assertThrows(() => cellList({ ...options, invocations }), RangeError, `invocations is ${invocations}`);
  }
  const sizes = { ...options, invocations: 256 };
  assertThrows(() => cellList({ ...sizes, mostHeavy: 513 }), RangeError, "they are 513 out of 513");
  const reRanked = { elements: "f16", mostShort: 4097 } as const;
  assertThrows(() => cellList({ ...sizes, reRanked }), RangeError, "they are 10 out of 4097");
});
