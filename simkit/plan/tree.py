"""A decision as JSON: the same names as the values, without what is only there to compute others."""

from dataclasses import asdict

from simkit.metrics.intervals import Interval
from simkit.plan.answer import kind_tree
from simkit.plan.changes import Infeasible
from simkit.plan.confidence import Confidence
from simkit.plan.decision import Decision
from simkit.plan.observation import Observation
from simkit.plan.one_replica import OneReplica

Tree = dict[str, object]


def decision_tree(d: Decision) -> Tree:
    """All of a decision; infinities and NaN are left to the writer, which makes them null."""
    return {
        "kind": kind_tree(d.kind),
        "replicas": d.replicas,
        "gpus": d.replicas * d.kind.gpus,
        "rate_per_s": d.rate_per_s,
        "planned": observation_tree(d.planned),
        "routed": None if d.routed is None else observation_tree(d.routed),
        "knee": {
            "rate_per_s": d.knee.rate_per_s,
            "binding": d.knee.binding,
            "load": d.load,
            "by_step_time_factor": {f"{factor:g}": rate for factor, rate in d.knee_by_factor.items()},
            "tried": [
                {"rate_per_s": rate, "holds": one.holds, "missed": one.missed, "worst": one.worst}
                for rate, one in d.knee.seen
            ],
        },
        "confidence": {
            **confidence_tree(d.sure),
            "promise_kept_with_one_replica_more": interval_tree(d.kept_with_one_more),
        },
        "resources": [{**asdict(one), "headroom": one.headroom} for one in d.resources],
        "changes": [asdict(change) for change in d.changes],
        "stresses": [
            {"scenario": asdict(s.scenario), "holds": s.holds, "missed": s.missed, "held_per_s": s.held_per_s}
            for s in d.stresses
        ],
        "runs_out": None if d.runs_out is None else {"months": d.runs_out[0], "month": d.runs_out[1].isoformat()},
        "use": {**asdict(d.use), "idle_share": d.use.idle_share},
        "bill": asdict(d.bill),
        "waterfalls": [asdict(one) for one in d.waterfalls],
        "launch": asdict(d.launch),
        "memory_bytes": dict(d.memory),
        "step_time": {"provenance": d.provenance, "note": d.provenance_note, "known": d.known},
    }


def one_replica_tree(found: OneReplica) -> Tree:
    """What is known of one replica at the rate that it holds."""
    return {
        "rate_per_s": found.rate_per_s,
        "planned": observation_tree(found.planned),
        "confidence": {
            **confidence_tree(found.sure),
            "promise_kept_at_share_of_rate": {
                f"{share:g}": interval_tree(kept) for share, kept in found.kept_below.items()
            },
        },
        "resources": [{**asdict(one), "headroom": one.headroom} for one in found.resources],
        "changes": [asdict(change) for change in found.changes],
        "use": {**asdict(found.use), "idle_share": found.use.idle_share},
        "bill": asdict(found.bill),
        "waterfalls": [asdict(one) for one in found.waterfalls],
        "known": found.known,
    }


def confidence_tree(sure: Confidence) -> Tree:
    """How sure an answer is."""
    return {
        "promise_kept": interval_tree(sure.kept),
        "promise_kept_if_step_times_exact": interval_tree(sure.kept_as_assumed),
        "long_run": {key: interval_tree(value) for key, value in sure.sampling.items()},
        "with_step_time_error": {key: interval_tree(value) for key, value in sure.together.items()},
        "queue_grows": sure.grows,
        "step_time_spread": sure.error.spread,
        "step_time_spread_source": sure.error.source,
        "replications": sure.replications,
    }


def observation_tree(seen: Observation) -> Tree:
    """One replay."""
    return {**asdict(seen), "holds": seen.holds}


def interval_tree(interval: Interval) -> Tree:
    """Low, value, high."""
    return dict(zip(("low", "value", "high"), interval, strict=True))


def infeasible_tree(why: Infeasible) -> Tree:
    """Why nothing holds."""
    return asdict(why)
