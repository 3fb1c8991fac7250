/**
 * The kernels of the training, in order.
 *
 * @module
 */

import type { Kernel } from "../gpu/kernel.ts";
import { assignClose, assignSample, fillEmpty, moveCentroids, sumClusters } from "./lloyd.ts";
import { largestNorms, sampleKeys, startCentroids, startPoints } from "./start.ts";
import type { TrainKernelOptions } from "./train.ts";

/** The kernels that run once, then those of an iteration; the first finds no work without metric "ip". */
export function trainingKernels(options: TrainKernelOptions): { start: Kernel[]; iteration: Kernel[] } {
  return {
    start: [largestNorms(options), sampleKeys(options), startPoints(options), startCentroids(options)],
    iteration: [assignSample(options), assignClose(options), sumClusters(options), moveCentroids(), fillEmpty(options)],
  };
}
