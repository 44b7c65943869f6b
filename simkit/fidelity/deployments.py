"""The deployment that a measured run describes, by the names its authors used."""

import re

from simkit.engine.deployment import Deployment
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError, suggestion
from simkit.fidelity.measured_runs import MeasuredRun
from simkit.models.catalog import catalog_entry, known_models, load_model
from simkit.models.layout import Layout

# vLLM 0.15.1, which ran them, schedules as 0.16 does: the oldest version whose rules were recorded
ENGINE = "vllm-0.16"
MAX_MODEL_LEN = 4096  # of these runs, where a run does not say
MAX_NUM_SEQS = 128
BLOCK_TOKENS = 16
# 16 bits and MXFP4 are what a checkpoint is published in
_PRECISIONS = {"FP16": None, "BF16": None, "FP8": "fp8", "INT8": "int8", "INT4": "int4", "MXFP4": None}
# how repositories name what was done to a model, in the order in which they are appended
_DRESS = re.compile(r"-(instruct|chat|hf|it|base|fp8|dynamic|awq|gptq|w8a8|w4a16|quantized|v\d+(\.\d+)*|\d{4})$")


def known_model(name: str) -> str:
    """The bundled model that a repository holds, whoever published it and in whatever precision.

    Raises:
        InputError: no bundled model is called so, with or without what repositories append to names.
    """
    try:
        load_model(name)
        return name
    except InputError as unknown:
        short = _undressed(name)
        for known in known_models():
            entry = catalog_entry(known)
            if short in {_undressed(other) for other in (entry.repository, entry.name, *entry.aliases)}:
                return known
        raise unknown from None


def _undressed(name: str) -> str:
    """A repository's name without its owner and its endings."""
    short = name.strip().lower().rsplit("/", 1)[-1].removeprefix("meta-")
    while _DRESS.search(short):
        short = _DRESS.sub("", short)
    return short


def deployment_of(run: MeasuredRun) -> Deployment:
    """What ran, with the engine's defaults of its time: asynchronous scheduling, prefix caching, chunked prefill.

    Raises:
        InputError: the model or the precision is not known, or the run had several replicas.
    """
    if run.weight_precision.upper() not in _PRECISIONS:
        raise InputError(
            f"weight_precision={run.weight_precision[:40]!r}: is not known; "
            f"{suggestion(run.weight_precision, _PRECISIONS)}"
        )
    if (run.data_parallel or 1) > 1:
        raise InputError(
            f"data_parallel={run.data_parallel}: runs of one replica are rebuilt; how it was routed is not said"
        )
    return Deployment(
        model=known_model(run.model),
        device=run.hardware,
        layout=Layout(tensor=run.tensor_parallel),
        weights=_PRECISIONS[run.weight_precision.upper()],
        engine=EngineSettings(
            engine=ENGINE,
            max_num_batched_tokens=run.max_num_batched_tokens,
            max_num_seqs=run.max_num_seqs or MAX_NUM_SEQS,
            max_model_len=run.max_model_len or MAX_MODEL_LEN,
            block_size=BLOCK_TOKENS,
            num_gpu_blocks_override=run.kv_blocks,
            gpu_memory_utilization=run.gpu_memory_utilization,
        ),
    )
