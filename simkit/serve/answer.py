"""An answer on its way to a client."""

import asyncio


class Answer:
    """How far one request has come, as its client may know it."""

    def __init__(self, row: int, prompt_tokens: int, output_tokens: int, bell: asyncio.Event) -> None:
        """`bell` rings whenever something changes; the answers of one HTTP request share it."""
        self.row = row
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = 0  # of the prompt, found in the prefix cache
        self.delivered = 0  # tokens due by now
        self.last_token_ns = 0  # simulated
        self.failed = False  # the engine stopped
        self.bell = bell

    @property
    def finished(self) -> bool:
        """Whether its last token is due."""
        return self.delivered == self.output_tokens
