"""A summary's numbers as labelled lines, the same on a terminal and in a page."""

from collections.abc import Mapping
from dataclasses import dataclass

from simkit.metrics.slo import METRICS, STATISTICS, Promise, promise, targets
from simkit.report.data import at, number_at, section
from simkit.report.units import MISSING, by_name, count, rate, seconds, share

METRIC_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "ntpot": "NTPOT", "e2e": "E2E", "queue": "Queue"}


def latency_rows(summary: Mapping[str, object]) -> list[tuple[str, list[str]]]:
    """(metric, its statistics in the order of `STATISTICS`), for the metrics that the summary has."""
    known = section(summary, "latency_s")
    return [
        (METRIC_NAMES[metric], [seconds(number_at(known, metric, statistic)) for statistic in STATISTICS])
        for metric in METRICS
        if metric in known
    ]


def missing_reason(summary: Mapping[str, object]) -> str | None:
    """Why latency percentiles are absent, None when none is."""
    if not any(MISSING in row for _, row in latency_rows(summary)):
        return None
    if at(summary, "saturation", "saturated") is True:
        reason = at(summary, "saturation", "reason")
        return (
            f"{MISSING} not given: {reason or 'the queue grows, so a percentile would only say how long the run was'}"
        )
    if number_at(summary, "requests", "finished") == 0:
        return f"{MISSING} not given: no request finished"
    return f"{MISSING} not given: too few finished requests for this percentile"


def traffic_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """(label, text) of requests, throughput and goodput; its limits are those of the targets, which stand elsewhere."""
    good = {name: value for name, value in section(summary, "goodput").items() if name != "targets"}
    return _request_rows(summary) + _throughput_rows(summary) + _named_rows({"goodput": good}, "goodput", "Goodput")


def target_rows(summary: Mapping[str, object], slo: Mapping[str, float]) -> list[tuple[str, str]]:
    """(target, what came of it); under a growing queue every target of a latency is missed."""
    rows = []
    for target in targets(slo):
        measured = number_at(summary, "latency_s", target.metric, target.statistic)
        if measured is None:
            said = "missed, as the queue grows" if at(summary, "saturation", "saturated") is True else "not known"
        else:
            said = f"{seconds(measured)}, {'met' if measured <= target.limit_s else 'missed'}"
        rows.append((f"{target.label}, {seconds(target.limit_s)} promised", said))
    return rows + _joint_rows(summary, promise(slo))


@dataclass(frozen=True)
class JointCheck:
    """A promise that holds single requests to all limits at once, beside what came of it."""

    label: str
    measured: float  # a share, or requests a second
    limit: float
    met: bool  # False under a growing queue, whatever a run of this length showed

    def shown(self, value: float) -> str:
        """The measured or the promised figure as people read it."""
        return share(value) if self.label == ATTAINED else rate(value, "req")


ATTAINED = "Requests within all limits"
GOOD_PER_S = "Such requests a second"


def joint_checks(summary: Mapping[str, object], promised: Promise) -> list[JointCheck]:
    """What came of `attainment` and `goodput_per_s`, as far as the summary says."""
    grows = at(summary, "saturation", "saturated") is True
    wanted = ((ATTAINED, "fraction", promised.attainment), (GOOD_PER_S, "requests_per_s", promised.goodput_per_s))
    found = []
    for label, name, limit in wanted:
        measured = number_at(summary, "goodput", name)
        if limit is not None and measured is not None:
            found.append(JointCheck(label, measured, limit, measured >= limit and not grows))
    return found


def _joint_rows(summary: Mapping[str, object], promised: Promise) -> list[tuple[str, str]]:
    rows = []
    for check in joint_checks(summary, promised):
        kept = check.measured >= check.limit
        ending = "met" if check.met else "missed, as the queue grows" if kept else "missed"
        rows.append((f"{check.label}, {check.shown(check.limit)} promised", f"{check.shown(check.measured)}, {ending}"))
    return rows


def resource_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """(label, text) of KV blocks, preemptions, prefix cache, batches and busy time."""
    rows = _kv_rows(summary)
    if number_at(summary, "preemptions") is not None:
        rows.append(("Preemptions", count(number_at(summary, "preemptions"))))
    rows += _named_rows(summary, "prefix_cache", "Prefix cache")
    rows += _named_rows(summary, "batch", "Batch")
    if number_at(summary, "busy_fraction") is not None:
        rows.append(("Device busy", share(number_at(summary, "busy_fraction"))))
    return rows


def _request_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    names = ("arrived", "finished", "rejected", "unfinished")
    counts = [(name, number_at(summary, "requests", name)) for name in names]
    return [(f"Requests {name}", count(value)) for name, value in counts if value is not None]


def _throughput_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    lines = (
        ("Requests finished a second", "requests_per_s", "req"),
        ("Output tokens a second", "output_tokens_per_s", "tok"),
        ("Prompt and output tokens a second", "total_tokens_per_s", "tok"),
    )
    values = [(label, number_at(summary, "throughput", key), noun) for label, key, noun in lines]
    return [(label, rate(value, noun)) for label, value, noun in values if value is not None]


def _kv_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    blocks = number_at(summary, "kv", "blocks")
    rows = [] if blocks is None else [("KV blocks", count(blocks))]
    for label, key in (("KV blocks held, peak", "peak_used"), ("KV blocks held, mean", "mean_used")):
        held = number_at(summary, "kv", key)
        if held is None:
            continue
        # both conventions are met: a share of the blocks, or a number of them
        is_share = blocks is None or (held <= 1.0 and isinstance(held, float))
        rows.append((label, share(held) if is_share or not blocks else f"{count(held)} ({share(held / blocks)})"))
    return rows


def _named_rows(tree: Mapping[str, object], name: str, label: str) -> list[tuple[str, str]]:
    """One line a leaf under `name`, its unit read off its key."""
    value = tree.get(name)
    if isinstance(value, Mapping):
        rows: list[tuple[str, str]] = []
        for key, inner in value.items():
            words = str(key).removesuffix("_per_s").removesuffix("_s").replace("_", " ")
            inner_label = f"{label}, {words}" + (" a second" if str(key).endswith("_per_s") else "")
            rows += _named_rows({str(key): inner}, str(key), inner_label)
        return rows
    return [] if value is None else [(label, by_name(name, value))]
