#!/usr/bin/env python3
"""Times decode attention as PyTorch's scaled_dot_product_attention does it.

    python3 sdpa.py --tokens 32000,131072 --heads 32 --width 128 --listed 384

One query row per head, keys and values [1, H, N, D], drawn from a normal distribution; "all" attends to every token,
"listed" gathers a list of tokens per head first and attends to those. JSON on the last line of stdout, with one row per
kind of attention, f16 and f32, and N:
  gpuUs  CUDA events around one graph that holds many steps, per step, median of segments: device time, no host in it
  error  |o - o_f64| / |o_f64| of the worse of the first and the last head
TF32 is off. `--device cpu` computes the errors only, for tests without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa


def gpu_us(step: Callable[[], torch.Tensor], steps: int, segments: int) -> float:
    """Median time of a step, microseconds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(steps):
            step()
    times = []
    for _ in range(3):
        graph.replay()
    for _ in range(segments):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / steps)
    return statistics.median(times)


def exact(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one head in f64: query [D], keys and values [n, D]."""
    scores = keys.double() @ query.double() / query.shape[0] ** 0.5
    return torch.softmax(scores, 0) @ values.double()


def main() -> None:
    """Measures what the flags name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", default="32000")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--listed", type=int, default=384)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--segments", type=int, default=9)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device: torch.cuda.is_available() is false")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(1)
    rows = []
    for tokens in (int(text) for text in args.tokens.split(",")):
        shape = (1, args.heads, tokens, args.width)
        full = [torch.randn(shape, device=args.device) for _ in range(2)]
        single = torch.randn((1, args.heads, 1, args.width), device=args.device)
        lists = torch.stack([torch.randperm(tokens, device=args.device)[: args.listed].sort().values
                             for _ in range(args.heads)])
        index = lists[None, :, :, None].expand(1, args.heads, args.listed, args.width)
        for elements, dtype in (("f16", torch.float16), ("f32", torch.float32)):
            keys, values, query = (x.to(dtype) for x in (*full, single))

            def dense() -> torch.Tensor:
                return sdpa(query, keys, values)

            def listed() -> torch.Tensor:
                return sdpa(query, keys.gather(2, index), values.gather(2, index))

            for attends, step in (("listed", listed), ("all", dense)):
                output = step()
                error = 0.0
                for head in (0, args.heads - 1):
                    k, v = keys[0, head], values[0, head]
                    if attends == "listed":
                        k, v = k[lists[head]], v[lists[head]]
                    want = exact(query[0, head, 0], k, v)
                    error = max(error, float((output[0, head, 0].double() - want).norm() / want.norm()))
                row = {"attends": attends, "elements": elements, "tokens": tokens, "error": error, "gpuUs": None}
                row["attended"] = args.listed if attends == "listed" else tokens
                if args.device == "cuda":
                    row["gpuUs"] = gpu_us(step, args.steps, args.segments)
                rows.append(row)
    device = torch.cuda.get_device_name(0) if args.device == "cuda" else "cpu"
    print(json.dumps({"rows": rows, "device": device, "version": f"PyTorch {torch.__version__}"}))


if __name__ == "__main__":
    main()
