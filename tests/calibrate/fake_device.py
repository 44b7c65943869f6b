"""A device whose times are a formula and whose clock is a number, to measure the measuring with."""

from collections.abc import Callable

from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.points import Point
from simkit.calibrate.timing import Repeat

Law = Callable[[Point], float]


class FakeClock:
    """Seconds, moved by whoever spends them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeTimer:
    """Takes what the law says, times the device's pace of the moment."""

    kernel = ""

    def __init__(self, device: "FakeDevice", ns: float, noise: float = 0.0) -> None:
        self.device, self.ns, self.noise = device, ns, noise
        self.turn = 0

    def repeat(self) -> Repeat:
        self.turn += 1
        wave = (-1.0) ** self.turn * self.noise
        ns = self.ns * self.device.pace(self.device.clock.now_s) * (1.0 + wave)
        self.device.clock.now_s += self.device.repeat_s
        self.device.on_repeat()
        return Repeat(ns)


class FakeDevice:
    """Times points by a law; `pace(t)` says how much longer everything takes at time t."""

    pace_limit = 1.02

    def __init__(self, law: Law, clock: FakeClock, pace: Callable[[float], float] = lambda _: 1.0) -> None:
        self.law, self.clock, self.pace = law, clock, pace
        self.repeat_s = 0.001
        self.noise: dict[Point, float] = {}
        self.visited: list[Point] = []
        self.refused: set[Point] = set()
        self.on_repeat: Callable[[], None] = lambda: None

    def timer(self, point: Point) -> FakeTimer:
        if point in self.refused:
            raise UnmeasurableError("too large")
        self.visited.append(point)
        return FakeTimer(self, self.law(point), self.noise.get(point, 0.0))

    def sentinel(self) -> FakeTimer:
        return FakeTimer(self, 1e6)
