"""A search that can be taken up again: one line of JSON an answer, in a file that belongs to one question."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.plan.answer import Answer

SCHEMA = "simkit.study/1"
MOST_BYTES = 256 << 20


def question_key(question: Mapping[str, object]) -> str:
    """A hash of all that an answer depends on."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()


class Study:
    """Answers by number of their kind, on disk as soon as they are known."""

    def __init__(self, path: Path | None, key: str) -> None:
        """Open or begin the study; None keeps it in memory. InputError for a file that is no study of this question."""
        self.path = path
        self.answers: dict[int, Answer] = {}
        if path is None:
            return
        if path.exists():
            self._read(path, key)
        else:
            self._append({"schema": SCHEMA, "question": key})

    def add(self, found: Answer) -> None:
        """Keep an answer."""
        self.answers[found.number] = found
        if self.path is not None:
            self._append(found.model_dump(mode="json"))

    def _append(self, tree: Mapping[str, object]) -> None:
        assert self.path is not None, "only studies on disk are appended to"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(tree, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.path}: {(error.strerror or 'cannot be written').lower()}; choose another"
            ) from None

    def _read(self, path: Path, key: str) -> None:
        try:
            if path.stat().st_size > MOST_BYTES:
                raise InputError(f"{path}: is larger than {MOST_BYTES >> 20} MiB; this is no study")
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{path}: cannot be read as text; name another study file") from None
        try:
            head = json.loads(lines[0])
        except json.JSONDecodeError:
            head = None
        if not isinstance(head, dict) or head.get("schema") != SCHEMA:
            raise InputError(f"{path}:1: is no study of schema {SCHEMA!r}; name another file")
        if head.get("question") != key:
            raise InputError(f"{path}: is a study of another question; name another file, or remove it to begin again")
        whole = lines[1:-1]  # a line without an end was cut off by an interrupt
        for number, line in enumerate(whole, start=2):
            try:
                found = Answer.model_validate_json(line)
            except ValidationError as error:
                raise InputError(first_error(error, f"{path}:{number}", Answer.model_fields)) from None
            self.answers[found.number] = found
        if lines[-1]:
            path.write_text("\n".join([lines[0], *whole]) + "\n", encoding="utf-8")
