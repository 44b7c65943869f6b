"""`simkit serve` as users run it: where it answers, how it ends, what it refuses."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason="serving needs the extra serve")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MODEL = ("--model", "llama-3.1-8b", "--device", "h100")
COMMAND = [sys.executable, "-c", "from simkit.cli.main import entry; entry()", "serve", *MODEL, "--port", "0"]


def test_ctrl_c_ends_it_and_what_is_under_way(started: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    server = started(COMMAND, cwd=tmp_path)
    assert server.stderr is not None
    first = server.stderr.readline()
    assert first.startswith("llama-3.1-8b on h100: http://127.0.0.1:")
    assert "step times: calibrated" in server.stderr.readline()
    address = first.split(": ", 1)[1].split("/v1")[0]
    # minutes of answer
    body = json.dumps({"prompt": "x", "max_tokens": 100_000, "stream": True}).encode()
    with urllib.request.urlopen(f"{address}/v1/completions", body, timeout=60) as answer:
        assert answer.readline().startswith(b"data: {")
        server.send_signal(signal.SIGINT)
        lines = [line for line in answer.read().split(b"\n") if line]
    assert lines[-1] == b"data: [DONE]"
    assert json.loads(lines[-2].removeprefix(b"data: "))["error"]["code"] == 500
    assert server.wait(timeout=20) == 0
    assert "Traceback" not in server.stderr.read()


def test_what_it_cannot_do_is_one_line_and_code_2(simkit: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, says in (
            (("--port", port), f"--host 127.0.0.1 --port {port}: address already in use; choose another"),
            (("--host", "nowhere.invalid"), "--host nowhere.invalid --port 8000: "),
            (("--time-scale", "0"), "serve: time_scale=0.0: input should be greater than 0"),
        ):
            done = simkit("serve", *MODEL, *arguments)
            assert done.returncode == 2, done.stderr
            assert says in done.stderr
            assert done.stderr.count("\n") == 1
