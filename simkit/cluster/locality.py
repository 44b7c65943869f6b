"""Where a prompt is computed if prefill is apart: on a prefill replica, or where its tokens are generated."""

from collections.abc import Sequence

from simkit.cluster.handover import Disaggregation
from simkit.cluster.job import Job
from simkit.cluster.kv_station import KvStation
from simkit.cluster.roster import Member
from simkit.workloads.workload import Workload


class Locality:
    """What the gateway knows of lengths, and the user's rules for which prompts are not worth sending about."""

    def __init__(self, settings: Disaggregation, workload: Workload, members: Sequence[Member]) -> None:
        """`members` are all that there may be."""
        self._settings = settings
        self._prompt = workload.prompt_tokens
        self._shares_content = workload.prefixes is not None
        self._block_tokens = members[0].spec.limits.block_size
        self._longest_prompt = min(reach(member) for member in members if member.pool in settings.prefill)
        self._longest = min(reach(member) for member in members if member.pool in settings.decode)

    def is_too_long(self, job: Job) -> bool:
        """Whether a replica that it might be sent to cannot serve it; what has grown need not go to prefill again."""
        grown = job.prompt_tokens > self._prompt[job.request]
        whole = job.prompt_tokens + job.output_tokens
        return whole > self._longest or (self._is_long_prompt(job) and not grown)

    def is_local(self, job: Job, queued: int, decodes: Sequence[KvStation]) -> bool:
        """Whether a decode replica is to compute the prompt, while `queued` wait for a prefill replica."""
        settings = self._settings
        if settings.local_when_queued is not None and queued > settings.local_when_queued:
            return True
        if job.prompt_tokens - 1 < self._block_tokens:
            return True  # there is no full block to hand over
        if self._is_long_prompt(job):
            return True
        if settings.local_below_tokens == 0:
            return False
        cached = 0
        if self._shares_content:
            cached = max((station.cached_tokens(job.request) for station in decodes), default=0)
        return job.prompt_tokens - cached < settings.local_below_tokens

    def _is_long_prompt(self, job: Job) -> bool:
        return job.prompt_tokens + 1 > self._longest_prompt


def reach(member: Member) -> int:
    """Tokens of the longest request that a replica can serve: its context, and its cache."""
    limits = member.spec.limits
    return min(limits.max_model_len, (member.spec.num_blocks - 1) * limits.block_size)
