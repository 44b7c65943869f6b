"""Text as tokens without a tokenizer: a rule for counting, ids by hash, words that are one token in most vocabularies.

Counts of text are by rule; they are exact where clients send token ids.
"""

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from zlib import crc32

import numpy as np

from simkit.engine.state import I64

# pieces as byte-pair tokenizers cut them: a word with the space before it, long ones in parts, runs of punctuation
_PIECE = re.compile(r" ?\w{1,8}| ?[^\w\s]{1,4}|\s+")

# short frequent English words, each with its space one token for GPT-2, Llama and Qwen alike
_FREQUENT = """the of and to in is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do"""
WORDS = tuple(f" {word}" for word in _FREQUENT.split())

# A chat template's own tokens, Llama 3's: a message is start, role, end, two newlines, its text, end of turn
# (Meta, Llama 3 model card, prompt format).
_BEGIN, _START, _END, _NEWLINES, _TURN_OVER = range(1 << 40, (1 << 40) + 5)


def text_tokens(text: str) -> list[int]:
    """Ids of a text's pieces; equal pieces have equal ids."""
    return [crc32(piece.encode()) for piece in _PIECE.findall(text)]


def chat_tokens(messages: Sequence[tuple[str, str]]) -> list[int]:
    """Ids of a conversation, (role, text) each, up to where the assistant's answer begins."""
    tokens = [_BEGIN]
    for role, text in messages:
        tokens += [_START, *text_tokens(role), _END, _NEWLINES, *text_tokens(text), _TURN_OVER]
    return [*tokens, _START, *text_tokens("assistant"), _END, _NEWLINES]


def answer_words(prompt: Sequence[int], count: int) -> Iterator[str]:
    """The `count` words of the answer to a prompt; the same prompt has the same answer."""
    seed = crc32(np.array(prompt, dtype=np.int64).tobytes())
    for i in range(count):
        # a step that is odd, and prime to the number of words, visits all of them in turn
        yield WORDS[(seed + i * 37) % len(WORDS)]


def content_ids(tokens: Sequence[int], block_size: int) -> I64:
    """[whole blocks] an id for each block of tokens that stands for all tokens up to its end."""
    ids = np.array(tokens, dtype=np.int64)
    blocks = len(ids) // block_size
    out = np.empty(blocks, dtype=np.int64)
    parent = b""
    for i in range(blocks):
        parent = blake2b(parent + ids[i * block_size : (i + 1) * block_size].tobytes(), digest_size=8).digest()
        out[i] = int.from_bytes(parent, "little") >> 2  # 62 bits: the engine adds 1 and wants it positive
    return out
