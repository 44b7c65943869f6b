"""Growth of the KV cache with sequence length: MHA, GQA and MLA, at 16 and at 8 bits."""

from figure import Line, draw
from probe import lab_bench

from simkit.models.catalog import load_model
from simkit.models.layout import layer_kv_bytes_per_token
from simkit.models.precision import parse_kv_precision

MODELS = {"llama-2-7b": "MHA", "llama-3.1-8b": "GQA", "deepseek-v3": "MLA"}
LENGTHS = (1_024, 4_096, 16_384, 65_536, 131_072)
GIB = 1 << 30


def run(device: str, clock: str, out: str) -> dict[str, object]:
    """Bytes a token by model and precision, drawn against length, and one pool allocated to see that it is so."""
    found: dict[str, object] = {}
    lines = []
    for name, kind in MODELS.items():
        arch = load_model(name)
        for precision in ("bf16", "fp8"):
            kv = parse_kv_precision(precision, "kv")
            token_bytes = sum(layer_kv_bytes_per_token(layer, 1, kv) for layer in arch.layers)
            found[f"{name} ({kind}), {precision}: KiB a token"] = token_bytes / 1024
            sizes = [token_bytes * n / GIB for n in LENGTHS]
            lines.append(Line(f"{kind}, {name}, {precision}", LENGTHS, sizes, predicted=precision == "fp8"))
    draw(f"{out}/cache.svg", "KV cache of one request against its length", "tokens", "GiB", lines)
    bench = lab_bench(device, clock, longest=512)
    pool = bench.executor
    shape = pool.identity.model
    heads, size, layers = (int(shape[k]) for k in ("num_key_value_heads", "head_dim", "num_hidden_layers"))
    found["device"] = pool.identity.device
    found["testbed's pool, bytes a token by formula (2 L K d 2)"] = 2 * layers * heads * size * 2
    found["testbed's pool, bytes a token allocated"] = allocated_bytes(pool) / (pool.num_blocks * pool.block_size)
    return found


def allocated_bytes(pool: object) -> int:
    """Bytes that the executor's cache holds."""
    cache = getattr(pool, "cache", None)
    if cache is not None:
        return int(cache.keys.nbytes + cache.values.nbytes)
    return sum(int(each.k.nbytes + each.v.nbytes) for each in pool.caches)  # type: ignore[attr-defined]
