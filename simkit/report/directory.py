"""A result directory: everything a run showed, written whole or not at all, file by file."""

import gzip
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from simkit.errors import InputError
from simkit.metrics.result import WATERFALL, RequestColumns, Status
from simkit.report.chrome_trace import chrome_trace
from simkit.report.data import ReportData
from simkit.report.html import render_report

FILES = ("config.yaml", "summary.json", "requests.csv.gz", "report.html", "trace.json.gz")


def prepare(folder: Path) -> None:
    """Make the directory, or say why it cannot be written: before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: there is a file of that name; choose another --out") from None
    except OSError as error:
        reason = (error.strerror or "cannot be written").lower()
        raise InputError(f"{folder}: {reason}; choose an --out that can be written") from None


def write_result(folder: Path, data: ReportData, summary_json: str, config_yaml: str) -> list[Path]:
    """Write all files of a result; returns their paths. `folder` was prepared."""
    contents = {
        "config.yaml": config_yaml.encode(),
        "summary.json": (summary_json + "\n").encode(),
        "requests.csv.gz": requests_csv(data.result.requests),
        "report.html": render_report(data).encode(),
        "trace.json.gz": chrome_trace(data.result),
    }
    return [write_atomically(folder / name, content) for name, content in contents.items()]


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file so that nobody ever sees half of it; InputError if the place cannot be written."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or 'cannot be written').lower()}; choose another --out") from None
    return path


def requests_csv(requests: RequestColumns) -> bytes:
    """One line a request, gzip'd; times are whole ns from the workload's start, empty where they did not happen."""
    finished = requests.status == Status.FINISHED
    started = requests.generated_tokens > 0
    names = np.array([status.name.lower() for status in Status])
    table = pd.DataFrame(
        {
            "request_id": requests.request_id if requests.request_id is not None else np.arange(len(requests)),
            "status": names[requests.status],
            "arrival_ns": requests.arrival_ns,
            "prompt_tokens": requests.prompt_tokens,
            "output_tokens": requests.output_tokens,
            "generated_tokens": requests.generated_tokens,
            "hit_tokens": requests.hit_tokens,
            "preemptions": requests.preemptions,
            "scheduled_ns": _where(requests.scheduled_ns, finished | started),
            "first_token_ns": _where(requests.first_token_ns, finished | started),
            "finish_ns": _where(requests.finish_ns, finished),
            **{part: _where(getattr(requests, part), finished) for part in WATERFALL},
        }
    )
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=4) as file:
        table.to_csv(file, index=False)
    return packed.getvalue()


def _where(values: "np.ndarray[tuple[int], np.dtype[np.int64]]", known: object) -> "pd.Series[int]":
    """Integers with gaps."""
    return pd.Series(values, dtype="Int64").where(pd.Series(known))
