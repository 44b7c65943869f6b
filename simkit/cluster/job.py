"""One attempt to have a request answered: what a replica of a fleet is given."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through the fleet; a retry is another job."""

    request: int  # row of the workload
    arrived_ns: int  # when the client first asked
    prompt_tokens: int  # longer than the request's where it takes up what an earlier attempt had generated
    output_tokens: int  # still to generate
    weight_tokens: int  # what routers that count tokens take it for: its prompt and the answer expected of it
    sent_ns: int = -1  # when it reached its replica
    life: int = -1  # index of that replica's life; -1: none has it
    row: int = -1  # its row there; -1: turned away, or not sent
    kv_tokens: int = 0  # leading tokens whose KV comes along with it, over links
    inside: bool = False  # past the door
    open: bool = True  # somebody waits for it
