"""The energy counters of made-up processors and of a made-up GPU."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from wnrepro.bench import energy
from wnrepro.bench.energy import find_meter, rapl

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


def zone(folder: Path, entry: str, name: str, microjoules: int, largest: int = 999_999) -> Path:
    at = folder / entry
    at.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", largest)):
        (at / file).write_text(f"{content}\n")
    return at / "energy_uj"


def test_all_packages_count_once_and_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 100, largest=2**40)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "dram", 0),  # a part of the first
        zone(tmp_path, "intel-rapl:2", "psys", 0),  # the whole machine
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),  # the first again
    ]
    (tmp_path / "intel-rapl").mkdir()
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter = find_meter(CPU)
    before = meter.read()
    assert meter.joules_since(before) == 0
    first.write_text("500\n")  # by 1500, over the end
    second.write_text("2000100\n")
    for other in others:
        other.write_text("7777\n")
    assert meter.joules_since(before) == pytest.approx(2.0015) and not meter.missing


@pytest.mark.parametrize("fault", ["nothing", "no package", "no energy", "not a number"])
def test_processor_without_a_readable_counter_says_why(tmp_path: Path, fault: str) -> None:
    if fault != "nothing":
        file = zone(tmp_path, "intel-rapl:0", "psys" if fault == "no package" else "package-0", 1)
        if fault == "no energy":
            file.unlink()
        if fault == "not a number":
            file.write_text("")
    meter = rapl(tmp_path)
    assert meter.missing and meter.read() == [] and meter.joules_since([]) == 0


def test_counter_for_root_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = zone(tmp_path, "intel-rapl:0", "package-0", 1), Path.read_text

    def refuse(path: Path, *arguments: str) -> str:
        if path == file:  # root may read it whatever its mode
            raise PermissionError(13, os.strerror(13), str(path))
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = rapl(tmp_path)
    assert str(file) in meter.missing and not meter.counters


class NVMLError(Exception):
    pass


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """NVML of a GPU that has used 5 J and uses 2 J more between two readings."""
    module, state = ModuleType("pynvml"), [5000]

    def total(handle: str) -> int:
        assert handle == "handle of GPU-1234"
        state[0] += 2000
        return state[0]

    parts = {"NVMLError": NVMLError, "nvmlInit": lambda: None, "nvmlDeviceGetTotalEnergyConsumption": total}
    module.__dict__.update(parts, nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}")
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    return module


def test_gpu_counts_its_millijoules(pynvml: ModuleType) -> None:
    meter = find_meter(GPU)
    assert meter.joules_since(meter.read()) == pytest.approx(2.0) and not meter.missing


def test_gpu_without_a_counter_says_why(pynvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: str) -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unsupported)
    assert "Not Supported" in find_meter(GPU).missing
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in find_meter(GPU).missing
    assert find_meter(torch.device("mps")).missing
