"""Fixtures of all tests."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material beside the checkout: real traces, recordings and measurements."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder with real traces and recordings is not beside this checkout")
    return folder


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command that can be interrupted, whether these tests can be or not; it does not outlive the test."""
    running: list[subprocess.Popen[str]] = []

    def start(command: list[object], **named: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell's background jobs ignore interrupts, and so do their children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **named,  # type: ignore[call-overload]
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()
