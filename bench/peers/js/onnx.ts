// A small encoder of ONNX models (protobuf wire format), only what the graph in ort.ts needs.
type Shape = readonly number[];
export type Attribute = number | string | number[];

export const FLOAT = 1, UINT8 = 2, INT32 = 6, INT64 = 7;

class Writer {
  private bytes: number[] = [];
  private chunks: Uint8Array[] = [];

  varint(value: number | bigint): void {
    let v = BigInt.asUintN(64, BigInt(value));
    for (; v > 127n; v >>= 7n) this.bytes.push(Number(v & 127n) | 128);
    this.bytes.push(Number(v));
  }
  int(field: number, value: number): void {
    this.varint(field << 3);
    this.varint(value);
  }
  data(field: number, value: Uint8Array): void {
    this.varint(field << 3 | 2);
    this.varint(value.length);
    this.chunks.push(Uint8Array.from(this.bytes), value);
    this.bytes = [];
  }
  text(field: number, value: string): void {
    this.data(field, new TextEncoder().encode(value));
  }
  message(field: number, fill: (w: Writer) => void): void {
    const inner = new Writer();
    fill(inner);
    this.data(field, inner.done());
  }
  done(): Uint8Array<ArrayBuffer> {
    const all = [...this.chunks, Uint8Array.from(this.bytes)];
    const out = new Uint8Array(all.reduce((n, c) => n + c.length, 0));
    let at = 0;
    for (const c of all) {
      out.set(c, at);
      at += c.length;
    }
    return out;
  }
}

export class Graph {
  private nodes: ((w: Writer) => void)[] = [];
  private initializers: ((w: Writer) => void)[] = [];
  private inputs: ((w: Writer) => void)[] = [];
  private outputs: ((w: Writer) => void)[] = [];
  private names = 0;

  input(name: string, type: number, shape: Shape): string {
    this.inputs.push((w) => valueInfo(w, name, type, shape));
    return name;
  }
  output(name: string, type: number, shape: Shape): void {
    this.outputs.push((w) => valueInfo(w, name, type, shape));
  }
  floats(values: Iterable<number>, shape: Shape): string {
    return this.constant(FLOAT, Float32Array.from(values), shape);
  }
  int32(values: Iterable<number>, shape: Shape): string {
    return this.constant(INT32, Int32Array.from(values), shape);
  }
  int64(values: Iterable<number>): string {
    const data = BigInt64Array.from([...values].map(BigInt));
    return this.constant(INT64, data, [data.length]);
  }
  private constant(type: number, data: Float32Array | Int32Array | BigInt64Array, shape: Shape): string {
    const name = `c${this.names++}`;
    this.initializers.push((w) => {
      for (const n of shape) w.int(1, n); // dims
      w.int(2, type); // data_type
      w.text(8, name);
      w.data(9, new Uint8Array(data.buffer)); // raw_data
    });
    return name;
  }
  /** Adds a node; `outputs` is their count, or the names they must have. */
  node(op: string, inputs: string[], attributes: Record<string, Attribute> = {}, outputs: number | string[] = 1) {
    const names = typeof outputs === "number" ? Array.from({ length: outputs }, () => `v${this.names++}`) : outputs;
    this.nodes.push((w) => {
      for (const n of inputs) w.text(1, n);
      for (const n of names) w.text(2, n);
      w.text(3, `${op}_${names[0]}`);
      w.text(4, op);
      for (const [name, value] of Object.entries(attributes)) w.message(5, (a) => attribute(a, name, value));
    });
    return names;
  }
  op(op: string, inputs: string[], attributes: Record<string, Attribute> = {}, output?: string): string {
    return this.node(op, inputs, attributes, output ? [output] : 1)[0];
  }
  reshape(x: string, shape: Shape): string {
    return this.op("Reshape", [x, this.int64(shape)]);
  }
  model(opset: number): Uint8Array<ArrayBuffer> {
    const model = new Writer();
    model.int(1, 8); // ir_version
    model.message(7, (graph) => {
      for (const n of this.nodes) graph.message(1, n);
      graph.text(2, "step");
      for (const i of this.initializers) graph.message(5, i);
      for (const i of this.inputs) graph.message(11, i);
      for (const o of this.outputs) graph.message(12, o);
    });
    model.message(8, (w) => w.int(2, opset)); // opset_import of the default domain
    return model.done();
  }
}

function valueInfo(w: Writer, name: string, type: number, shape: Shape): void {
  w.text(1, name);
  w.message(2, (t) =>
    t.message(1, (tensor) => {
      tensor.int(1, type);
      tensor.message(2, (s) => {
        for (const n of shape) s.message(1, (dim) => dim.int(1, n));
      });
    }));
}

function attribute(w: Writer, name: string, value: Attribute): void {
  w.text(1, name);
  if (typeof value === "number") { // INT
    w.int(3, value);
    w.int(20, 2);
  } else if (typeof value === "string") { // STRING
    w.text(4, value);
    w.int(20, 3);
  } else { // INTS
    for (const v of value) w.int(8, v);
    w.int(20, 7);
  }
}
