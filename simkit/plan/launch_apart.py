"""Prefill and decode apart as commands: a server of each role and the router before them, for vLLM and SGLang.

vLLM hands KV over by NixlConnector (its features/nixl_connector_usage page) behind vllm-router; SGLang by its own
--disaggregation-mode (its advanced_features/pd_disaggregation page) behind sglang_router.
"""

import json

import yaml

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.slo import Promise
from simkit.plan.launch import (
    PORT,
    Launch,
    command_of,
    load_test,
    notes_of,
    repository_of,
    server,
    service,
    sglang_flags,
    vllm_flags,
)
from simkit.plan.unit import DECODE, PREFILL, Group
from simkit.workloads.workload import Workload

KV_ROLES = {PREFILL: "kv_producer", DECODE: "kv_consumer"}
BOOTSTRAP_PORT = 8998  # SGLang's default, by which a decode server finds a prefill server


def launch_apart(group: Group, groups: int, rate_per_s: float, workload: Workload, promise: Promise) -> Launch:
    """Commands of one server of each role and of the router, a manifest of all of them, and a load test."""
    repository = repository_of(group.deployment.model)
    roles = ((PREFILL, group.prefill, groups * group.prefills), (DECODE, group.decode, groups * group.decodes))
    vllm = {role: _vllm(role, spec, repository) for role, spec, _ in roles}
    sglang = {role: _sglang(role, spec, repository) for role, spec, _ in roles}
    counts = {role: replicas for role, _, replicas in roles}
    manifest: list[dict[str, object]] = []
    for role, spec, replicas in roles:
        manifest += [server(spec, f"llm-{role}", replicas, vllm[role]), service(f"llm-{role}", PORT)]
    notes = [
        *notes_of(group.decode),
        f"the plan hands KV over at {group.link.bytes_per_s() / 1e9:.3g} GB/s a prefill replica, and its gateway sends "
        "each request to the servers with least to do: name every server to the router, and the network cards by "
        "UCX_NET_DEVICES or --disaggregation-ib-device",
        "the manifest starts the servers; the router before them is yours to run",
    ]
    return Launch(
        vllm=_together(vllm, counts, _vllm_router()),
        sglang=_together(sglang, counts, _sglang_router()),
        kubernetes=yaml.safe_dump_all(manifest, sort_keys=False),
        load_test=load_test(repository, rate_per_s, workload, promise),
        notes=tuple(notes),
    )


def _vllm(role: str, spec: ReplicaSpec, repository: str) -> list[str]:
    told = json.dumps({"kv_connector": "NixlConnector", "kv_role": KV_ROLES[role]}, separators=(",", ":"))
    return [*vllm_flags(spec, repository), "--kv-transfer-config", told]


def _sglang(role: str, spec: ReplicaSpec, repository: str) -> list[str]:
    flags = [*sglang_flags(spec, repository), "--disaggregation-mode", role]
    flags += ["--disaggregation-transfer-backend", "nixl"]
    return [*flags, "--disaggregation-bootstrap-port", str(BOOTSTRAP_PORT)] if role == PREFILL else flags


def _vllm_router() -> list[str]:
    flags = ["vllm-router", "--vllm-pd-disaggregation", "--kv-connector", "nixl", "--port", "80"]
    for role in (PREFILL, DECODE):
        flags += [f"--{role}", f"http://llm-{role}:{PORT}"]
    return flags


def _sglang_router() -> list[str]:
    flags = ["python", "-m", "sglang_router.launch_router", "--pd-disaggregation", "--port", "80"]
    flags += ["--prefill", f"http://llm-{PREFILL}:{PORT}", str(BOOTSTRAP_PORT)]
    return [*flags, "--decode", f"http://llm-{DECODE}:{PORT}"]


def _together(commands: dict[str, list[str]], counts: dict[str, int], router: list[str]) -> str:
    """All commands, each under a comment that says how many of it run."""
    parts = [f"# {role}: {counts[role]} of it\n{command_of(flags)}" for role, flags in commands.items()]
    return "\n\n".join([*parts, f"# before them\n{command_of(router)}"])
