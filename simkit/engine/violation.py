"""The rules that every discipline keeps, by the names under which they are reported."""

BUDGET = "budget kept"
PLACES_KEPT = "at most max_running"
ONCE = "once a batch"
ORDER = "batch in order"
DUE = "given what is due"
MEMORY = "memory for its tokens"
REFERENCES = "references counted"
LEAK = "no block leaked"
DOUBLE_FREE = "no block freed twice"
SHARED = "shared only if equal"
FREE_QUEUE = "free queue sound"
PREFIX_MAP = "prefix map sound"
QUEUES = "everyone in one place"
ACCOUNTED = "tokens accounted for"
TIME_ACCOUNTED = "time accounted for"
PROGRESS_MADE = "no livelock"
STARVED = "nobody starved"
ENDS = "every request ends"
GIVEN_BACK = "everything given back"
RUNS = "runs without an error"

RULES = {
    BUDGET: "a step's tokens are at most max_num_batched_tokens",
    PLACES_KEPT: "at most max_running requests run, or are in a batch",
    ONCE: "no request is in a batch twice",
    ORDER: "a batch names requests in the order in which they run, as the ledger of their time needs it",
    DUE: "a request in a batch runs, begins where it stands, and gets 1 to as many tokens as it is due",
    MEMORY: "a request holds the blocks for the tokens it is given",
    REFERENCES: "a block's references are the requests that hold it",
    LEAK: "a block that nobody holds is in the free queue",
    DOUBLE_FREE: "a block is in the free queue once, and only if nobody holds it",
    SHARED: "a block is held by two requests only if both have the same content there",
    FREE_QUEUE: "the free queue's links and its count agree",
    PREFIX_MAP: "the prefix map finds exactly the blocks registered for a content",
    QUEUES: "who has arrived and is not over waits or runs, in one place",
    ACCOUNTED: "tokens computed and delivered are those that batches were given",
    TIME_ACCOUNTED: "host, decode and prefill time add up to the clock, and each request's parts to its latency",
    PROGRESS_MADE: "while somebody waits, steps compute something",
    STARVED: "under first come first served only so many later requests end before one gets its next token",
    ENDS: "every request that is not cancelled ends",
    GIVEN_BACK: "at the end all blocks are free",
    RUNS: "a step ends, and without an exception",
}


class Violation(Exception):  # noqa: N818 - the field's word for a broken invariant
    """A rule that does not hold: its name, the step (counted from 1), the request if it is about one, and the facts."""

    def __init__(self, rule: str, step: int, request: int | None, detail: str) -> None:
        whom = "" if request is None else f", request {request}"
        super().__init__(f"{rule}: step {step}{whom}: {detail}")
        self.rule = rule
        self.step = step
        self.request = request
        self.detail = detail
