"""The paged KV cache of one layer, as all attention kernels here read it, and its dense float64 form."""

from typing import NamedTuple

import torch

from simkit.kernels.arguments import FLOATS, check_tensor

PAGE_TOKENS = (16, 32, 64, 128)  # vLLM's GPU block sizes; powers of two, so that a tile of keys spans whole pages
MAX_HEAD_DIM = 256
FP8 = torch.float8_e4m3fn
FP8_ARCHITECTURE = 89  # the first compute capability whose Triton backend knows e4m3


class PagedCache(NamedTuple):
    """Keys and values of a batch of requests, in pages of a shared pool (vLLM's NHD layout).

    Token t of request r is at `[page_table[r, t // page_tokens], t % page_tokens]`. What lies in a request's last page
    beyond its context, and entries of the page table beyond its last page, are never read. Keys and values of fp8
    (e4m3) are what is stored times their scale, one for all heads or one a head.
    """

    k: torch.Tensor  # [pages, page_tokens, kv_heads, head_dim]
    v: torch.Tensor  # [pages, page_tokens, kv_heads, head_dim]
    page_table: torch.Tensor  # i32[requests, pages a request can have]
    context_tokens: torch.Tensor  # i32[requests] tokens in the cache, >= 0, the step's own included
    k_scale: torch.Tensor | None = None  # f32[1] or f32[kv_heads], of fp8 keys; None: 1
    v_scale: torch.Tensor | None = None  # f32[1] or f32[kv_heads], of fp8 values; None: 1

    @property
    def page_tokens(self) -> int:
        """Tokens a page."""
        return int(self.k.shape[1])

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.k.shape[2])

    def request(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one request, f64[context, kv_heads, head_dim] each."""
        context = int(self.context_tokens[request])
        token = torch.arange(context, device=self.k.device)
        page = self.page_table[request, token // self.page_tokens].long()
        offset = token % self.page_tokens
        k, v = self.k[page, offset].double(), self.v[page, offset].double()
        if self.k_scale is not None:
            k *= self.k_scale.double()[:, None]
        if self.v_scale is not None:
            v *= self.v_scale.double()[:, None]
        return k, v

    def requests(self, part: slice) -> "PagedCache":
        """The cache of some of the requests, over the same pool."""
        return self._replace(page_table=self.page_table[part], context_tokens=self.context_tokens[part])


def check_cache(cache: PagedCache, requests: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """The cache of `requests` requests, of the queries' head size, dtype (or fp8) and device.

    Shapes, dtypes, strides and devices only: to look at the values would wait for the device. Use `check_contents`
    where that does not matter.

    Raises:
        ValueError: names what is off.
    """
    check_tensor("cache.k", cache.k, (None, None, None, head_dim), (*FLOATS, FP8), device)
    check_tensor("cache.v", cache.v, tuple(cache.k.shape), (*FLOATS, FP8), device)
    if cache.k.dtype not in (dtype, FP8):
        raise ValueError(f"cache.k: its dtype is {cache.k.dtype}; the queries' {dtype} or {FP8} is expected")
    if cache.v.dtype != cache.k.dtype:
        raise ValueError(f"cache.v: its dtype is {cache.v.dtype}; cache.k's {cache.k.dtype} is expected")
    if cache.page_tokens not in PAGE_TOKENS:
        raise ValueError(f"cache.k: pages of {cache.page_tokens} tokens; one of {PAGE_TOKENS} is expected")
    if cache.v.stride() != cache.k.stride():
        raise ValueError(f"cache.v: its strides are {cache.v.stride()}; cache.k's, {cache.k.stride()}, are expected")
    check_tensor("cache.page_table", cache.page_table, (requests, None), (torch.int32,), device)
    check_tensor("cache.context_tokens", cache.context_tokens, (requests,), (torch.int32,), device)
    check_scales(cache, device)


def check_scales(cache: PagedCache, device: torch.device) -> None:
    """Scales for an fp8 cache only, on a device that knows fp8; ValueError names what is off."""
    for name, scale in (("cache.k_scale", cache.k_scale), ("cache.v_scale", cache.v_scale)):
        if scale is None:
            continue
        if cache.k.dtype != FP8:
            raise ValueError(
                f"{name}: is given for a cache of {cache.k.dtype}; only {FP8} has scales, None is expected"
            )
        check_tensor(name, scale, (None,), (torch.float32,), device)
        if len(scale) not in (1, cache.kv_heads):
            raise ValueError(f"{name}: has {len(scale)} entries; 1 or one a head, {cache.kv_heads}, are expected")
    if cache.k.dtype == FP8 and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if 10 * major + minor < FP8_ARCHITECTURE:
            raise ValueError(f"cache.k: {FP8} needs compute capability 8.9; this device has {major}.{minor}")


def scale_stride(scale: torch.Tensor | None) -> int:
    """From one head's scale to the next: 0 where one serves all."""
    return 0 if scale is None or len(scale) == 1 else 1


def check_heads(q_heads: int, cache: PagedCache, head_dim: int) -> None:
    """Query heads that the cache's heads divide, and a head size that fits a tile; ValueError names what is off."""
    if cache.kv_heads < 1 or q_heads % cache.kv_heads:
        raise ValueError(f"q: {q_heads} query heads; a multiple of cache.k's {cache.kv_heads} heads is expected")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"q: its head_dim is {head_dim}; 1 to {MAX_HEAD_DIM} is expected")


def check_contents(cache: PagedCache, max_context_tokens: int) -> None:
    """Contexts within [0, max_context_tokens] and the page table, and pages within the pool; waits for the device."""
    contexts = cache.context_tokens.tolist()
    room = min(max_context_tokens, cache.page_table.shape[1] * cache.page_tokens)
    for request, context in enumerate(contexts):
        if not 0 <= context <= room:
            raise ValueError(f"cache.context_tokens[{request}]: is {context}; 0 to {room} is expected")
        used = cache.page_table[request, : -(-context // cache.page_tokens)]
        if len(used) and (int(used.min()) < 0 or int(used.max()) >= cache.k.shape[0]):
            raise ValueError(f"cache.page_table[{request}]: names a page outside of 0 to {cache.k.shape[0] - 1}")
