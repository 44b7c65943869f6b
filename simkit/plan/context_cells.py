"""Every maximum context at every rate and KV precision: how many GPUs, how long users wait, what it costs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product

from simkit.engine.deployment import Deployment, ReplicaSpec
from simkit.errors import InputError
from simkit.metrics.intervals import Interval
from simkit.metrics.result import RunResult, Status
from simkit.metrics.slo import Promise
from simkit.models.catalog import load_model
from simkit.plan.answer import Question, answer, start
from simkit.plan.confidence import StepTimeError, kept_probability
from simkit.plan.context import (
    RETRIEVED,
    WHOLE,
    WINDOWED,
    ContextSettings,
    after,
    check_window,
    context_workload,
    longest,
    windowed_of,
    with_retrieval,
)
from simkit.plan.cost import Ledger, ledger
from simkit.plan.fleet import replay_share
from simkit.plan.knee import find_knee
from simkit.plan.observation import Observation, observe
from simkit.plan.space import Kind
from simkit.plan.sweep import replay
from simkit.plan.traffic import replica_share
from simkit.plan.use import fleet_use, prefill_share
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class Filled:
    """What is known of a cell in which some number of replicas holds."""

    replicas: int  # the fewest
    gpus: int
    held_per_replica: float | None  # requests/s, at the knee of one
    running_mean: float  # requests in a step
    preemptions: int  # in the replay of one replica's share
    requests: int  # of that replay
    ttft_p50_s: float  # of the requests that use the context to its end, the search before it included
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    prefill_share: float  # of the device time, in full batches: with all requests at hand
    usd_per_hour: float
    usd_per_request: float
    usd_per_million_input: float
    usd_per_million_output: float


@dataclass(frozen=True)
class Cell:
    """One maximum context at one rate in one KV precision, answered in one way."""

    max_context: int  # tokens, prompt and answer
    rate_per_s: float
    kv: str
    way: str
    fits_at_once: float  # requests of `max_context` tokens that one replica's KV cache holds; 0 if not even the model
    reason: str  # why nothing holds
    filled: Filled | None
    kept: Interval | None = None  # probability that the promise is kept; told of each line's longest that holds


@dataclass(frozen=True)
class ContextQuestion:
    """What every cell is asked."""

    deployment: Deployment
    workload: Workload
    own_rate_per_s: float
    promise: Promise
    settings: ContextSettings
    spec_of: Callable[[Kind], ReplicaSpec]
    usd_per_hour: float  # of one GPU
    power_w: float
    seed: int = 0
    error_of: Callable[[ReplicaSpec], StepTimeError] | None = None  # None: how sure the longest are is not told

    @property
    def ways(self) -> tuple[str, ...]:
        """How the long questions are answered."""
        others = ((RETRIEVED, self.settings.retrieval), (WINDOWED, self.settings.window_tokens))
        return (WHOLE, *(name for name, setting in others if setting is not None))

    def places(self) -> Iterator[tuple[str, str, float, int]]:
        """(way, KV precision, rate, length) of every cell."""
        settings = self.settings
        kv = settings.kv or (self.deployment.kv,)
        yield from product(self.ways, kv, settings.rates or (self.own_rate_per_s,), settings.lengths)


def cells(question: ContextQuestion, on_cell: Callable[[int], None] = lambda _: None) -> list[Cell]:
    """Every cell of the question; `on_cell` is told how many are done. InputError for a window that none can have."""
    if question.settings.window_tokens is not None:
        check_window(load_model(question.deployment.model), question.settings.window_tokens)
    longest: dict[tuple[str, str, float], tuple[int, _Place]] = {}  # by line: the cell's number
    found: list[Cell] = []
    for way, kv, rate, length in question.places():
        cell, place = _cell(question, way, kv, rate, length)
        if place is not None:
            longest[way, kv, rate] = len(found), place
        found.append(cell)
        on_cell(len(found))
    if question.error_of is not None:
        for number, place in longest.values():
            found[number] = _with_doubt(question.error_of(place.spec), found[number], place)
    return found


def _with_doubt(error: StepTimeError, cell: Cell, place: "_Place") -> Cell:
    """The cell with how sure the promise is there.

    The traffic of each replication is a block bootstrap of the cell's, long requests and all.
    """
    assert cell.filled is not None, "asked of what holds"
    kept = kept_probability(place.spec, place.traffic, cell.filled.replicas, cell.rate_per_s, place.promise, error)
    return replace(cell, kept=kept)


@dataclass(frozen=True)
class _Place:
    """A cell's own deployment, traffic and promise."""

    way: str
    rate_per_s: float
    length: int
    kind: Kind
    spec: ReplicaSpec
    traffic: Workload
    promise: Promise


def _cell(question: ContextQuestion, way: str, kv: str, rate: float, length: int) -> tuple[Cell, _Place | None]:
    """A cell and, where it holds, its place."""
    empty = Cell(length, rate, kv, way, 0.0, "", None)
    try:
        place = _place(question, way, kv, rate, length)
    except InputError as error:
        return replace(empty, reason=str(error)), None
    fits = _fits(place)
    ask = Question(place.traffic, rate, place.promise, (), partial(_known, spec=place.spec))
    one = answer(start(place.kind, ask), ask)
    if one.replicas is None:
        return replace(empty, fits_at_once=fits, reason=one.reason), None
    return replace(empty, fits_at_once=fits, filled=_filled(question, place, one.replicas)), place


def _known(_: Kind, spec: ReplicaSpec) -> ReplicaSpec:
    return spec


def _fits(place: _Place) -> float:
    """Requests of the cell's length that one replica holds at once."""
    spec = place.spec
    if spec.limits.window_groups > 0 or spec.limits.state_blocks > 0:
        return min(spec.limits.max_running, (spec.num_blocks - 1) / spec.blocks_of(place.length))
    return min(spec.limits.max_running, (spec.num_blocks - 1) * spec.limits.block_size / place.length)


def _place(question: ContextQuestion, way: str, kv: str, rate: float, length: int) -> _Place:
    settings, deployment = question.settings, question.deployment
    engine = deployment.engine.model_copy(update={"max_model_len": length})
    kind = Kind(
        number=0,
        deployment=deployment.model_copy(update={"engine": engine, "kv": kv}),
        usd_per_hour=question.usd_per_hour,
        power_w=question.power_w,
        idle_w=None,
        most_replicas=settings.replicas,
    )
    traffic = context_workload(question.workload, length, settings.long_share, question.seed)
    promise = question.promise
    if way == WINDOWED and settings.window_tokens is not None:
        spec = windowed_of(partial(_of_length, question=question, kind=kind), length, settings.window_tokens)
        return _Place(way, rate, length, kind, spec, traffic, promise)
    spec = question.spec_of(kind)
    if way == RETRIEVED and settings.retrieval is not None:
        traffic = with_retrieval(traffic, length, settings.retrieval)
        promise = after(promise, settings.retrieval.latency_s)
    return _Place(way, rate, length, kind, spec, traffic, promise)


def _of_length(length: int, question: ContextQuestion, kind: Kind) -> ReplicaSpec:
    engine = kind.deployment.engine.model_copy(update={"max_model_len": length})
    deployment = kind.deployment.model_copy(update={"engine": engine})
    return question.spec_of(replace(kind, deployment=deployment))


def _filled(question: ContextQuestion, place: _Place, replicas: int) -> Filled:
    settings, spec, traffic, rate = question.settings, place.spec, place.traffic, place.rate_per_s
    seen = replay_share(spec, traffic, replicas, rate, place.promise)
    share = replica_share(traffic, replicas, rate)
    tail = _tail(question, place, share, replay(spec, share))
    use = fleet_use(spec, traffic, replicas, rate, seen, place.kind.gpus)
    bill: Ledger = ledger(use, place.kind.usd_per_hour, place.kind.power_w, None, settings.prices)
    retrieval = settings.retrieval if place.way == RETRIEVED else None
    searches = 0.0 if retrieval is None else settings.long_share * rate * 3.6 * retrieval.usd_per_thousand
    waited = 0.0 if retrieval is None else retrieval.latency_s
    total = bill.total_usd_per_hour + searches
    scale = total / bill.total_usd_per_hour if bill.total_usd_per_hour > 0 else 1.0
    return Filled(
        replicas=replicas,
        gpus=replicas * place.kind.gpus,
        held_per_replica=find_knee(spec, traffic, 1, place.promise, rate / replicas, precision=0.02).rate_per_s,
        running_mean=seen.running_mean,
        preemptions=seen.preemptions,
        requests=seen.requests,
        ttft_p50_s=tail.figures["ttft_p50_s"] + waited,
        ttft_p99_s=tail.figures["ttft_p99_s"] + waited,
        tpot_p50_s=tail.figures["tpot_p50_s"],
        tpot_p99_s=tail.figures["tpot_p99_s"],
        prefill_share=prefill_share(spec, share),
        usd_per_hour=total,
        usd_per_request=total / 3600 / rate,
        usd_per_million_input=bill.usd_per_million_input * scale,
        usd_per_million_output=bill.usd_per_million_output * scale,
    )


def _tail(question: ContextQuestion, place: _Place, share: Workload, result: RunResult) -> Observation:
    """One replica's share judged by its long requests alone; by all of them where it holds no long one."""
    retrieval = question.settings.retrieval
    rows = longest(share, place.length)
    if place.way == RETRIEVED and retrieval is not None and retrieval.prompt_tokens < place.length:
        rows = share.prompt_tokens == retrieval.prompt_tokens
    rows &= result.requests.status == Status.FINISHED
    return observe(result.requests, [result], place.promise, rows=rows if rows.any() else None)


@dataclass(frozen=True)
class Line:
    """One rate, KV precision and way, over the lengths."""

    way: str
    kv: str
    rate_per_s: float
    longest: int | None  # the longest context that holds
    prefill_dominates_from: int | None  # the first length at which prefill takes most of the device time
    doublings: tuple[tuple[int, int, float], ...]  # (from, to, times the price a request at the knee)


def line_of(found: Sequence[Cell], way: str, kv: str, rate: float) -> Line:
    """What the cells of one line say together."""
    line = [c for c in found if (c.way, c.kv, c.rate_per_s) == (way, kv, rate)]
    held = [c for c in line if c.filled is not None]
    heavy = [c.max_context for c in held if c.filled is not None and c.filled.prefill_share > 0.5]
    doublings = []
    for before, behind in pairwise(held):
        price, dearer = _price(before), _price(behind)
        if price is not None and dearer is not None:
            doublings.append((before.max_context, behind.max_context, dearer / price))
    return Line(way, kv, rate, held[-1].max_context if held else None, min(heavy, default=None), tuple(doublings))


def _price(cell: Cell) -> float | None:
    """GPUs a request at the knee: what a request costs once replicas are many enough not to be counted."""
    if cell.filled is None or cell.filled.held_per_replica is None:
        return None
    return cell.filled.gpus / cell.filled.replicas / cell.filled.held_per_replica
