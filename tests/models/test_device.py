"""Devices against their datasheets, and users' own devices."""

from pathlib import Path

import pytest
import yaml

from simkit.errors import InputError
from simkit.models.catalog import DEVICES_FILE
from simkit.models.device import known_devices, load_device

# memory on the box in GB, bandwidth GB/s, dense bf16 TFLOP/s: vendors' product pages
DATASHEET = {
    "a100-40gb": (40, 1555, 312),
    "a100-80gb": (80, 2039, 312),
    "h100-sxm": (80, 3350, 989),
    "h100-pcie": (80, 2039, 756),
    "h200": (141, 4800, 989),
    "b200": (180, 8000, 2250),
    "l40s": (48, 864, 362),
    "l4": (24, 300, 121),
    "a10g": (24, 600, 70),
    "rtx-4090": (24, 1008, 165),
    "rtx-5090": (32, 1792, 209.5),
    "rtx-pro-6000": (96, 1792, 503.8),
    "mi300x": (192, 5300, 1307),
}


@pytest.mark.parametrize(("name", "figures"), DATASHEET.items())
def test_figures_match_the_datasheet(name: str, figures: tuple[float, float, float]) -> None:
    device = load_device(name)
    memory, bandwidth, bf16 = figures
    assert 0.9 * memory * 1e9 < device.memory_bytes <= memory * 2**30
    assert device.bandwidth_gb_per_s.value == pytest.approx(bandwidth, rel=0.01)
    assert device.tflops.bf16 == pytest.approx(bf16, rel=0.01)


@pytest.mark.parametrize("name", known_devices())
def test_every_device_is_complete_and_plausible(name: str) -> None:
    device = load_device(name)
    for figure in (device.memory_gib, device.bandwidth_gb_per_s, device.multiprocessors, device.l2_mib, device.power_w):
        assert len(figure.source) > 10
    assert "assumed" in device.usd_per_hour.source
    for narrow in (device.tflops.fp8, device.tflops.int8):
        assert (
            narrow is None
            or narrow / device.tflops.bf16 == pytest.approx(2, rel=0.02)
            or narrow / device.tflops.bf16 == pytest.approx(4, rel=0.02)
        )
    assert load_device(name.upper()) is device


# as torch.cuda.get_device_name and rocm-smi give them, and as tables and people spell them
@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L4", "l4"),
        ("h200_sxm", "h200"),
    ],
)
def test_a_device_is_known_as_its_driver_calls_it(spelt: str, name: str) -> None:
    assert load_device(spelt).name == name


def test_at_least_fourteen_devices() -> None:
    assert len(known_devices()) >= 14


def test_precision_without_units_falls_back_to_16_bits() -> None:
    assert load_device("a100").flops_per_s("fp8") == 312e12
    assert load_device("h100").flops_per_s("fp8") == 1978.9e12
    assert load_device("h100").flops_per_s("int4") == 989.4e12


def test_own_device_file_is_accepted_and_checked(tmp_path: Path) -> None:
    figures = yaml.safe_load(DEVICES_FILE.read_text())["l4"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"mine": figures}))
    assert load_device(str(path)).power_w.value == 72
    for change, words in [
        ({"memory_gib": {"value": -1, "source": "x"}}, "memory_gib.value"),
        ({"memory_gib": {"value": float("nan"), "source": "x"}}, "memory_gib.value"),
        ({"tdp": 3}, "tdp: unknown key"),
        ({"link": {"kind": "wifi", "gb_per_s": 1, "source": "x"}}, "link.kind"),
    ]:
        path.write_text(yaml.safe_dump({"mine": {**figures, **change}}))
        with pytest.raises(InputError, match=words) as caught:
            load_device(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "bad.yaml:1: is not YAML"),
        ("- 1", "mapping"),
        ("a: 1\nb: 2", "2 devices"),
        ("a: 1", "mapping"),
        ("a: &x 1\nb: *x", "alias"),
    ],
)
def test_bad_device_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        load_device(str(path))


def test_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'h100'"):
        load_device("h10")
