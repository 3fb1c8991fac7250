/**
 * Which cached tokens should a query attend to? PQ indexing of a KV cache on WebGPU: quantize new
 * keys, score all keys through the codebook, keep the top K, build the list `[sink | heavy | window]`.
 *
 * @module
 */

export {
  type Codebook,
  referenceCodes,
  type ReferenceKeys,
  referenceSelect,
  type ReferenceSelection,
} from "./indexer/reference.ts";
export {
  type Metric,
  type Pooling,
  type PqConfig,
  resolveConfig,
  type ResolvedConfig,
  type Size,
} from "./indexer/config.ts";
export { trainCodebook, type TrainOptions } from "./indexer/kmeans.ts";
export {
  type AppendOptions,
  type CachedKeys,
  type CodebookInput,
  PqIndexer,
  type PqIndexerOptions,
  type RecordOptions,
  type SelectOptions,
  type StepOptions,
  type TrainKeysOptions,
} from "./indexer/pq_indexer.ts";
export type { KeyElements } from "./indexer/key_parts.ts";
export {
  listOf,
  Selection,
  type SelectionBuffers,
  type SelectionData,
  type SelectionOutput,
} from "./indexer/selection.ts";
export { Attention, type AttentionOptions, type AttentionResult, type AttentionStep } from "./indexer/attention.ts";
export { CPU_PIPELINE, DEFAULT_PIPELINE, pipelineById, PIPELINES } from "./indexer/pipelines/mod.ts";
export {
  DEFAULT_DEVICE,
  type PlannedKernel,
  type PlanOptions,
  planStep,
  type StepPlan,
} from "./indexer/pipelines/plan.ts";
export { checkTuningFile, type Tuning, type TuningEntry, type TuningFile } from "./indexer/tuning.ts";
export { SafetensorsError } from "./indexer/safetensors.ts";
export { type CpuOptions, cpuPipeline } from "./indexer/pipelines/cpu/mod.ts";
export { WorkerError } from "./indexer/pipelines/cpu/pool.ts";
export type {
  Layer,
  LayerContext,
  LayerStep,
  PassTarget,
  Pipeline,
  PlanContext,
} from "./indexer/pipelines/pipeline.ts";
export type { Capacity } from "./indexer/config.ts";
export { type DeviceFacts, Gpu, type GpuInfo, type GpuOptions } from "./kernels/gpu/device.ts";
export { type GpuInput, type GpuRange, OwnedBuffer, type ResolvedInput } from "./kernels/gpu/buffers.ts";
export { PassTimer } from "./kernels/gpu/timing.ts";
export {
  GpuDeviceLostError,
  GpuError,
  GpuOutOfMemoryError,
  GpuShaderError,
  GpuUnavailableError,
  GpuValidationError,
} from "./kernels/gpu/errors.ts";
export type {
  BufferDef,
  BufferUse,
  ElementArray,
  ElementType,
  HostBuffers,
  Kernel,
  KernelPlan,
  KernelView,
  KernelWork,
} from "./kernels/gpu/kernel.ts";
export type { LayerShape, Posted, RowShape, StepShape } from "./kernels/shape.ts";
