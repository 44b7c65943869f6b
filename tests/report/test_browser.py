"""The report in a real browser: headless Chromium, spoken to over its DevTools pipe."""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simkit.report.data import ReportData
from simkit.report.html import render_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0


class Browser:
    """One headless browser with one tab; every message it sends is kept in `seen`."""

    def __init__(self, binary: str, profile: Path) -> None:
        to_browser, self.writing = os.pipe()
        self.reading, from_browser = os.pipe()
        # Chromium reads commands on descriptor 3 and answers on 4
        given = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_browser, from_browser)]
        actions = [(os.POSIX_SPAWN_DUP2, given[0], 3), (os.POSIX_SPAWN_DUP2, given[1], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        command = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = os.posix_spawn(binary, command, dict(os.environ), file_actions=actions, setpgroup=0)
        for fd in (to_browser, from_browser, *given):
            os.close(fd)
        self.seen: list[dict] = []
        self.buffer = b""
        self.number = 0
        self.session: str | None = None

    def call(self, method: str, **parameters: object) -> dict:
        """The result of a DevTools command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        return self.wait(lambda answer: answer.get("id") == self.number)["result"]

    def wait(self, wanted: object) -> dict:
        """The first message from now on for which `wanted` is true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while b"\0" in self.buffer:
                raw, self.buffer = self.buffer.split(b"\0", 1)
                message = json.loads(raw)
                self.seen.append(message)
                if wanted(message):  # type: ignore[operator]
                    return message
            if not select.select([self.reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser did not answer")
            chunk = os.read(self.reading, 1 << 20)
            if not chunk:
                raise ConnectionError("the browser ended")
            self.buffer += chunk

    def open(self, url: str) -> None:
        """Opens `url` in a fresh tab and waits until it is loaded."""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.seen.clear()
        self.call("Page.navigate", url=url)
        if not any(message.get("method") == "Page.loadEventFired" for message in self.seen):
            self.wait(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> object:
        """What a JavaScript expression gives on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[dict]:
        """Everything a console would show."""
        methods = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [message for message in self.seen if message.get("method") in methods]

    def requests(self) -> list[str]:
        """The address of everything that was asked for."""
        asked = [m["params"] for m in self.seen if m.get("method") == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in asked]

    def close(self) -> None:
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.writing)
        os.close(self.reading)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(NAMES)})")
    started = Browser(binary, tmp_path_factory.mktemp("profile"))
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def url(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(data), encoding="utf-8")
    return path.as_uri()


def column(name: str) -> str:
    """JavaScript: the sort keys of a column of the slowest requests, top to bottom."""
    table = "document.querySelector('#slowest table')"
    index = f"[...{table}.tHead.rows[0].cells].findIndex(c => c.textContent === {name!r})"
    return f"[...{table}.tBodies[0].rows].map(r => Number(r.cells[{index}].dataset.sort))"


def click(name: str) -> str:
    return f"[...document.querySelectorAll('#slowest thead button')].find(b => b.textContent === {name!r}).click()"


def test_report_opens_without_errors_or_requests(browser: Browser, url: str) -> None:
    browser.open(url)
    headings = browser.value("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings[:3] == ["In numbers", "Latency", "Over time"]  # type: ignore[index]
    assert browser.value("document.querySelectorAll('svg').length") == 13
    # sizes of a figure as laid out, so that an SVG that did not parse is found
    assert browser.value("Math.min(...[...document.querySelectorAll('svg')].map(s => s.getBBox().height))") > 50  # type: ignore[operator]
    assert browser.complaints() == []
    assert [asked for asked in browser.requests() if asked != url and not asked.startswith("data:")] == []


def test_clicking_a_heading_sorts(browser: Browser, url: str) -> None:
    browser.open(url)
    before = browser.value(column("prompt"))
    assert isinstance(before, list)
    assert before != sorted(before)
    browser.value(click("prompt"))
    assert browser.value(column("prompt")) == sorted(before, reverse=True)
    browser.value(click("prompt"))
    assert browser.value(column("prompt")) == sorted(before)
    assert browser.value("document.querySelector('#slowest [aria-sort=ascending]').textContent") == "prompt"
    assert browser.complaints() == []


def test_a_part_of_the_bars_can_be_hidden(browser: Browser, url: str) -> None:
    browser.open(url)
    shown = "[...document.querySelectorAll('.bar .decode')].filter(s => s.offsetWidth > 0).length"
    assert browser.value(shown) > 0  # type: ignore[operator]
    browser.value("document.querySelector('[data-part=decode] input').click()")
    assert browser.value(shown) == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_the_screen(browser: Browser, url: str, width: int) -> None:
    browser.open(url)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    assert browser.value("document.documentElement.scrollWidth") <= width  # type: ignore[operator]


def test_page_reads_without_scripts(browser: Browser, url: str) -> None:
    browser.open("about:blank")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.call("Page.navigate", url=url)
    browser.wait(lambda message: message.get("method") == "Page.loadEventFired")
    document = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
    found = browser.call("DOM.querySelectorAll", nodeId=document, selector="#slowest tbody tr")["nodeIds"]
    buttons = browser.call("DOM.querySelectorAll", nodeId=document, selector="button")["nodeIds"]
    assert len(found) >= 12
    assert buttons == []
    assert browser.complaints() == []
