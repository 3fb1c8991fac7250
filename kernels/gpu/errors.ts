/**
 * Typed errors of the GPU layer. Each says what failed and what to do about it.
 *
 * @module
 */

/** Base class of everything that the GPU layer throws. */
export class GpuError extends Error {
  /** An error with the class's own name, so that printed errors tell which one it was. */
  constructor(message: string) {
    super(message);
    this.name = new.target.name;
  }
}

/** No adapter, or no WebGPU in this runtime. The message says what to install. */
export class GpuUnavailableError extends GpuError {}

/** A buffer or pipeline could not be allocated. Earlier state is intact. */
export class GpuOutOfMemoryError extends GpuError {}

/** The device was lost or destroyed; nothing on it can be used any more. */
export class GpuDeviceLostError extends GpuError {}

/** A call broke a WebGPU rule (a buffer with the wrong usage, say). */
export class GpuValidationError extends GpuError {}

/** A WGSL file did not compile. */
export class GpuShaderError extends GpuError {
  /** The `.wgsl` file that holds the error, or the kernel's name if no line is known. */
  readonly file: string;
  /** 1-based line in `file`, 0 if unknown. */
  readonly line: number;
  /** 1-based column, 0 if unknown. */
  readonly column: number;

  /** An error at `file:line:column`; `detail` is the compiler's own text. */
  constructor(file: string, line: number, column: number, detail: string) {
    super(`Cannot compile ${file}:${line}:${column}: ${detail.trim()}`);
    this.file = file;
    this.line = line;
    this.column = column;
  }
}
