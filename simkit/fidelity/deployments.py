"""The deployment that a measured run describes, by the names its authors used."""

import re

from simkit.engine.deployment import Deployment
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError, suggestion
from simkit.fidelity.measured_runs import MeasuredRun
from simkit.models.catalog import catalog_entry, known_models, load_model
from simkit.models.kv_groups import kv_groups
from simkit.models.layout import Layout

# vLLM 0.15.1, which ran them, schedules as 0.16 does: the oldest version whose rules were recorded
ENGINE = "vllm-0.16"
MAX_MODEL_LEN = 4096  # of these runs, where a run does not say
MAX_NUM_SEQS = 128
BLOCK_TOKENS = 16
# 16 bits and MXFP4 are what a checkpoint is published in
_SIXTEEN = {"FP16": None, "BF16": None, "FLOAT16": None, "BFLOAT16": None}
_PRECISIONS = _SIXTEEN | {"FP8": "fp8", "INT8": "int8", "INT4": "int4", "NVFP4": "nvfp4", "MXFP4": None}
# endings of repositories' names that say in what the linear layers are stored; of two the more exact one counts
_STORED = {"fp8": "fp8", "w8a8": "int8", "int8": "int8", "w4a16": "int4", "int4": "int4", "nvfp4": "nvfp4"}
_STORED |= {"awq": "int4", "gptq": "int4"}
# what else they append; from v1 on a version is another model, v0.x are releases of one
_DRESS = re.compile(
    rf"[-.](instruct|chat|hf|it|base|thinking|dynamic|quantized|bf16|v0\.\d+|\d{{4}}|{'|'.join(_STORED)})$"
)


def known_model(name: str) -> str:
    """The bundled model that a repository holds, whoever published it and in whatever precision.

    Raises:
        InputError: no bundled model is called so, with or without what repositories append to names.
    """
    try:
        load_model(name)
        return name
    except InputError as unknown:
        short, _ = _undressed(name)
        for known in known_models():
            entry = catalog_entry(known)
            if short in {_undressed(other)[0] for other in (entry.repository, entry.name, *entry.aliases)}:
                return known
        raise unknown from None


def precision_in_name(name: str) -> str | None:
    """The precision that a repository's name says its weights have: fp8, int8, int4, nvfp4; None if it says none."""
    endings = set(_undressed(name)[1])
    return next((precision for ending, precision in _STORED.items() if ending in endings), None)


def _undressed(name: str) -> tuple[str, list[str]]:
    """A repository's name without its owner and its endings, and the endings, last first."""
    short = name.strip().lower().rsplit("/", 1)[-1].removeprefix("meta-")
    endings = []
    while found := _DRESS.search(short):
        endings.append(found[1])
        short = short[: found.start()]
    return short, endings


def deployment_of(run: MeasuredRun) -> Deployment:
    """What ran, with the engine's defaults of its time: asynchronous scheduling, prefix caching, chunked prefill.

    Raises:
        InputError: the model or the precision is not known, or the run had several replicas.
    """
    if (run.data_parallel or 1) > 1:
        raise InputError(
            f"data_parallel={run.data_parallel}: runs of one replica are rebuilt; how it was routed is not said"
        )
    model = known_model(run.model)
    return Deployment(
        model=model,
        device=run.hardware,
        layout=Layout(
            tensor=run.tensor_parallel,
            pipeline=run.pipeline_parallel,
            expert=run.tensor_parallel if run.enable_expert_parallel else 1,
        ),
        weights=_weights(run),
        kv=_kv(run.kv_cache_dtype),
        engine=EngineSettings(
            engine=ENGINE,
            max_num_batched_tokens=run.max_num_batched_tokens,
            max_num_seqs=run.max_num_seqs or MAX_NUM_SEQS,
            max_model_len=run.max_model_len or min(MAX_MODEL_LEN, load_model(model).max_context_tokens),
            block_size=BLOCK_TOKENS,
            num_gpu_blocks_override=_pool_blocks(run, model),
            gpu_memory_utilization=run.gpu_memory_utilization,
            enable_prefix_caching=run.enable_prefix_caching,
            enable_chunked_prefill=run.enable_chunked_prefill,
            enforce_eager=run.enforce_eager,
        ),
    )


def _pool_blocks(run: MeasuredRun, model: str) -> int | None:
    """KV blocks of the pool that all groups of layers share: a block of whole contexts is one in each group.

    Until 0.19 vLLM's "GPU KV cache size" is the pool's blocks over the groups, times a block's tokens
    (kv_cache_utils.py, _report_kv_cache_config).
    """
    if run.kv_blocks is None:
        return None
    dialect = EngineSettings(engine=ENGINE).dialect()
    return run.kv_blocks * kv_groups(load_model(model), dialect.padding_ratio).count


def _weights(run: MeasuredRun) -> str | None:
    if run.weight_precision is None:
        return precision_in_name(run.model)
    if run.weight_precision.upper() not in _PRECISIONS:
        raise InputError(
            f"weight_precision={run.weight_precision[:40]!r}: is not known; "
            f"{suggestion(run.weight_precision, [name.lower() for name in _PRECISIONS])}"
        )
    return _PRECISIONS[run.weight_precision.upper()]


def _kv(dtype: str) -> str:
    """vLLM's `--kv-cache-dtype` as a precision: auto is 16 bits, and fp8 has two formats of one size."""
    name = dtype.lower()
    if name in ("auto", "bfloat16", "float16"):
        return "bf16"
    return "fp8" if name in ("fp8_e4m3", "fp8_e5m2") else name


def precision_note(run: MeasuredRun) -> str | None:
    """What to say where a run's precision and its repository's name differ; None where they do not."""
    named = precision_in_name(run.model)
    if named is None or run.weight_precision is None or named == _weights(run):
        return None
    return f"weight_precision={run.weight_precision} is taken, though the model's name says {named}"
