"""The measuring loop on a device whose true times are known."""

from pathlib import Path

import pytest

from simkit.calibrate.measure import MOST_VISITS, Measurement, Progress, measure
from simkit.calibrate.measure_device import MeasuredDevice, known_name, open_device, source_hash
from simkit.calibrate.measure_profile import profile_of, timings_of
from simkit.calibrate.measure_run import measured_profile
from simkit.calibrate.measure_summary import table_summaries
from simkit.calibrate.operator_profile import (
    DeviceSeen,
    KernelSource,
    OperatorProfile,
    read_operator_profile,
    write_operator_profile,
)
from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.timing import Timing
from simkit.errors import InputError

from .fake_device import FakeClock, FakeDevice


def law(point: Point) -> float:
    return 5e3 + 7.0 * point.count("tokens")


def a_plan(count: int = 60) -> list[PlannedPoint]:
    return [
        PlannedPoint(Point("gemm", ("bf16", tokens, 64, 64)), min(tokens % 3, 1), held_out=tokens % 7 == 0)
        for tokens in range(1, count + 1)
    ]


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice(law, FakeClock())


def measured_device(fake: FakeDevice, name: str = "cpu") -> MeasuredDevice:
    return MeasuredDevice(
        name=name,
        bench=fake,
        seen=lambda: DeviceSeen(name="made up"),
        versions={"torch": "none"},
        kernels=KernelSource(name="a law"),
        host_copies=False,
        close=lambda: None,
    )


def test_every_point_is_timed_as_the_law_says(device: FakeDevice) -> None:
    found = measure(device, a_plan(), 60.0, clock=device.clock)
    assert found.complete
    assert not found.interrupted
    assert {point: timing.median_ns for point, timing in found.timings.items()} == {
        planned.point: pytest.approx(law(planned.point)) for planned in a_plan()
    }


def test_coarse_points_come_first_and_in_random_order(device: FakeDevice) -> None:
    measure(device, a_plan(), 60.0, clock=device.clock)
    sizes = [point.count("tokens") for point in device.visited]
    assert {size % 3 for size in sizes[:20]} == {0}
    assert sizes[:20] != sorted(sizes[:20])
    again = FakeDevice(law, FakeClock())
    measure(again, a_plan(), 60.0, seed=1, clock=again.clock)
    assert [point.count("tokens") for point in again.visited] != sizes


def test_the_budget_ends_the_measurement(device: FakeDevice) -> None:
    device.repeat_s = 0.05  # a visit is 0.25 s
    found = measure(device, a_plan(), 10.0, clock=device.clock)
    assert 0 < len(found.timings) < 60
    assert not found.complete
    assert 7.0 < device.clock.now_s < 10.5


def test_a_noisy_point_is_visited_again_and_others_are_not(device: FakeDevice) -> None:
    noisy = a_plan()[10].point
    device.noise[noisy] = 0.2
    measure(device, a_plan(), 600.0, clock=device.clock)
    visits = {point: device.visited.count(point) for point in set(device.visited)}
    assert visits.pop(noisy) == 1 + MOST_VISITS
    assert set(visits.values()) == {1}


def test_points_of_a_slow_spell_are_measured_again_in_a_good_one(device: FakeDevice) -> None:
    """A neighbour slows everything by 30 % for a while: the sentinel tells, and the result is as if it had not."""
    device.pace = lambda now_s: 1.3 if 1.0 < now_s < 2.0 else 1.0
    found = measure(device, a_plan(), 600.0, clock=device.clock)
    assert found.visited_again > 5
    worst = max(abs(timing.median_ns / law(point) - 1.0) for point, timing in found.timings.items())
    assert worst < 0.001


def test_a_device_that_stays_slower_is_told_as_drift(device: FakeDevice) -> None:
    device.pace = lambda now_s: 1.0 if now_s < 2.0 else 1.1
    found = measure(device, a_plan(), 600.0, clock=device.clock)
    notes = profile_of(found, a_plan(), **about()).header.notes
    assert any("drift +10.0%" in note for note in notes)


def test_ctrl_c_keeps_what_is_there(device: FakeDevice) -> None:
    def interrupt() -> None:
        if len(device.visited) == 20:
            raise KeyboardInterrupt

    device.on_repeat = interrupt
    found = measure(device, a_plan(), 60.0, clock=device.clock)
    assert found.interrupted
    assert len(found.timings) == 19
    profile = profile_of(found, a_plan(), **about())
    assert "partial: interrupted" in profile.header.notes


def test_a_device_that_is_lost_leaves_what_was_measured_to_who_keeps_it(device: FakeDevice) -> None:
    """After an illegal access the sentinel fails, too, and with it the measurement; 30 s have not gone by."""
    kept: list[int] = []

    def lost() -> None:
        if len(device.visited) == 20:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device.on_repeat = lost
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(
            device, a_plan(), 60.0, clock=device.clock, on_checkpoint=lambda so_far: kept.append(len(so_far.timings))
        )
    assert kept == [19]


def test_what_cannot_run_here_is_left_out_with_its_reason(device: FakeDevice) -> None:
    device.refused = {planned.point for planned in a_plan()[:3]}
    found = measure(device, a_plan(), 60.0, clock=device.clock)
    assert found.complete
    assert len(found.timings) == 57
    assert set(found.skipped.values()) == {"too large"}


def test_a_point_that_fails_when_it_is_visited_again_is_counted_once() -> None:
    """It has a time, another point has none, for the budget was over: the measurement is not complete."""
    first = a_plan()[0].point
    found = Measurement(timings={first: Timing(1.0, 1.0, 1.0, 5)}, skipped={first: "out of memory"}, planned=2)
    assert not found.complete


def test_progress_is_told(device: FakeDevice) -> None:
    seen: list[Progress] = []
    measure(device, a_plan(), 60.0, clock=device.clock, on_progress=seen.append)
    assert [now.done for now in seen] == list(range(60))
    assert {now.total for now in seen} == {60}


def test_a_profile_holds_the_points_with_their_use_and_reads_back(device: FakeDevice, tmp_path: Path) -> None:
    found = measure(device, a_plan(), 60.0, clock=device.clock)
    profile = profile_of(found, a_plan(), **about())
    write_operator_profile(profile, tmp_path / "p")
    again = read_operator_profile(tmp_path / "p")
    frame = again.tables["gemm"]
    assert (frame["tokens"][frame["use"] == "held_out"] % 7 == 0).all()
    assert (frame["use"] == "held_out").sum() == sum(planned.held_out for planned in a_plan())
    assert set(timings_of(again.tables)) == {planned.point for planned in a_plan()}
    (row,) = table_summaries(again)
    assert (row.table, row.points, row.held_out) == ("gemm", 60, 8)


def test_an_unfinished_profile_is_taken_up_again(device: FakeDevice, tmp_path: Path) -> None:
    device.repeat_s = 0.05
    first = measured_profile(measured_device(device), a_plan(), 10.0, tmp_path / "p", clock=device.clock)
    done = set(first.measurement.timings)
    assert any("partial" in note for note in first.profile.header.notes)
    again = FakeDevice(law, FakeClock())
    second = measured_profile(measured_device(again), a_plan(), 60.0, tmp_path / "p", resume=True)
    assert not done & set(again.visited)
    assert second.measurement.complete
    said = f"measured 60 of 60 planned points, {len(done)} of them earlier and the others in "
    assert second.profile.header.notes[0].startswith(said)
    assert len(read_operator_profile(tmp_path / "p").tables["gemm"]) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_process_killed_between_the_renames_loses_no_profile(
    device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.repeat_s = 0.05
    first = measured_profile(measured_device(device), a_plan(), 10.0, tmp_path / "p", clock=device.clock)
    real = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if target.name == "p":
            raise SystemExit("killed")
        return real(path, target)

    fake = FakeDevice(law, FakeClock())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(SystemExit):
            measured_profile(measured_device(fake), a_plan(), 60.0, tmp_path / "p", resume=True, clock=fake.clock)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.new", "p.old"]
    again = FakeDevice(law, FakeClock())
    second = measured_profile(measured_device(again), a_plan(), 60.0, tmp_path / "p", resume=True)
    assert not set(first.measurement.timings) & set(again.visited)
    assert second.measurement.complete
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_point_held_out_then_is_not_fitted_now(device: FakeDevice, tmp_path: Path) -> None:
    measured_profile(measured_device(device), a_plan(), 60.0, tmp_path / "p")
    other = [planned._replace(held_out=False) for planned in a_plan()]
    again = FakeDevice(law, FakeClock())
    measured_profile(measured_device(again), other, 60.0, tmp_path / "p", resume=True)
    assert {point.count("tokens") % 7 for point in again.visited} == {0}


def test_a_profile_of_another_device_is_not_taken_up(device: FakeDevice, tmp_path: Path) -> None:
    measured_profile(measured_device(device), a_plan(), 60.0, tmp_path / "p")
    with pytest.raises(InputError, match=r"--resume: .* has device=cpu, here it is h200; measure to a new --out"):
        measured_profile(measured_device(device, "h200"), a_plan(), 60.0, tmp_path / "p", resume=True)
    with pytest.raises(InputError, match="is not empty; name another directory, or --resume"):
        measured_profile(measured_device(device), a_plan(), 60.0, tmp_path / "p")


def test_names_of_drivers_are_those_of_devices() -> None:
    assert known_name("NVIDIA H200") == "h200"
    assert known_name("NVIDIA H100 PCIe") == "h100-pcie"
    assert known_name("NVIDIA H100 80GB HBM3") == "h100-sxm"
    with pytest.raises(InputError, match=r"--name: the device calls itself 'NVIDIA GeForce GTX 1080'"):
        known_name("NVIDIA GeForce GTX 1080")


def test_devices_that_are_not_here_are_one_clear_line() -> None:
    torch = pytest.importorskip("torch", reason="measuring needs torch; install the extra gpu, or its CPU build")
    with pytest.raises(InputError, match="--device tpu: is not known"):
        open_device("tpu", None, "bf16", 1, 1e6)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: torch finds no CUDA device"):
            open_device("cuda", None, "bf16", 1, 1e6)
    with pytest.raises(InputError, match="--dtype fp9"):
        open_device("cpu", None, "fp9", 1, 1e6)


def test_the_source_hash_follows_the_source() -> None:
    assert source_hash("kernels", "*.py") != source_hash("kernels", "paged_*.py")
    assert len(source_hash("kernels", "*.py")) == 64


def about() -> dict[str, object]:
    return {
        "device": "cpu",
        "seen": DeviceSeen(name="made up"),
        "versions": {"torch": "none"},
        "kernels": KernelSource(name="a law"),
    }


def test_nothing_measured_writes_nothing(tmp_path: Path) -> None:
    fake = FakeDevice(law, FakeClock())
    fake.refused = {planned.point for planned in a_plan()}
    outcome = measured_profile(measured_device(fake), a_plan(), 5.0, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    assert isinstance(outcome.profile, OperatorProfile)
    assert isinstance(outcome.measurement, Measurement)
    assert not any(isinstance(value, Timing) for value in outcome.measurement.timings.values())
