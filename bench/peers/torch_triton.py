#!/usr/bin/env python3
"""Times one step of long-context decoding (top-K tokens by product quantization) as PyTorch and Triton do it.

    python3 torch_triton.py FOLDER [--only ID,ID] [--samples N] [--no-cold] [--no-tune]

The step, for H heads of width D cut into M subvectors of width d with C centroids each, over N tokens:
  1. code the new key: per head and subvector the nearest centroid (lowest number on a tie), written behind the codes;
  2. table[h,m,c] = q[h,m,:] . centroid[h,m,c,:];  score[h,i] = sum over m of table[h,m,codes[h,m,i]], in f32;
  3. candidates are the tokens max(initOffset, sink) <= token < N - window (code i belongs to token initOffset + i);
  4. heavy: the K candidates with the highest scores;
  5. list: ascending sink | heavy | window per head, and weights [H,N], 1 at the listed tokens, else 0.

FOLDER holds case.json, query.f32 [H,D], centroids.f32 [H,M,C,d], codes.u8 [H,M,coded] and new_keys.f32 [H,1,D]. Each
implementation leaves <id>.indices.u32 [H,list], <id>.codes.u8 [H,M] and <id>.weights.f32 [H,N] there: what the captured
graph wrote on its last replay, after a replay with another query (so stale weights would show).

Implementations:
  torch-imperative          plain tensor operations, int64 codes, everything fresh on each step
  triton-fused-score        one Triton kernel scores blocks of 128 keys from gathered centroids; the rest is torch
  triton-lookup-torch-topk  lookup table and scores in Triton, torch.topk and sort, one finishing kernel
  triton-lookup-fused-topk  table, scores, exact top K per tile and per head in Triton (one to three launches)
The Triton rows are tuned by an explicit loop over configurations; a configuration whose selection is wrong is dropped.

Times, microseconds per step, medians (each row's "samples" is the number of wall samples):
  gpuUs         CUDA events around one graph that holds many steps: device time with no host in it
  graphGpuUs    CUDA events around back-to-back replays of a graph that holds one step
  graphWallUs   one replay of that graph and torch.cuda.synchronize()
  wallUs        one eager step and torch.cuda.synchronize()
  amortizedUs   wall time of many eager steps and one synchronize, per step
  coldUs        CUDA events around a graph of one step on each of many copies of codes and centroids (128 MB or more
                together, past the L2 cache), per step
"dispatches" counts the kernel, copy and fill nodes of a captured step. One JSON document goes to stdout, progress to
stderr. Everything stays on the device between steps; TF32 is off. `--device cpu` (with TRITON_INTERPRET=1) only runs
the steps and writes the files, for tests without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    TRITON_VERSION: str | None = triton.__version__
    HAS_GATHER = hasattr(tl, "gather")
    PAD_KEY = tl.constexpr(-(2**31))  # below the key of every finite score
    LOWEST_KEY = tl.constexpr(-2139095040)  # the key of the lowest finite f32
    VALUE_STEPS = tl.constexpr(14)  # search steps that halve the value range before halving the key range
except ImportError:
    triton = tl = None  # type: ignore[assignment]
    TRITON_VERSION = None
    HAS_GATHER = False

    def jit(fn: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[misc]
        return fn


# --------------------------------------------------------------------------------------------------------------------
# Triton kernels


@jit
def ordered_key(score):
    """f32 to an int32 that sorts the same way; -0 and 0 get one key. Its own inverse on the bits."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def key_value(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def search_kth(keys, lo, hi, count_lo, K: tl.constexpr, WAYS: tl.constexpr):
    """Narrows lo <= K-th largest key < hi until count(keys >= lo) == K or hi == lo + 1.

    count_lo is count(keys >= lo), or anything over K where it is not known. Each step splits the range into WAYS parts:
    first the range of values, where scores are spread evenly, then the range of keys, which bounds the steps.
    """
    count_hi = count_lo * 0
    step = count_lo * 0
    while (count_lo != K) & (lo + 1 < hi):
        a = key_value(lo)
        b = key_value(hi)
        if WAYS == 2:
            by_key = (lo >> 1) + (hi >> 1) + (lo & hi & 1)
            mid = tl.where(step < VALUE_STEPS, ordered_key(a * 0.5 + b * 0.5), by_key)
            mid = tl.minimum(tl.maximum(mid, lo + 1), hi - 1)
            count = tl.sum((keys >= mid).to(tl.int32), 0)
            up = count >= K
            lo = tl.where(up, mid, lo)
            count_lo = tl.where(up, count, count_lo)
            hi = tl.where(up, hi, mid)
            count_hi = tl.where(up, count_hi, count)
        else:
            third = (hi // 3) - (lo // 3)
            mid1 = tl.where(step < VALUE_STEPS, ordered_key(a * (2.0 / 3.0) + b * (1.0 / 3.0)), lo + third)
            mid2 = tl.where(step < VALUE_STEPS, ordered_key(a * (1.0 / 3.0) + b * (2.0 / 3.0)), hi - third)
            mid1 = tl.minimum(tl.maximum(mid1, lo + 1), hi - 1)
            mid2 = tl.minimum(tl.maximum(mid2, mid1), hi - 1)
            both = tl.sum((keys >= mid1).to(tl.int32) + ((keys >= mid2).to(tl.int32) << 16), 0)
            count1 = both & 0xFFFF
            count2 = both >> 16
            up1 = count1 >= K
            up2 = count2 >= K
            hi = tl.where(up2, hi, tl.where(up1, mid2, mid1))
            count_hi = tl.where(up2, count_hi, tl.where(up1, count2, count1))
            lo = tl.where(up2, mid2, tl.where(up1, mid1, lo))
            count_lo = tl.where(up2, count2, tl.where(up1, count1, count_lo))
        step += 1
    return lo, count_lo, count_hi


@jit
def pick(keys, lo, count_lo, count_hi, K: tl.constexpr):
    """The taken elements and their places in order: all above lo, and of those equal to lo the first that still fit."""
    above = (keys > lo).to(tl.int32)
    equal = (keys == lo).to(tl.int32)
    need = tl.where(count_lo == K, K, K - count_hi)
    scan = tl.cumsum(above + (equal << 16), 0)
    n_above = scan & 0xFFFF
    n_equal = scan >> 16
    taken = (above > 0) | ((equal > 0) & (n_equal <= need))
    return taken, n_above + tl.minimum(n_equal, need) - 1


@jit
def table_row(query_ptr, centroids_ptr, row, C: tl.constexpr, SUB: tl.constexpr):
    """Dot products of one query subvector with its C centroids; row = head * M + subvector."""
    c = tl.arange(0, C)
    x = tl.arange(0, SUB)
    q = tl.load(query_ptr + row * SUB + x)
    cent = tl.load(centroids_ptr + row * C * SUB + c[:, None] * SUB + x[None, :])
    return tl.sum(cent * q[None, :], 1)


@jit
def code_key(keys_ptr, centroids_ptr, codes_ptr, row, stride, coded, C: tl.constexpr, SUB: tl.constexpr):
    """Codes one subvector of the new key and writes the code behind the others of its row."""
    c = tl.arange(0, C)
    x = tl.arange(0, SUB)
    key = tl.load(keys_ptr + row * SUB + x)
    cent = tl.load(centroids_ptr + row * C * SUB + c[:, None] * SUB + x[None, :])
    diff = key[None, :] - cent
    dist = tl.sum(diff * diff, 1)
    best = tl.min(dist, 0)
    code = tl.min(tl.where(dist == best, c, C), 0)
    tl.store(codes_ptr + row * stride + coded, code.to(tl.uint8))


@jit
def clear_listed(list_ptr, weights_ptr, head, tokens, LIST: tl.constexpr, LIST_PAD: tl.constexpr):
    """Takes the previous step's list back out of the persistent weights."""
    n = tl.arange(0, LIST_PAD)
    old = tl.load(list_ptr + head * LIST + n, mask=n < LIST, other=0)
    tl.store(weights_ptr + head.to(tl.int64) * tokens + old, tl.zeros([LIST_PAD], tl.float32), mask=n < LIST)


@jit
def write_ends(list_ptr, weights_ptr, head, tokens, K: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
               ENDS_PAD: tl.constexpr):
    """Sink and window: both ends of the list, and their weights."""
    n = tl.arange(0, ENDS_PAD)
    one = tl.full([ENDS_PAD], 1.0, tl.float32)
    row = weights_ptr + head.to(tl.int64) * tokens
    out = list_ptr + head * (S + K + W)
    tl.store(out + n, n, mask=n < S)
    tl.store(row + n, one, mask=n < S)
    tl.store(out + S + K + n, tokens - W + n, mask=n < W)
    tl.store(row + tokens - W + n, one, mask=n < W)


@jit
def prepare_kernel(codes_ptr, centroids_ptr, query_ptr, keys_ptr, table_ptr, list_ptr, weights_ptr, stride, coded,
                   tokens, M: tl.constexpr, C: tl.constexpr, SUB: tl.constexpr, LIST: tl.constexpr,
                   LIST_PAD: tl.constexpr):
    """Program (head, subvector): its row of the lookup table, the new key's code, and the stale weights."""
    head = tl.program_id(0)
    m = tl.program_id(1)
    row = head * M + m
    dots = table_row(query_ptr, centroids_ptr, row, C, SUB)
    tl.store(table_ptr + row * C + tl.arange(0, C), dots)
    code_key(keys_ptr, centroids_ptr, codes_ptr, row, stride, coded, C, SUB)
    if m == 0:
        clear_listed(list_ptr, weights_ptr, head, tokens, LIST, LIST_PAD)


@jit
def merge_head(cand_key_ptr, cand_token_ptr, floor_ptr, list_ptr, weights_ptr, head, tokens, tiles, K: tl.constexpr,
               S: tl.constexpr, W: tl.constexpr, TILES_PAD: tl.constexpr, ENDS_PAD: tl.constexpr, WAYS: tl.constexpr):
    """One head's list from its tiles' candidates, which stand in ascending order of tokens."""
    n = tl.arange(0, TILES_PAD * K)
    inside = n < tiles * K
    base = head * tiles * K
    keys = tl.load(cand_key_ptr + base + n, mask=inside, other=PAD_KEY, cache_modifier=".cg")
    found = tl.load(cand_token_ptr + base + n, mask=inside, other=0, cache_modifier=".cg")
    t = tl.arange(0, TILES_PAD)
    # Every tile's own K-th key bounds the head's K-th key from below.
    floors = tl.load(floor_ptr + head * tiles + t, mask=t < tiles, other=LOWEST_KEY, cache_modifier=".cg")
    write_ends(list_ptr, weights_ptr, head, tokens, K, S, W, ENDS_PAD)
    lo = tl.max(floors, 0)
    hi = tl.max(keys, 0) + 1
    lo, count_lo, count_hi = search_kth(keys, lo, hi, tiles * 0 + (K + 1), K, WAYS)
    taken, place = pick(keys, lo, count_lo, count_hi, K)
    tl.store(list_ptr + head * (S + K + W) + S + place, found, mask=taken)
    one = tl.full([TILES_PAD * K], 1.0, tl.float32)
    tl.store(weights_ptr + head.to(tl.int64) * tokens + found, one, mask=taken)


@jit
def merge_kernel(cand_key_ptr, cand_token_ptr, floor_ptr, list_ptr, weights_ptr, tokens, tiles, K: tl.constexpr,
                 S: tl.constexpr, W: tl.constexpr, TILES_PAD: tl.constexpr, ENDS_PAD: tl.constexpr, WAYS: tl.constexpr):
    merge_head(cand_key_ptr, cand_token_ptr, floor_ptr, list_ptr, weights_ptr, tl.program_id(0), tokens, tiles, K, S, W,
               TILES_PAD, ENDS_PAD, WAYS)


@jit
def lookup_tile(codes_ptr, centroids_ptr, query_ptr, table_ptr, scores_ptr, cand_key_ptr, cand_token_ptr, floor_ptr,
                head, tile, stride, first, end, init, tiles, M: tl.constexpr, C: tl.constexpr, SUB: tl.constexpr,
                K: tl.constexpr, BLOCK: tl.constexpr, PREPARED: tl.constexpr, GATHER: tl.constexpr,
                SELECT: tl.constexpr, WAYS: tl.constexpr):
    """Scores of BLOCK codes of one head, written as they are or as the tile's K best."""
    i = first + tile * BLOCK + tl.arange(0, BLOCK)
    inside = i < end
    score = tl.zeros([BLOCK], tl.float32)
    own_table = table_ptr + (head * M if PREPARED else (head * tiles + tile) * M) * C
    if not PREPARED and not GATHER:
        for m in tl.static_range(M):
            dots = table_row(query_ptr, centroids_ptr, head * M + m, C, SUB)
            tl.store(own_table + m * C + tl.arange(0, C), dots)
        tl.debug_barrier()
    for m in tl.static_range(M):
        code = tl.load(codes_ptr + (head * M + m) * stride + i, mask=inside, other=0).to(tl.int32)
        if GATHER:
            if PREPARED:
                dots = tl.load(own_table + m * C + tl.arange(0, C))
            else:
                dots = table_row(query_ptr, centroids_ptr, head * M + m, C, SUB)
            score += tl.gather(dots, code, 0)
        else:
            score += tl.load(own_table + m * C + code)
    if SELECT == 0:
        tl.store(scores_ptr + head.to(tl.int64) * (end - first) + (i - first), score, mask=inside)
    else:
        keys = tl.where(inside, ordered_key(score), PAD_KEY)
        n_inside = tl.minimum(end - first - tile * BLOCK, BLOCK)
        short = n_inside <= K
        lo = tl.min(tl.where(inside, keys, 2147483647), 0)
        lo = tl.where(short, LOWEST_KEY, lo)
        hi = tl.max(keys, 0) + 1
        lo, count_lo, count_hi = search_kth(keys, lo, hi, tl.where(short, K, n_inside), K, WAYS)
        taken, place = pick(keys, lo, count_lo, count_hi, K)
        out = (head * tiles + tile) * K
        tl.store(cand_key_ptr + out + place, keys, mask=taken)
        tl.store(cand_token_ptr + out + place, init + i, mask=taken)
        if short:
            pad = tl.arange(0, K)
            tl.store(cand_key_ptr + out + pad, tl.full([K], PAD_KEY, tl.int32), mask=pad >= n_inside)
        tl.store(floor_ptr + head * tiles + tile, lo)


@jit
def lookup_kernel(codes_ptr, centroids_ptr, query_ptr, keys_ptr, table_ptr, scores_ptr, cand_key_ptr, cand_token_ptr,
                  floor_ptr, counter_ptr, list_ptr, weights_ptr, stride, coded, tokens, first, end, init, tiles,
                  M: tl.constexpr, C: tl.constexpr, SUB: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
                  W: tl.constexpr, BLOCK: tl.constexpr, TILES_PAD: tl.constexpr, LIST_PAD: tl.constexpr,
                  ENDS_PAD: tl.constexpr, PREPARED: tl.constexpr, GATHER: tl.constexpr, SELECT: tl.constexpr,
                  WAYS: tl.constexpr):
    """Program (tile, head): scores of BLOCK codes by table lookup, then what SELECT says.

    SELECT 0 writes the scores, 1 the tile's K best as candidates, 2 also lets the head's last program to arrive merge
    them. PREPARED: the table comes from prepare_kernel; otherwise each program computes it and one program more per
    head (the first) codes the new key. GATHER: look up with tl.gather; otherwise by loads of the table (through L1).
    """
    lane = tl.program_id(0)
    head = tl.program_id(1)
    if PREPARED:
        lookup_tile(codes_ptr, centroids_ptr, query_ptr, table_ptr, scores_ptr, cand_key_ptr, cand_token_ptr, floor_ptr,
                    head, lane, stride, first, end, init, tiles, M, C, SUB, K, BLOCK, PREPARED, GATHER, SELECT, WAYS)
    else:
        if lane == 0:
            for m in tl.static_range(M):
                code_key(keys_ptr, centroids_ptr, codes_ptr, head * M + m, stride, coded, C, SUB)
            clear_listed(list_ptr, weights_ptr, head, tokens, S + K + W, LIST_PAD)
        else:
            lookup_tile(codes_ptr, centroids_ptr, query_ptr, table_ptr, scores_ptr, cand_key_ptr, cand_token_ptr,
                        floor_ptr, head, lane - 1, stride, first, end, init, tiles, M, C, SUB, K, BLOCK, PREPARED,
                        GATHER, SELECT, WAYS)
    if SELECT == 2:
        tl.debug_barrier()
        last = tiles - 1 if PREPARED else tiles
        if tl.atomic_add(counter_ptr + head, 1, sem="acq_rel") == last:
            tl.debug_barrier()
            tl.store(counter_ptr + head, 0)
            merge_head(cand_key_ptr, cand_token_ptr, floor_ptr, list_ptr, weights_ptr, head, tokens, tiles, K, S, W,
                       TILES_PAD, ENDS_PAD, WAYS)


@jit
def finish_kernel(heavy_ptr, list_ptr, weights_ptr, tokens, offset, K: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
                  ENDS_PAD: tl.constexpr):
    """Program (head): the list and the weights from sorted candidate numbers (int64)."""
    head = tl.program_id(0)
    n = tl.arange(0, K)
    token = (tl.load(heavy_ptr + head * K + n) + offset).to(tl.int32)
    tl.store(list_ptr + head * (S + K + W) + S + n, token)
    tl.store(weights_ptr + head.to(tl.int64) * tokens + token, tl.full([K], 1.0, tl.float32))
    write_ends(list_ptr, weights_ptr, head, tokens, K, S, W, ENDS_PAD)


@jit
def block_score_kernel(codes_ptr, centroids_ptr, query_ptr, scores_ptr, stride, first, end, M: tl.constexpr,
                       C: tl.constexpr, SUB: tl.constexpr, BLOCK: tl.constexpr):
    """Program (block, head): dot products of the query with the centroids that the block's codes name."""
    head = tl.program_id(1)
    i = first + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < end
    x = tl.arange(0, SUB)
    score = tl.zeros([BLOCK], tl.float32)
    for m in tl.static_range(M):
        row = head * M + m
        code = tl.load(codes_ptr + row * stride + i, mask=inside, other=0).to(tl.int32)
        q = tl.load(query_ptr + row * SUB + x)
        cent = tl.load(centroids_ptr + (row * C + code)[:, None] * SUB + x[None, :])
        score += tl.sum(cent * q[None, :], 1)
    tl.store(scores_ptr + head.to(tl.int64) * (end - first) + (i - first), score, mask=inside)


# --------------------------------------------------------------------------------------------------------------------
# Inputs


@dataclass(frozen=True)
class Case:
    heads: int
    width: int
    subvectors: int
    centroids: int
    tokens: int
    coded: int
    init_offset: int
    sink: int
    window: int
    heavy: int

    @property
    def sub(self) -> int:
        return self.width // self.subvectors

    @property
    def first(self) -> int:
        """The first candidate's code number."""
        return max(self.init_offset, self.sink) - self.init_offset

    @property
    def end(self) -> int:
        """One past the last candidate's code number."""
        return self.tokens - self.window - self.init_offset

    @property
    def listed(self) -> int:
        return self.sink + self.heavy + self.window

    @staticmethod
    def read(path: Path) -> Case:
        j = json.loads(path.read_text())
        if j.get("kvHeads", j["heads"]) != j["heads"]:
            raise ValueError("grouped queries (kvHeads below heads) are not supported")
        case = Case(j["heads"], j["headWidth"], j["subvectors"], j["centroids"], j["tokens"], j["coded"],
                    j["initOffset"], j["sink"], j["window"], j["heavy"])
        if case.init_offset + case.coded + 1 != case.tokens:
            raise ValueError("initOffset + coded + 1 (the new key) must be the number of tokens")
        if case.end - case.first < case.heavy or case.end > case.coded:
            raise ValueError("too few candidates, or candidates without a code")
        return case


@dataclass
class State:
    """What a decoder keeps between steps: codes with room for the new key, and centroids."""

    codes: torch.Tensor
    centroids: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.codes, self.centroids))

    def clone(self) -> State:
        return State(self.codes.clone(), self.centroids.clone())


class Inputs:
    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        c = self.case = Case.read(folder / "case.json")

        def raw(name: str, dtype: str, *shape: int) -> np.ndarray:
            data = np.fromfile(folder / name, dtype=dtype)
            if data.size != int(np.prod(shape)):
                raise ValueError(f"{name} holds {data.size} values, not {shape}")
            return data.reshape(shape)

        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        self.query = put(raw("query.f32", "<f4", c.heads, c.subvectors, c.sub))
        self.centroids = put(raw("centroids.f32", "<f4", c.heads, c.subvectors, c.centroids, c.sub))
        self.codes_host = raw("codes.u8", "u1", c.heads, c.subvectors, c.coded)
        self.new_keys = put(raw("new_keys.f32", "<f4", c.heads, c.subvectors, c.sub))

    def codes(self, dtype: torch.dtype, align: int) -> torch.Tensor:
        """The codes with room for one more (255 until coded), rows padded to a multiple of `align`."""
        c = self.case
        room = -(-(c.coded + 1) // align) * align
        padded = np.full((c.heads, c.subvectors, room), 255, np.uint8)
        padded[:, :, : c.coded] = self.codes_host
        return torch.from_numpy(padded).to(self.device, dtype)

    def plausible(self, listed: torch.Tensor) -> str | None:
        """What is wrong with a list, or None: its form, and no taken score below the K-th by more than rounding."""
        c = self.case
        listed = listed.long()
        if listed.shape != (c.heads, c.listed) or not bool((listed[:, 1:] > listed[:, :-1]).all()):
            return "list is not ascending"
        heavy = listed[:, c.sink : c.sink + c.heavy] - c.init_offset
        if bool((heavy < c.first).any()) or bool((heavy >= c.end).any()):
            return "heavy tokens outside the candidates"
        table = (self.query.double()[:, :, None] * self.centroids.double()).sum(-1)
        codes = torch.from_numpy(self.codes_host[:, :, c.first : c.end].astype(np.int64)).to(self.device)
        scores = table.gather(2, codes).sum(1)
        kth = scores.topk(c.heavy, 1).values.amin(1, keepdim=True)
        short = (kth - scores.gather(1, heavy - c.first)).amax()
        return None if float(short) <= 1e-4 * float(scores.abs().amax()) else f"a taken score is {float(short)} short"


# --------------------------------------------------------------------------------------------------------------------
# Implementations

Step = Callable[[State], tuple[torch.Tensor, torch.Tensor]]  # -> list, weights


@dataclass
class Peer:
    step: Step
    state: State
    notes: str
    config: dict[str, Any] = field(default_factory=dict)


def torch_code_keys(inp: Inputs, state: State) -> None:
    diff = inp.new_keys[:, :, None, :] - state.centroids
    state.codes[:, :, inp.case.coded] = diff.square().sum(-1).argmin(-1).to(state.codes.dtype)


def torch_list(inp: Inputs, heavy: torch.Tensor, sort_all: bool) -> tuple[torch.Tensor, torch.Tensor]:
    c = inp.case
    sink = torch.arange(c.sink, device=inp.device).expand(c.heads, -1)
    window = torch.arange(c.tokens - c.window, c.tokens, device=inp.device).expand(c.heads, -1)
    if not sort_all:
        heavy = heavy.sort(-1).values
    listed = torch.cat([sink, heavy, window], -1)
    if sort_all:
        listed = listed.sort(-1).values
    weights = torch.zeros(c.heads, c.tokens, device=inp.device)
    return listed, weights.scatter_(1, listed, 1.0)


def torch_imperative(inp: Inputs) -> Peer:
    c = inp.case

    def step(state: State) -> tuple[torch.Tensor, torch.Tensor]:
        torch_code_keys(inp, state)
        table = torch.einsum("hmd,hmcd->hmc", inp.query, state.centroids)
        scores = table.gather(2, state.codes).sum(1)
        scores[:, : c.first] = -torch.inf
        scores[:, c.end :] = -torch.inf
        heavy = scores.topk(c.heavy, -1).indices + c.init_offset
        return torch_list(inp, heavy, sort_all=True)

    return Peer(step, State(inp.codes(torch.int64, 1), inp.centroids.clone()),
                "einsum, gather, sum, topk, cat, sort, scatter; int64 codes")


def need_triton(case: Case) -> None:
    if triton is None:
        raise RuntimeError("triton is not installed")
    for name, value in (("centroids", case.centroids), ("subvector width", case.sub), ("heavy", case.heavy)):
        if value & (value - 1):
            raise ValueError(f"the Triton kernels need a power of two for {name}, not {value}")


def triton_fused_score(inp: Inputs, config: dict[str, Any]) -> Peer:
    need_triton(inp.case)
    c = inp.case
    scores = torch.empty(c.heads, c.end - c.first, device=inp.device)
    grid = (-(-(c.end - c.first) // 128), c.heads)

    def step(state: State) -> tuple[torch.Tensor, torch.Tensor]:
        torch_code_keys(inp, state)
        block_score_kernel[grid](state.codes, state.centroids, inp.query, scores, state.codes.stride(1), c.first, c.end,
                                 M=c.subvectors, C=c.centroids, SUB=c.sub, BLOCK=128, num_warps=config["warps"])
        heavy = scores.topk(c.heavy, -1).indices + (c.init_offset + c.first)
        return torch_list(inp, heavy, sort_all=False)

    return Peer(step, State(inp.codes(torch.uint8, 16), inp.centroids.clone()),
                "one kernel scores blocks of 128 keys from gathered centroids, u8 codes; coding, topk, sort, cat and "
                "scatter by torch", config)


class Buffers:
    """What the lookup kernels keep on the device between steps, for tiles of BLOCK codes."""

    def __init__(self, inp: Inputs, block: int) -> None:
        c, dev = inp.case, inp.device
        self.tiles = -(-(c.end - c.first) // block)
        self.tiles_pad = 1 << (self.tiles - 1).bit_length()
        i32 = {"device": dev, "dtype": torch.int32}
        self.table = torch.empty(c.heads * self.tiles * c.subvectors * c.centroids, device=dev)
        self.cand_key = torch.empty(c.heads * self.tiles * c.heavy, **i32)
        self.cand_token = torch.empty(c.heads * self.tiles * c.heavy, **i32)
        self.floor = torch.empty(c.heads * self.tiles, **i32)
        self.counter = torch.zeros(c.heads, **i32)
        self.listed = torch.zeros(c.heads, c.listed, **i32)
        self.weights = torch.zeros(c.heads, c.tokens, device=dev)


def launch_lookup(inp: Inputs, state: State, buf: Buffers, scores: torch.Tensor, config: dict[str, Any]) -> None:
    """Everything up to the scores or candidates (or the finished list, with select 2)."""
    c = inp.case
    stride = state.codes.stride(1)
    list_pad = 1 << (c.listed - 1).bit_length()
    ends_pad = 1 << (max(c.sink, c.window) - 1).bit_length()
    if config["prepared"]:
        prepare_kernel[(c.heads, c.subvectors)](
            state.codes, state.centroids, inp.query, inp.new_keys, buf.table, buf.listed, buf.weights, stride, c.coded,
            c.tokens, M=c.subvectors, C=c.centroids, SUB=c.sub, LIST=c.listed, LIST_PAD=list_pad, num_warps=8)
    lookup_kernel[(buf.tiles + (0 if config["prepared"] else 1), c.heads)](
        state.codes, state.centroids, inp.query, inp.new_keys, buf.table, scores, buf.cand_key, buf.cand_token,
        buf.floor, buf.counter, buf.listed, buf.weights, stride, c.coded, c.tokens, c.first, c.end, c.init_offset,
        buf.tiles, M=c.subvectors, C=c.centroids, SUB=c.sub, K=c.heavy, S=c.sink, W=c.window, BLOCK=config["block"],
        TILES_PAD=buf.tiles_pad if config["select"] == 2 else 1, LIST_PAD=list_pad, ENDS_PAD=ends_pad,
        PREPARED=config["prepared"], GATHER=config["gather"], SELECT=config["select"], WAYS=config["ways"],
        num_warps=config["warps"])


def triton_lookup_torch_topk(inp: Inputs, config: dict[str, Any]) -> Peer:
    need_triton(inp.case)
    c = inp.case
    buf = Buffers(inp, config["block"])
    scores = torch.empty(c.heads, c.end - c.first, device=inp.device)

    def step(state: State) -> tuple[torch.Tensor, torch.Tensor]:
        launch_lookup(inp, state, buf, scores, config)
        heavy = scores.topk(c.heavy, -1, sorted=False).indices.sort(-1).values
        finish_kernel[(c.heads,)](heavy, buf.listed, buf.weights, c.tokens, c.init_offset + c.first, K=c.heavy,
                                  S=c.sink, W=c.window, ENDS_PAD=1 << (max(c.sink, c.window) - 1).bit_length(),
                                  num_warps=4)
        return buf.listed, buf.weights

    return Peer(step, State(inp.codes(torch.uint8, 16), inp.centroids.clone()),
                "lookup table and scores by Triton, u8 codes; torch.topk and sort; list and weights by Triton", config)


def triton_lookup_fused_topk(inp: Inputs, config: dict[str, Any]) -> Peer:
    need_triton(inp.case)
    c = inp.case
    buf = Buffers(inp, config["block"])
    if buf.tiles_pad * c.heavy > 32768:
        raise ValueError("too many tiles for one merge")

    def step(state: State) -> tuple[torch.Tensor, torch.Tensor]:
        launch_lookup(inp, state, buf, buf.table, config)
        if config["select"] == 1:
            merge_kernel[(c.heads,)](buf.cand_key, buf.cand_token, buf.floor, buf.listed, buf.weights, c.tokens,
                                     buf.tiles, K=c.heavy, S=c.sink, W=c.window, TILES_PAD=buf.tiles_pad,
                                     ENDS_PAD=1 << (max(c.sink, c.window) - 1).bit_length(), WAYS=config["ways"],
                                     num_warps=config["mergeWarps"])
        return buf.listed, buf.weights

    return Peer(step, State(inp.codes(torch.uint8, 16), inp.centroids.clone()),
                "lookup, exact top K of each tile and of each head by Triton; u8 codes; ties: lower token", config)


# --------------------------------------------------------------------------------------------------------------------
# Measuring


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def capture(run: Callable[[], Any], keep: bool = False) -> tuple[torch.cuda.CUDAGraph, Any]:
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keep else torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = run()
    torch.cuda.synchronize()
    return graph, result


def event_us(run: Callable[[], Any], steps: int, budget_ms: float, segments: int = 5) -> float:
    """Device microseconds per step (a run does `steps`): the median of several segments of back-to-back runs."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def segment(count: int) -> float:
        start.record()
        for _ in range(count):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    run()
    torch.cuda.synchronize()
    probe = segment(5) / 5
    count = max(3, min(20000, round(budget_ms / segments / max(probe, 1e-4))))
    segment(count)
    return 1000 * statistics.median(segment(count) for _ in range(segments)) / (count * steps)


def wall_us(run: Callable[[], Any], samples: int) -> float:
    times = []
    for n in range(samples + 50):
        start = time.perf_counter_ns()
        run()
        torch.cuda.synchronize()
        if n >= 50:
            times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def amortized_us(run: Callable[[], Any], count: int) -> float:
    rates = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        rates.append((time.perf_counter_ns() - start) / 1000 / count)
    return statistics.median(rates)


def count_nodes(run: Callable[[], Any]) -> int | None:
    """Kernel, copy and fill nodes of a captured step; None where the driver does not tell."""
    try:
        graph, _ = capture(run, keep=True)
        cuda = ctypes.CDLL("libcuda.so.1")
        handle = ctypes.c_void_p(int(graph.raw_cuda_graph()))
        n = ctypes.c_size_t(0)
        if cuda.cuGraphGetNodes(handle, None, ctypes.byref(n)) != 0:
            return None
        nodes = (ctypes.c_void_p * n.value)()
        if cuda.cuGraphGetNodes(handle, nodes, ctypes.byref(n)) != 0:
            return None
        found = 0
        for node in nodes[: n.value]:
            kind = ctypes.c_int(-1)
            cuda.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
            found += kind.value in (0, 1, 2)
        return found
    except Exception as err:  # the count is a courtesy
        say(f"  launches not counted: {err}")
        return None


def several(run: Callable[[], Any], times: int) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(times):
            run()

    return steps


def quick_us(peer: Peer) -> float:
    """Device time of a tuning candidate, after a check of what it selected."""
    for _ in range(3):
        peer.step(peer.state)
    torch.cuda.synchronize()
    graph, _ = capture(several(lambda: peer.step(peer.state), 10))
    return event_us(graph.replay, 10, 30.0, 3)


def tune(inp: Inputs, make: Callable[[Inputs, dict[str, Any]], Peer], base: dict[str, Any],
         stages: list[list[dict[str, Any]]], enabled: bool) -> tuple[dict[str, Any], list[str]]:
    """Stage by stage the fastest of `base` changed by each entry; failures are noted and passed over."""
    log: list[str] = []
    if not enabled:
        return base, log
    best, best_us = dict(base), float("inf")
    seen: set[str] = set()
    for stage in stages:
        origin = dict(best)
        for change in stage:
            config = {**origin, **change}
            one_launch = config.get("select") == 2
            label = " ".join(f"{k}={int(v)}" for k, v in config.items() if not (one_launch and k == "mergeWarps"))
            if label in seen or (config.get("gather") and not HAS_GATHER):
                continue
            seen.add(label)
            try:
                peer = make(inp, config)
                listed, _ = peer.step(peer.state)
                torch.cuda.synchronize()
                wrong = inp.plausible(listed)
                if wrong:
                    raise RuntimeError(wrong)
                us = quick_us(peer)
            except Exception as err:
                log.append(f"{label}: {type(err).__name__}: {str(err).splitlines()[0][:120] if str(err) else ''}")
                say("  " + log[-1])
                torch.cuda.synchronize()  # a broken context ends this implementation here
                continue
            log.append(f"{label}: {us:.2f} us")
            say("  " + log[-1])
            if us < best_us:
                best, best_us = config, us
    if best_us == float("inf"):
        raise RuntimeError("no configuration worked: " + "; ".join(log)[:600])
    return best, log


LOOKUP_SHAPES = ((1024, 1), (1024, 2), (1024, 4), (2048, 2), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8),
                 (8192, 16))  # block, warps
TABLES = [{"prepared": p, "gather": g} for p, g in ((True, False), (True, True), (False, True), (False, False))]
BASE = {"block": 2048, "warps": 8, "prepared": True, "gather": False, "select": 0, "ways": 2}


def tuned_fused_score(inp: Inputs, enabled: bool) -> tuple[Peer, list[str]]:
    config, log = tune(inp, triton_fused_score, {"warps": 4}, [[{"warps": w} for w in (1, 2, 4, 8)]], enabled)
    return triton_fused_score(inp, config), log


def tuned_lookup_torch_topk(inp: Inputs, enabled: bool) -> tuple[Peer, list[str]]:
    stages = [[{"block": b, "warps": w} for b, w in ((512, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 8))], TABLES]
    config, log = tune(inp, triton_lookup_torch_topk, dict(BASE), stages, enabled)
    return triton_lookup_torch_topk(inp, config), log


def tuned_lookup_fused_topk(inp: Inputs, enabled: bool) -> tuple[Peer, list[str]]:
    base = {**BASE, "select": 1, "mergeWarps": 8}
    shapes = []
    for block, warps in LOOKUP_SHAPES:
        tiles = -(-(inp.case.end - inp.case.first) // block)
        if tiles * inp.case.heavy <= 16384:
            shapes.append({"block": block, "warps": warps, "mergeWarps": 8 if tiles <= 32 else 16})
    stages = [shapes, TABLES, [{"ways": 3}, {"mergeWarps": 4}, {"mergeWarps": 16}], [{"ways": 3}, {"select": 2}],
              [{"warps": w, "select": 2} for w in (4, 8, 16)] + [{"ways": 2, "select": 2}, {"ways": 3, "select": 2}],
              [{"prepared": False, "gather": g, "select": 2} for g in (True, False)] + shapes]
    config, log = tune(inp, triton_lookup_fused_topk, base, stages, enabled)
    return triton_lookup_fused_topk(inp, config), log


PEERS: list[tuple[str, str, Callable[[Inputs, bool], tuple[Peer, list[str]]]]] = [
    ("torch-imperative", "torch imperative", lambda inp, _: (torch_imperative(inp), [])),
    ("triton-fused-score", "triton fused score", tuned_fused_score),
    ("triton-lookup-torch-topk", "triton lookup + torch.topk", tuned_lookup_torch_topk),
    ("triton-lookup-fused-topk", "triton lookup + fused top-K", tuned_lookup_fused_topk),
]


def write_results(inp: Inputs, peer_id: str, state: State, listed: torch.Tensor, weights: torch.Tensor) -> None:
    def put(suffix: str, tensor: torch.Tensor, dtype: str) -> None:
        tensor.cpu().numpy().astype(dtype).tofile(inp.folder / f"{peer_id}.{suffix}")

    put("indices.u32", listed, "<u4")
    put("codes.u8", state.codes[:, :, inp.case.coded], "u1")
    put("weights.f32", weights, "<f4")


def measure(inp: Inputs, peer_id: str, name: str, peer: Peer, tuning: list[str], samples: int,
            cold: bool) -> dict[str, Any]:
    state = peer.state
    warm_until = time.monotonic() + 0.3
    while time.monotonic() < warm_until:
        peer.step(state)
    torch.cuda.synchronize()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return peer.step(state)

    row: dict[str, Any] = {"peer": name, "id": peer_id, "samples": samples}
    row["wallUs"] = wall_us(run, samples)
    row["amortizedUs"] = amortized_us(run, 200)
    graph, (listed, weights) = capture(run)
    row["graphWallUs"] = wall_us(graph.replay, samples)
    row["graphGpuUs"] = event_us(graph.replay, 1, 250.0)
    many, _ = capture(several(run, 20))
    row["gpuUs"] = event_us(many.replay, 20, 250.0)
    del many
    row["dispatches"] = count_nodes(run)

    if cold:
        copies = [state.clone() for _ in range(max(2, -(-128_000_000 // state.nbytes)))]
        for copy in copies[:2]:
            peer.step(copy)

        def rotate() -> None:
            for copy in copies:
                peer.step(copy)

        around, _ = capture(rotate)
        row["coldUs"] = event_us(around.replay, len(copies), 250.0)
        row["coldCopies"] = len(copies)
        del around, copies

    # What the graph leaves after a replay with another query and codes spoilt in between.
    inp.query.neg_()
    graph.replay()
    inp.query.neg_()
    state.codes[:, :, inp.case.coded] = 255
    graph.replay()
    torch.cuda.synchronize()
    write_results(inp, peer_id, state, listed, weights)
    row["notes"] = peer.notes
    if peer.config:
        row["config"] = peer.config
    if tuning:
        row["tuning"] = tuning
    return row


def copy_bandwidth() -> float:
    """Bytes read and written per second by copies of 1 GiB, in GB/s."""
    src = torch.empty(2**30, dtype=torch.uint8, device="cuda").fill_(7)
    dst = torch.empty_like(src)
    return 2 * 2**30 / event_us(lambda: dst.copy_(src), 1, 300.0) / 1e3


def empty_wall(samples: int) -> tuple[float, float]:
    """Wall time of a one-element kernel and synchronize: eager, and as a graph."""
    cell = torch.zeros(1, device="cuda")
    eager = wall_us(lambda: cell.add_(1), samples)
    graph, _ = capture(lambda: cell.add_(1))
    return eager, wall_us(graph.replay, samples)


def driver_version() -> str | None:
    try:
        out = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                             text=True, timeout=20, check=True)
        return out.stdout.split("\n")[0].strip() or None
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next((w for w in words if w[:1].isdigit() and "." in w), None)
    except OSError:
        return None


def error_row(peer_id: str, name: str, err: BaseException) -> dict[str, Any]:
    say("".join(traceback.format_exception(err)))
    return {"peer": name, "id": peer_id, "error": f"{type(err).__name__}: {err}"[:400]}


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description="times torch and triton implementations of one decoding step")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="ids, separated by commas")
    parser.add_argument("--samples", type=int, default=400, help="wall samples per row")
    parser.add_argument("--no-cold", action="store_true")
    parser.add_argument("--no-tune", action="store_true")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch_triton.py: no CUDA device", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    chosen = [p for p in PEERS if not args.only or p[0] in args.only.split(",")]
    doc: dict[str, Any] = {"torch": torch.__version__, "triton": TRITON_VERSION}

    if args.device == "cpu":
        rows = []
        for peer_id, name, make in chosen:
            try:
                inp = Inputs(args.folder, torch.device("cpu"))
                peer, _ = make(inp, False)
                inp.query.neg_()
                peer.step(peer.state)
                inp.query.neg_()
                write_results(inp, peer_id, peer.state, *peer.step(peer.state))
                rows.append({"peer": name, "id": peer_id, "notes": peer.notes})
            except Exception as err:
                rows.append(error_row(peer_id, name, err))
        print(json.dumps({"device": "cpu", **doc, "rows": rows}))
        return 0

    doc["device"] = torch.cuda.get_device_name()
    doc["driver"] = driver_version()
    doc["cuda"] = torch.version.cuda
    inp = Inputs(args.folder, torch.device("cuda"))
    say(f"{doc['device']}, torch {doc['torch']}, triton {doc['triton']}, {inp.case}")
    doc["copyGBs"] = copy_bandwidth()
    torch.cuda.empty_cache()
    doc["emptyWallUs"], doc["emptyGraphWallUs"] = empty_wall(1000)
    say(f"copy {doc['copyGBs']:.0f} GB/s, empty submit {doc['emptyWallUs']:.1f} us, as a graph "
        f"{doc['emptyGraphWallUs']:.1f} us")
    doc["rows"] = []
    for peer_id, name, make in chosen:
        say(name)
        try:
            torch.cuda.empty_cache()
            peer, tuning = make(inp, not args.no_tune)
            row = measure(inp, peer_id, name, peer, tuning, args.samples, not args.no_cold)
            say("  " + ", ".join(f"{k} {v:.1f}" for k, v in row.items() if k.endswith("Us")))
            del peer
        except Exception as err:
            row = error_row(peer_id, name, err)
        doc["rows"].append(row)
    print(json.dumps(doc))
    return 0


if __name__ == "__main__":
    sys.exit(main())
