"""Counting and naming tokens without a tokenizer."""

import importlib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.errors import InputError
from simkit.serve.tokens import WORDS, answer_words, chat_tokens, content_ids, text_tokens


@given(st.lists(st.integers(0, 5), max_size=60), st.lists(st.integers(0, 5), max_size=60), st.integers(1, 8))
def test_blocks_share_an_id_exactly_if_all_up_to_their_end_is_equal(a: list[int], b: list[int], size: int) -> None:
    ids_a, ids_b = content_ids(a, size), content_ids(b, size)
    assert len(ids_a) == len(a) // size
    assert (ids_a >= 0).all()
    for k in range(min(len(ids_a), len(ids_b))):
        end = (k + 1) * size
        assert (ids_a[k] == ids_b[k]) == (a[:end] == b[:end])


@given(st.text(max_size=200))
def test_every_text_can_be_counted(text: str) -> None:
    tokens = text_tokens(text)
    assert len(tokens) <= len(text)
    assert bool(tokens) == bool(text)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 100))
def test_an_answer_is_as_many_tokens_as_words(prompt: list[int], count: int) -> None:
    words = list(answer_words(prompt, count))
    assert words == list(answer_words(prompt, count))
    assert set(words) <= set(WORDS)
    assert len(text_tokens("".join(words))) == count


def test_a_conversation_grows_at_its_end() -> None:
    first = [("user", "hello there")]
    answer = list(answer_words([1], 20))
    before = [*chat_tokens(first), *(token for word in answer for token in text_tokens(word))]
    after = chat_tokens([*first, ("assistant", "".join(answer)), ("user", "more")])
    assert after[: len(before)] == before


def test_words_are_single_tokens_of_common_vocabularies() -> None:
    """Short lower-case words with the space before them; that they are one token each rests on their frequency."""
    assert len(set(WORDS)) == len(WORDS) > 60
    assert all(word[0] == " " and word[1:].isalpha() and word.islower() and len(word) <= 6 for word in WORDS)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "simkit.serve.web_import", raising=False)
    with pytest.raises(InputError, match=r"uvicorn is not installed; pip install 'simkit-serving\[serve\]'"):
        importlib.import_module("simkit.serve.web_import")
    assert np.array_equal(content_ids([1, 2, 3], 4), [])
