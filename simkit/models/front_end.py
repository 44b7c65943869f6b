"""What a client waits for outside of the engine: HTTP, tokenisation, hand-over between processes, and the way back."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class FrontEndLaw(NamedTuple):
    """ns of each request, and of each token of its prompt."""

    request_ns: float = 0.0
    token_ns: float = 0.0

    def ns(self, prompt_tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """i64[n] whole ns for i32[n] prompt tokens."""
        whole: NDArray[np.float64] = np.rint(self.request_ns + self.token_ns * prompt_tokens)
        return whole.astype(np.int64)


NO_FRONT_END = FrontEndLaw()
"""The engine by itself, as a testbed's or a roofline's."""
