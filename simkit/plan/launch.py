"""The chosen deployment as commands: vLLM, SGLang, a Kubernetes manifest, and a load test that would check it.

Flags of vLLM 0.32 (engine/arg_utils.py) and SGLang 0.5 (server_args.py) under their own names.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.metrics.slo import Promise
from simkit.models.catalog import catalog_entry
from simkit.workloads.workload import Workload

PORT = 8000
OWN = "CHECKPOINT"  # where a model of the user's own lies is not known here
DRAFT = "DRAFT"  # nor where the checkpoint of a draft does
# vLLM --quantization of a checkpoint that is published at 16 bits; None: choose a checkpoint in that precision
_ON_LOAD = {"fp8": "fp8"}
_KV_VLLM = {"bf16": "auto", "fp16": "auto", "fp8": "fp8", "int8": "int8", "int4": "int4"}
_KV_SGLANG = {"bf16": "auto", "fp16": "auto", "fp8": "fp8_e4m3", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True)
class Launch:
    """Text to copy; what an engine cannot be told by a flag is a note."""

    vllm: str
    sglang: str
    kubernetes: str
    load_test: str
    notes: tuple[str, ...]


def launch(
    spec: ReplicaSpec, replicas: int, rate_per_s: float, workload: Workload, promise: Promise, router: str
) -> Launch:
    """Commands of one replica, a manifest of all of them, and a load test at `rate_per_s` of the whole."""
    repository = repository_of(spec.deployment.model)
    notes = notes_of(spec)
    if replicas > 1:
        notes.append(f"the plan deals requests by {router}; a Kubernetes Service deals connections at random")
    vllm = vllm_flags(spec, repository)
    return Launch(
        vllm=command_of(vllm),
        sglang=command_of(sglang_flags(spec, repository)),
        kubernetes=yaml.safe_dump_all([server(spec, "llm", replicas, vllm), service("llm", 80)], sort_keys=False),
        load_test=load_test(repository, rate_per_s, workload, promise),
        notes=tuple(notes),
    )


def repository_of(model: str) -> str:
    """The Hugging Face repository of a bundled model; `OWN` for one of the user's own."""
    try:
        return catalog_entry(model).repository
    except InputError:
        return OWN


def vllm_flags(spec: ReplicaSpec, repository: str) -> list[str]:
    deployment, limits = spec.deployment, spec.limits
    engine, layout = deployment.engine, deployment.layout
    flags = ["vllm", "serve", repository, "--port", str(PORT)]
    flags += ["--tensor-parallel-size", str(layout.tensor)] if layout.tensor > 1 else []
    flags += ["--pipeline-parallel-size", str(layout.pipeline)] if layout.pipeline > 1 else []
    flags += ["--enable-expert-parallel"] if layout.expert > 1 else []
    flags += ["--max-model-len", str(limits.max_model_len), "--max-num-seqs", str(limits.max_running)]
    flags += ["--max-num-batched-tokens", str(limits.max_num_batched_tokens)]
    # vLLM makes blocks larger itself where layers keep a state
    flags += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}", "--block-size", str(engine.block_size)]
    if deployment.weights in _ON_LOAD:
        flags += ["--quantization", _ON_LOAD[deployment.weights]]
    if _KV_VLLM[deployment.kv] != "auto":
        flags += ["--kv-cache-dtype", _KV_VLLM[deployment.kv]]
    flags += [] if limits.prefix_caching else ["--no-enable-prefix-caching"]
    flags += [] if engine.enable_chunked_prefill else ["--no-enable-chunked-prefill"]
    flags += ["--scheduling-policy", "priority"] if engine.policy == "priority" else []
    flags += ["--enforce-eager"] if engine.enforce_eager else []
    if engine.long_prefill_token_threshold:
        flags += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if engine.num_gpu_blocks_override is not None:
        flags += ["--num-gpu-blocks-override", str(engine.num_gpu_blocks_override)]
    if engine.scheduler_reserve_full_isl is not None and engine.dialect().has_reserve_full_isl:
        flags += [f"--{'' if engine.scheduler_reserve_full_isl else 'no-'}scheduler-reserve-full-isl"]
    flags += ["--watermark", f"{engine.watermark:g}"] if engine.watermark and engine.discipline == "vllm-v1" else []
    flags += ["--speculative-config", json.dumps(_speculative_config(engine))] if engine.speculative_tokens else []
    asynchronous = limits.pipeline_depth > limits.stages
    flags += ["--async-scheduling"] if asynchronous else ["--no-async-scheduling"]
    return flags


def _speculative_config(engine: EngineSettings) -> dict[str, str | int]:
    """vLLM's SpeculativeConfig; n-grams need no checkpoint, and MTP is in the model's own."""
    config: dict[str, str | int] = {"method": engine.speculative_method}
    if engine.speculative_method not in ("ngram", "mtp"):
        model = engine.speculative_model
        config["model"] = DRAFT if model is None or repository_of(model) == OWN else repository_of(model)
    return config | {"num_speculative_tokens": engine.speculative_tokens}


def sglang_flags(spec: ReplicaSpec, repository: str) -> list[str]:
    deployment, limits = spec.deployment, spec.limits
    engine, layout = deployment.engine, deployment.layout
    flags = ["python", "-m", "sglang.launch_server", "--model-path", repository, "--port", str(PORT)]
    flags += ["--tp-size", str(layout.tensor)] if layout.tensor > 1 else []
    flags += ["--pp-size", str(layout.pipeline)] if layout.pipeline > 1 else []
    flags += ["--ep-size", str(layout.expert)] if layout.expert > 1 else []
    flags += ["--context-length", str(limits.max_model_len), "--max-running-requests", str(limits.max_running)]
    flags += ["--chunked-prefill-size", str(limits.max_num_batched_tokens if engine.enable_chunked_prefill else -1)]
    # SGLang's share holds weights and KV only, vLLM's the activations and graphs too
    static = spec.memory.weight_bytes + spec.memory.kv_bytes
    flags += ["--mem-fraction-static", f"{static / spec.memory.total_bytes:.2f}"]
    if deployment.weights in _ON_LOAD:
        flags += ["--quantization", _ON_LOAD[deployment.weights]]
    if _KV_SGLANG[deployment.kv] != "auto":
        flags += ["--kv-cache-dtype", _KV_SGLANG[deployment.kv]]
    flags += [] if limits.prefix_caching else ["--disable-radix-cache"]
    flags += ["--disable-cuda-graph"] if engine.enforce_eager else []
    return flags


def command_of(flags: list[str]) -> str:
    """A command over several lines, each flag with its value on one."""
    lines: list[str] = []
    for word in flags:
        if word.startswith("--") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n  ".join(lines)


# where vLLM's own guide to Kubernetes keeps it; models that ask for no token start without
TOKEN = {"name": "hf-token-secret", "key": "token", "optional": True}


def server(spec: ReplicaSpec, name: str, replicas: int, flags: list[str]) -> dict[str, object]:
    """A Kubernetes Deployment of vLLM servers, all alike."""
    gpus = spec.deployment.layout.gpus
    amd = spec.device.name.startswith("mi")
    vendor, image = ("amd.com/gpu", "vllm-openai-rocm") if amd else ("nvidia.com/gpu", "vllm-openai")
    version = spec.deployment.engine.engine.removeprefix("vllm-")
    container = {
        "name": "vllm",
        "image": f"vllm/{image}:v{version}.0",
        "command": list(flags),
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": dict(TOKEN)}}],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {vendor: gpus}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10, "failureThreshold": 120},
        # tensor parallel workers talk through shared memory
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    shared = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "volumes": [shared]},
            },
        },
    }


def service(name: str, port: int) -> dict[str, object]:
    """The Kubernetes Service of a Deployment."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port, "targetPort": PORT}]},
    }


def load_test(repository: str, rate_per_s: float, workload: Workload, promise: Promise) -> str:
    """vLLM's own client at the planned rate; lengths are the workload's means, which is milder than its spread."""
    requests = max(1000, round(300 * rate_per_s))
    prompt = round(float(workload.prompt_tokens.mean()))
    output = round(float(workload.output_tokens.mean()))
    flags = ["vllm", "bench", "serve", "--base-url", "http://llm", "--model", repository, "--dataset-name", "random"]
    flags += ["--random-input-len", str(prompt), "--random-output-len", str(output), "--random-range-ratio", "0.5"]
    flags += ["--ignore-eos", "--num-prompts", str(requests), "--request-rate", f"{rate_per_s:.4g}"]
    names = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2el"}
    limits = [f"{names[limit.metric]}:{1000 * limit.limit_s:g}" for limit in promise.limits if limit.metric in names]
    flags += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,90,99"]
    command = command_of(flags)
    return command + (" \\\n  --goodput " + " ".join(limits) if limits else "")


def notes_of(spec: ReplicaSpec) -> list[str]:
    """What the commands of a replica cannot say."""
    deployment = spec.deployment
    notes = []
    if repository_of(deployment.model) == OWN:
        notes.append(f"put the path or repository of your checkpoint in place of {OWN}")
    if deployment.weights not in (None, "bf16", "fp16", *_ON_LOAD):
        notes.append(f"weights in {deployment.weights} are no flag: serve a checkpoint published in that precision")
    if deployment.kv in ("int8", "int4"):
        notes.append(f"a KV cache in {deployment.kv} is not in every engine version; check yours")
    if deployment.engine.discipline != "vllm-v1":
        notes.append(f"the plan's scheduler is {deployment.engine.discipline}; the vLLM command runs vLLM's own")
    return [*notes, *_unsaid(deployment.engine)]


def _unsaid(engine: EngineSettings) -> Iterator[str]:
    """Settings of the plan that no flag of the commands holds."""
    if engine.policy not in ("fcfs", "priority"):
        yield f"the plan orders the queue by {engine.policy}, which vLLM does not have: its command serves in turn"
    if engine.preemptive:
        yield "the plan lets urgent requests take the places of running ones (preemptive), which vLLM does not do"
    if engine.speculative_tokens:
        yield (
            f"the plan drafts {engine.speculative_tokens} tokens a step, {engine.acceptance:g} of them accepted, which "
            "nobody can promise: measure yours; the SGLang command drafts none"
        )
        if DRAFT in _speculative_config(engine).values():
            yield f"put the path or repository of your draft in place of {DRAFT}"
        if engine.tells_draft_time:
            yield "the time of proposing is as told (draft_step_ms, draft_request_ms), not by the draft's layers"
        elif engine.speculative_method in ("eagle", "eagle3") and engine.speculative_model is None:
            yield "the draft is taken to have its usual shape; name its config.json in speculative_model for its own"
        if engine.speculative_method == "mtp":
            yield "drafts by mtp need a checkpoint that has layers for it"
    if engine.max_num_active_seqs is not None:
        yield f"max_num_active_seqs {engine.max_num_active_seqs} is in the commands as the most sequences of a step"
    if engine.long_prefill_token_threshold_adaptive:
        yield "the plan adapts long_prefill_token_threshold to the queue, which no flag of these commands does"
