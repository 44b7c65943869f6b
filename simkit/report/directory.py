"""A result directory: everything a run showed, written whole or not at all, file by file."""

import gzip
import io
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkit.errors import InputError, suggestion
from simkit.metrics.result import I64, WATERFALL, RequestColumns, Status
from simkit.report.chrome_trace import chrome_trace
from simkit.report.data import ReportData
from simkit.report.html import render_report

FILES = ("config.yaml", "summary.json", "requests.csv.gz", "requests.parquet", "report.html", "trace.json.gz")
Rows = Literal["csv", "parquet", "off"]
NOWHERE: Mapping[str, I64] = {}  # one replica by itself has no name


def prepare(folder: Path) -> None:
    """Say why the directory could not be made or written, before the work and not after it; it is made when written."""
    try:
        standing = folder
        while not standing.exists():
            standing = standing.parent
        with tempfile.TemporaryFile(dir=standing):
            pass
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: there is a file of that name; choose another --out") from None
    except OSError as error:
        reason = (error.strerror or "cannot be written").lower()
        raise InputError(f"{folder}: {reason}; choose an --out that can be written") from None


def write_result(folder: Path, data: ReportData, summary_json: str, config_yaml: str, rows: Rows = "csv") -> list[Path]:
    """Write all files of a result; returns their paths. `folder` was prepared; `rows` is the form of the requests."""
    contents = {
        "config.yaml": config_yaml.encode(),
        "summary.json": (summary_json + "\n").encode(),
        "report.html": render_report(data).encode(),
        "trace.json.gz": chrome_trace(data.result),
    }
    if rows == "csv":
        contents["requests.csv.gz"] = requests_csv(data.result.requests, data.places)
    elif rows == "parquet":
        contents["requests.parquet"] = requests_parquet(data.result.requests, data.places)
    paths = write_together({folder / name: content for name, content in contents.items()})
    # what an earlier run left here is not of this result
    for name in set(FILES) - set(contents):
        (folder / name).unlink(missing_ok=True)
    return paths


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file so that nobody ever sees half of it; InputError if the place cannot be written."""
    return write_together({path: content})[0]


def write_together(contents: Mapping[Path, bytes]) -> list[Path]:
    """Write files so that nobody sees half of one, nor, where the disk is full, some of this result beside another's.

    All are written under other names before the first is called by its own; folders that are missing are made.
    InputError if a place cannot be written.
    """
    waiting: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            waiting[path] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
        for path, written in waiting.items():
            os.replace(written, path)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or 'cannot be written').lower()}; choose another --out") from None
    finally:
        for written in waiting.values():
            written.unlink(missing_ok=True)
    return list(contents)


def check_rows(rows: str) -> Rows:
    """The form of the per-request file; InputError if it is not known or cannot be written here."""
    if rows not in get_args(Rows):
        raise InputError(f"--rows {rows}: unknown; {suggestion(rows, get_args(Rows))}")
    if rows == "parquet" and find_spec("pyarrow") is None:
        raise InputError(
            "--rows parquet: pyarrow is not installed; pip install 'simkit-serving[parquet]', or --rows csv"
        )
    return cast(Rows, rows)


def requests_csv(requests: RequestColumns, places: Mapping[str, I64] = NOWHERE) -> bytes:
    """One line a request, gzip'd; times are whole ns from the workload's start, empty where they did not happen."""
    packed = io.BytesIO()
    # level 1: half a million rows a second, for a file a fifth larger than level 6's
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=1) as file:
        requests_table(requests, places).to_csv(file, index=False)
    return packed.getvalue()


def requests_parquet(requests: RequestColumns, places: Mapping[str, I64] = NOWHERE) -> bytes:
    """The same table as Parquet."""
    packed = io.BytesIO()
    requests_table(requests, places).to_parquet(packed, index=False, compression="zstd")
    return packed.getvalue()


def requests_table(requests: RequestColumns, places: Mapping[str, I64] = NOWHERE) -> pd.DataFrame:
    """One row a request; a time that did not happen is missing, and so is a replica (-1 in `places`) of none."""
    finished = requests.status == Status.FINISHED
    started = finished | (requests.generated_tokens > 0)
    names = np.array([status.name.lower() for status in Status])
    return pd.DataFrame(
        {
            "request_id": requests.request_id if requests.request_id is not None else np.arange(len(requests)),
            "status": names[requests.status],
            "arrival_ns": requests.arrival_ns,
            "prompt_tokens": requests.prompt_tokens,
            "output_tokens": requests.output_tokens,
            "generated_tokens": requests.generated_tokens,
            "hit_tokens": requests.hit_tokens,
            "preemptions": requests.preemptions,
            "scheduled_ns": _where(requests.scheduled_ns, started),
            "first_token_ns": _where(requests.first_token_ns, started),
            "finish_ns": _where(requests.finish_ns, finished),
            **{part: _where(getattr(requests, part), finished) for part in WATERFALL},
            **{name: _where(numbers, numbers >= 0) for name, numbers in places.items()},
        }
    )


def _where(values: I64, known: NDArray[np.bool_]) -> "pd.Series[int]":
    """Integers with gaps; plain ones, which are written twice as fast, where there are none."""
    if known.all():
        return pd.Series(values)
    return pd.Series(values, dtype="Int64").where(pd.Series(known))
