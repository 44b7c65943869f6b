"""Decode attention's parts: how long they are, and the kernel that adds them up.

A part i of a request's context, for one query head, left its output o_i and lse_i = log2 of the sum of its weights 2^s.
Then out = sum_i w_i o_i / sum_i w_i with w_i = 2^(lse_i - max lse); 0 for a request without a part. f32 throughout.

Source: Flash-Decoding (Dao et al., 2023).
"""

import math

import torch
import triton
import triton.language as tl

from simkit.kernels.jit import jit

MAX_SPLITS = 128
MIN_SPLIT_TOKENS = 256  # a part should read much more than its partial result, two rows, writes
PROGRAMS_PER_SM = 4  # asked of a launch, so that the last wave is a small share of it


@jit
def decode_reduce_kernel(
    partial_out: tl.pointer_type,
    partial_lse: tl.pointer_type,
    context_tokens: tl.pointer_type,
    out: tl.pointer_type,
    split_tokens: int,
    splits: int,
    out_stride_request: int,
    out_stride_head: int,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """The parts of one request and query head added up. Grid (requests, q_heads)."""
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    q_heads = tl.num_programs(1)
    # of a context beyond a window only the window was cut up, and that is all `splits`
    parts = tl.minimum((tl.load(context_tokens + request) + split_tokens - 1) // split_tokens, splits)
    dim = tl.arange(0, BLOCK_DIM)
    dim_ok = dim < HEAD_DIM
    row = (request * q_heads + head) * splits
    best = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_DIM], tl.float32)
    for part in range(0, parts):
        lse = tl.load(partial_lse + row + part)
        values = tl.load(partial_out + (row + part) * HEAD_DIM + dim, mask=dim_ok, other=0.0)
        new_best = tl.maximum(best, lse)
        shrink = tl.exp2(best - new_best)
        weight = tl.exp2(lse - new_best)
        total = total * shrink + weight
        acc = acc * shrink + weight * values
        best = new_best
    result = acc / tl.where(total > 0.0, total, 1.0)
    at = out + request * out_stride_request + head * out_stride_head + dim
    tl.store(at, result.to(out.dtype.element_ty), mask=dim_ok)


def partial_results(out: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where parts are written: f32[requests, q_heads, splits, head_dim] and f32[requests, q_heads, splits].

    With one part there is nothing to add up: the output itself, and any tensor for what is then not written.
    """
    if splits == 1:
        return out.unsqueeze(2), out
    requests, q_heads, head_dim = out.shape
    parts = torch.empty((requests, q_heads, splits, head_dim), dtype=torch.float32, device=out.device)
    return parts, torch.empty((requests, q_heads, splits), dtype=torch.float32, device=out.device)


def add_up(
    parts: torch.Tensor,
    lse: torch.Tensor,
    context_tokens: torch.Tensor,
    out: torch.Tensor,
    split_tokens: int,
) -> None:
    """Write the sum of the parts to `out` [requests, q_heads, head_dim]; nothing to do where there is one."""
    requests, q_heads, splits, head_dim = parts.shape
    if splits == 1:
        return
    decode_reduce_kernel[(requests, q_heads)](
        parts,
        lse,
        context_tokens,
        out,
        split_tokens,
        splits,
        *out.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        num_warps=1,
    )


def choose_split_tokens(requests: int, kv_heads: int, max_seen_tokens: int, sms: int, block_tokens: int) -> int:
    """Tokens a part, a multiple of a tile: enough parts to fill `sms` processors, none needlessly short."""
    parts = max(1, PROGRAMS_PER_SM * sms // max(1, requests * kv_heads))
    parts = min(parts, MAX_SPLITS, max(1, max_seen_tokens // MIN_SPLIT_TOKENS))
    return max(1, math.ceil(max_seen_tokens / parts / block_tokens)) * block_tokens


def count_splits(seen_tokens: int, split_tokens: int) -> int:
    """Parts of the longest context; ValueError where they are more than the reduction takes."""
    splits = max(1, math.ceil(seen_tokens / split_tokens))
    if splits > MAX_SPLITS:
        raise ValueError(f"split_tokens: {split_tokens} makes {splits} parts; at most {MAX_SPLITS} are expected")
    return splits


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; the interpreter is given a Hopper's 132."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
