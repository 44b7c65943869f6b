"""What binds a group of prefill and decode replicas: the resources of each role, and the links between them."""

from dataclasses import replace

import numpy as np

from simkit.metrics.result import RunResult
from simkit.plan.replica_resources import MORE, in_use, with_more
from simkit.plan.unit import DECODE, PREFILL, Group, Served

HANDOVER = "KV link"
# of each role those that can bind it: prompts are computed at once and kept a moment, answers are read step by step
RESOURCES = ("prefill compute", "prefill KV", "decode compute", "decode bandwidth", "decode KV", "decode host")


def group_in_use(group: Group, served: Served) -> dict[str, float | None]:
    """The share of each resource that a group used, averaged over the replicas of its role (KV: the highest peak)."""
    first, last = served.runs[: group.prefills], served.runs[group.prefills :]
    shares = {
        PREFILL: [in_use(group.prefill, run) for run in first],
        DECODE: [in_use(group.decode, _computed_elsewhere(run, group)) for run in last],
    }
    found: dict[str, float | None] = {}
    for name in RESOURCES:
        role, resource = name.split()
        values = [value for share in shares[role] if (value := share[resource]) is not None]
        found[name] = None if not values else max(values) if resource == "KV" else sum(values) / len(values)
    found[HANDOVER] = _link_share(group, served)
    return found


def _computed_elsewhere(run: RunResult, group: Group) -> RunResult:
    """A decode replica's run in which the KV that came counts as found: what was not computed here."""
    size = group.limits.block_size
    requests = run.requests
    came = np.maximum(requests.hit_tokens, (requests.prompt_tokens - 1) // size * size).astype(np.int32)
    return replace(run, requests=replace(requests, hit_tokens=came))


def _link_share(group: Group, served: Served) -> float:
    """Bytes of all prompts over what the links could carry meanwhile; what the decode side had already counts too."""
    size, requests = group.limits.block_size, served.requests
    end_ns = max((run.end_ns for run in served.runs), default=0)
    span_s = (end_ns - int(requests.arrival_ns[0])) / 1e9 if len(requests) else 0.0
    moved = float(((requests.prompt_tokens - 1) // size * size).sum()) * group.token_bytes
    return min(1.0, moved / (span_s * group.prefills * group.link.bytes_per_s())) if span_s > 0 else 0.0


def group_with_more(group: Group, name: str, factor: float = MORE) -> Group | None:
    """The same group with `factor` times as much of a resource; None where that cannot be told."""
    if name == HANDOVER:
        faster = group.link.model_copy(update={"gb_per_s": factor * _line_rate(group)})
        return replace(group, link=faster)
    role, resource = name.split()
    better = with_more(group.prefill if role == PREFILL else group.decode, resource, factor)
    if better is None:
        return None
    return replace(group, prefill=better) if role == PREFILL else replace(group, decode=better)


def _line_rate(group: Group) -> float:
    """1e9 bytes/s of one link before what is lost of it."""
    link = group.link
    return link.bytes_per_s() / (1e9 * link.achieved * link.links)
