"""Does a discipline keep the rules? Random workloads under the checker, rule by rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simkit.engine.checked_run import Iterate, Watch, checked_run
from simkit.engine.checks import MOST_OVERTAKEN
from simkit.engine.discipline import bound_engine, engine
from simkit.engine.histories import History, crowded_history, drafted_history, random_history, windowed_history
from simkit.engine.interpreted import interpreted
from simkit.engine.loop import IDLE
from simkit.engine.policy import Advance, compiled_loop, interpreted_loop
from simkit.engine.policy_file import PolicyFile, told
from simkit.engine.settings import EngineSettings
from simkit.engine.state import NEVER, STEPS, Replica
from simkit.engine.violation import RULES, Violation

HISTORIES = 100
CROWDED_EVERY = 10  # of the histories, one in so many is a long overload, in which starvation would show
WINDOWED_EVERY = 4  # of the others, about one in so many is of a model whose layers see windows
DRAFTED_EVERY = 5  # of the rest, about one in so many has drafts to check
COMPARED = 20  # histories that are run compiled and interpreted
MOST_TURNS = 20_000


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    rule: str
    statement: str  # what is meant by it
    held: bool
    detail: str  # what was seen; for a rule that broke the facts, its first time
    history: int | None = None  # where it broke: the history's seed
    step: int | None = None
    request: int | None = None


Progress = Callable[[int], None]


def check_policy(policy: PolicyFile, histories: int = HISTORIES, on_progress: Progress | None = None) -> list[Finding]:
    """Run a user's discipline through random workloads under the checker: one Finding a rule.

    It runs interpreted, where a wild index is an error and not a crash; and, if it keeps all the rules and numba can
    compile it, compiled as well: both must do the same to the bit. Raises InputError if the file is no discipline.
    """
    watch = Watch()
    loop = interpreted_loop(policy, watch.around)
    findings = check_rules(loop.iterate, histories, watch, lambda error: str(told(policy, error)), on_progress, True)
    if all(finding.held for finding in findings):
        compiled, why_not = compiled_loop(policy, bound_engine)
        if compiled is None:
            findings.append(Finding("interpreted = compiled", _SAME, True, f"not compiled: {why_not}"))
        else:
            findings.append(compare(compiled.advance, interpreted_loop(policy).advance))
    return findings


def check_bundled(name: str, histories: int = HISTORIES, on_progress: Progress | None = None) -> list[Finding]:
    """The same for a discipline of ours, compiled as `run` uses it."""
    plain = interpreted().discipline.engine(name)
    windows = not EngineSettings(discipline=name).keeps_whole_contexts()
    drafts = name == EngineSettings().discipline
    findings = check_rules(engine(name).iterate, histories, on_progress=on_progress, windows=windows, drafts=drafts)
    return [*findings, compare(engine(name).advance, plain.advance)]


def check_rules(
    iterate: Iterate,
    histories: int = HISTORIES,
    watch: Watch | None = None,
    explain: Callable[[Exception], str] = str,
    on_progress: Progress | None = None,
    windows: bool = False,
    drafts: bool = False,
) -> list[Finding]:
    """Run random histories under the checker and say of each rule whether it held, or where it first broke.

    A history ends at the first rule that it breaks; the others go on. `windows`: the discipline serves models whose
    layers see windows, too. `drafts`: it has those of speculative decoding checked.
    """
    broken: dict[str, Finding] = {}
    steps = 0
    for seed in range(histories):
        crowded = seed % CROWDED_EVERY == CROWDED_EVERY - 1
        windowed = windows and seed % WINDOWED_EVERY == 0
        drafted = drafts and seed % DRAFTED_EVERY == 1
        history = windowed_history(seed, whole=True) if windowed else random_history(seed)
        history = drafted_history(seed) if drafted and not windowed else history
        history = crowded_history(seed) if crowded else history
        try:
            r = checked_run(history, iterate, MOST_OVERTAKEN if crowded else None, watch, explain)
            steps += int(r.at[STEPS])
        except Violation as found:
            steps += found.step
            finding = Finding(found.rule, RULES[found.rule], False, found.detail, seed, found.step, found.request)
            broken.setdefault(found.rule, finding)
        if on_progress is not None:
            on_progress(seed + 1)
    seen = f"{steps} steps of {histories} histories"
    return [broken.get(rule) or Finding(rule, statement, True, seen) for rule, statement in RULES.items()]


_SAME = "machine code and plain Python leave the same bits in every array"


def compare(compiled: Advance, plain: Advance, seeds: Sequence[int] = range(COMPARED)) -> Finding:
    """Run histories both ways and compare every array of the replica at their end."""
    for seed in seeds:
        history = random_history(seed)
        one, other = _run(compiled, history), _run(plain, history)
        for name, data in state_bytes(one).items():
            if data != state_bytes(other)[name]:
                return Finding("interpreted = compiled", _SAME, False, f"{name} differs", seed)
    return Finding("interpreted = compiled", _SAME, True, f"{len(seeds)} histories")


def _run(advance: Advance, history: History) -> Replica:
    r = history.replica()
    if advance(r, history.tables, NEVER, MOST_TURNS) != IDLE:
        raise AssertionError("a history that ended under the checker does not end without it")
    return r


def state_bytes(r: Replica) -> dict[str, bytes]:
    """Every array of a replica that the loop writes, except block-table rows that nobody holds."""
    arrays = {name: getattr(r, name) for name in ("progress", "ledger", "batches", "running", "tenants", "at")}
    arrays |= {f"pool.{name}": getattr(r.pool, name) for name in ("blocks", "places", "counts", "free_slots")}
    arrays |= {f"record.{name}": getattr(r.record, name) for name in r.record._fields}
    return {name: array.tobytes() for name, array in arrays.items()}
