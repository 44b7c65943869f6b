"""Which KV of a fleet is moved, and whether its replicas can have it moved."""

from collections.abc import Sequence
from dataclasses import dataclass

from simkit.cluster.handover import Disaggregation
from simkit.cluster.roster import Member
from simkit.cluster.tiers import Tier
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.models.precision import parse_kv_precision

LANDS_UNDER = "vllm-v1"  # `KvStation.make_room` counts on its admission, so that nobody waits for ever


@dataclass(frozen=True)
class Moving:
    """Prefill and decode apart, tiers behind the devices, or both."""

    apart: Disaggregation | None = None
    tiers: tuple[Tier, ...] = ()

    def __bool__(self) -> bool:
        return self.apart is not None or bool(self.tiers)


NOTHING_MOVES = Moving()


def check_moving(moving: Moving, members: Sequence[Member]) -> None:
    """Raise InputError unless KV can be moved among `members`, who are all that there may be."""
    first = members[0]
    for member in members:
        for what, mine, others in (
            ("model", member.spec.deployment.model, first.spec.deployment.model),
            ("kv", member.spec.deployment.kv, first.spec.deployment.kv),
            ("engine.block_size", member.spec.limits.block_size, first.spec.limits.block_size),
        ):
            if mine != others and (moving.apart is not None or what != "engine.block_size"):
                raise InputError(
                    f"{'disaggregation' if moving.apart else 'tiers'}: pool {member.pool!r} has {what} {mine!r}, pool "
                    f"{first.pool!r} {others!r}; KV can only be handed over between equal ones"
                )
    if moving.apart is not None:
        _check_pools(moving.apart, members)
    for member in members:
        if member.spec.limits.window_groups > 0:
            raise InputError(
                f"pool {member.pool!r}: its windows keep parts of contexts, and KV that is moved is moved whole; set "
                "engine.disable_hybrid_kv_cache_manager: true"
            )
        if moving.tiers:
            _check_lands(member.spec, f"tiers: pool {member.pool!r}")
        elif moving.apart is not None and member.pool in moving.apart.decode:
            _check_lands(member.spec, f"disaggregation: pool {member.pool!r}")


def token_bytes(spec: ReplicaSpec) -> int:
    """KV of one token on all GPUs of a replica, copies of tensor parallelism not counted twice."""
    kv = parse_kv_precision(spec.deployment.kv, "deployment.kv")
    draft = () if spec.draft is None else spec.draft.layers
    return spec.architecture.kv_bytes_per_token(kv) + sum(layer.attention.kv_bytes(kv) for layer in draft)


def _check_pools(apart: Disaggregation, members: Sequence[Member]) -> None:
    """Every pool is for prefill or for decode, and has a replica or may get one."""
    pools = {member.pool for member in members}
    for name in (*apart.prefill, *apart.decode):
        if name not in pools:
            raise InputError(
                f"disaggregation: pool {name!r} has no replica; there are {', '.join(sorted(pools)) or 'none'}"
            )
    for name in sorted(pools - {*apart.prefill, *apart.decode}):
        raise InputError(f"disaggregation: pool {name!r} is in neither prefill nor decode; name it in one")


def _check_lands(spec: ReplicaSpec, where: str) -> None:
    """Raise InputError, beginning with `where`, for a replica whose scheduler would not find KV that arrives."""
    if not spec.limits.prefix_caching:
        raise InputError(
            f"{where} has enable_prefix_caching: false; KV that arrives is found as a cached prefix is: set it to true"
        )
    discipline = spec.deployment.engine.discipline
    if discipline != LANDS_UNDER:
        raise InputError(f"{where} has discipline {discipline!r}; where KV arrives it must be {LANDS_UNDER}")
