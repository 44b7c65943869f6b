"""Layers that keep a state of fixed size where attention keeps keys and values of all tokens: Gated DeltaNet, Mamba 2.

A head's state is a matrix of `key_dim` x `value_dim`; every token changes it and reads one vector from it. A short
causal convolution over queries, keys and values comes before, and keeps its last `conv_kernel` - 1 inputs.
"""

from dataclasses import dataclass
from typing import Literal

LinearForm = Literal["GDN", "Mamba2"]


@dataclass(frozen=True)
class LinearAttention:
    """A layer whose memory of a context does not grow with it (Yang et al. 2024, Gated Delta Networks; Dao and Gu 2024,
    Mamba 2, whose groups are `key_heads` and whose state size is `key_dim`).
    """

    form: LinearForm
    heads: int  # of values, each with a state
    key_heads: int  # of queries and keys, shared by the heads
    key_dim: int  # of one head
    value_dim: int
    conv_kernel: int
    conv_bias: bool = False
    output_bias: bool = False  # of both projections (Mamba 2)
    state_bytes_per_number: int = 4  # fp32 unless the model or the server says otherwise
    window_tokens: None = None  # as other attention has them: it sees all of its context, through its state
    chunked: Literal[False] = False

    @property
    def kind(self) -> LinearForm:
        """What the field calls it."""
        return self.form

    @property
    def channels(self) -> int:
        """Queries, keys and values of all heads, which pass the convolution."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    @property
    def input_width(self) -> int:
        """What the input projections give: the channels, the output's gate, and the gates of each head."""
        gates = 2 if self.form == "GDN" else 1  # beta and decay, or the step's length
        return self.channels + self.heads * (self.value_dim + gates)

    def parameters(self, hidden: int) -> int:
        """Weights of the projections, the convolution, the heads' own numbers and the norm before the output.

        transformers' Qwen3NextGatedDeltaNet and NemotronHMamba2Mixer: A_log and dt_bias, and D of Mamba 2; the norm is
        as wide as one head's value, of Mamba 2 as all heads'.
        """
        values = self.heads * self.value_dim
        per_head, norm = (2, self.value_dim) if self.form == "GDN" else (3, values)
        biases = self.channels * self.conv_bias + (self.input_width + hidden) * self.output_bias
        return (
            hidden * (self.input_width + values)
            + self.channels * self.conv_kernel
            + per_head * self.heads
            + norm
            + biases
        )

    def kv_bytes(self, _precision: object) -> int:
        """No token leaves keys or values."""
        return 0

    def on_gpu(self, tensor: int) -> "LinearAttention":
        """One of `tensor` equal shares: heads and groups are cut; groups that do not divide are copied, one a GPU.

        (vLLM MambaStateShapeCalculator.extra_groups_for_head_shards.)
        """
        if tensor == 1:
            return self
        key_heads = self.key_heads // tensor if self.key_heads % tensor == 0 else 1
        return LinearAttention(
            self.form,
            self.heads // tensor,
            key_heads,
            self.key_dim,
            self.value_dim,
            self.conv_kernel,
            self.conv_bias,
            self.output_bias,
            self.state_bytes_per_number,
        )

    @property
    def head_state_bytes(self) -> int:
        """The matrices of all heads."""
        return self.heads * self.key_dim * self.value_dim * self.state_bytes_per_number

    def state_bytes(self, drafts: int = 0) -> int:
        """What one request keeps: the heads' matrices, and the convolution's last inputs at 16 bits.

        (vLLM MambaStateShapeCalculator; `drafts` tokens to check are convolved beside the others.)
        """
        return self.head_state_bytes + (self.conv_kernel - 1 + drafts) * self.channels * 2
