"""Each finding where all is well, and where it is not, by way of real files and real package metadata."""

import os
import shutil
import stat
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from wnrepro import data, doctor


def fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    """Makes an installed package `toypackage` that has these requirements."""
    info = folder / "toypackage-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: toypackage", "Version: 1.0"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requirements), ""]))
    monkeypatch.syspath_prepend(str(folder))


def test_diagnose_looks_at_everything_and_says_how_to_mend_what_is_amiss(tmp_path: Path) -> None:
    findings = doctor.diagnose(tmp_path / "data", tmp_path / "results")
    names = [finding.name for finding in findings]
    for name in ("python", "torch", "gpu", "cpu", "memory", "results", "data folder", *data.DATASETS, "roms"):
        assert names.count(name) == 1, name
    for finding in findings:
        assert finding.state in ("ok", "note", "problem")
        assert bool(finding.costs and finding.mend) == (finding.state != "ok"), finding
        assert finding.detail
    assert not list(tmp_path.iterdir()), "it only looks"


def test_requirements_that_are_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("numpy>=1", "numpy>=999", "no-such-package>=2", "no-such-extra; extra == 'more'")
    fake_package(tmp_path, monkeypatch, *wanted)
    numpy, missing = doctor.unmet("toypackage")
    assert numpy.startswith("numpy>=999 (") and missing == "no-such-package>=2 (not installed)"


def test_packages_that_are_amiss_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "unmet", lambda package: iter(["torch>=999 (2.11)"]))
    assert [f.state for f in doctor.packages()] == ["problem", "problem"]
    assert "--upgrade 'torch>=999'" in doctor.packages()[1].mend


def test_torch_build() -> None:
    import torch

    found = doctor.torch_build()
    assert found.state == "ok" and torch.__version__ in found.detail


def test_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.torch_build().state == "problem"


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("usable", [True, False])
def test_a_gpu_with_and_without_a_torch_that_can_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771 MiB, 580.65.06'")
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    found = doctor.gpu()
    assert found.state == ("ok" if usable else "problem")
    assert "NVIDIA H200, 143771 MiB, driver 580.65.06" in found.detail


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'No devices were found'; exit 6")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.gpu().state == "note"


@pytest.mark.parametrize(("flags", "state"), [("sse avx2 avx512f amx_bf16", "ok"), ("sse avx2", "note")])
def test_cpu_with_and_without_bf16(tmp_path: Path, flags: str, state: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\n")
    found = doctor.cpu(cpuinfo)
    assert found.state == state and "Some CPU" in found.detail and "avx2" in found.detail


def test_cpu_of_a_system_without_cpuinfo(tmp_path: Path) -> None:
    found = doctor.cpu(tmp_path / "none")
    assert found.state == "ok" and "not known" in found.detail


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 500_000}.__getitem__)
    assert (doctor.memory().state, doctor.memory().detail) == ("problem", "2.0 GB")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4_000_000}.__getitem__)
    assert (doctor.memory().state, doctor.memory().detail) == ("ok", "16.4 GB")


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 10**6))
    assert doctor.disk("results", tmp_path / "results").state == "problem"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 10**12))
    assert doctor.disk("results", tmp_path / "results").state == "ok"


def test_a_results_folder_under_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor.disk("results", tmp_path / "file")
    assert found.state == "problem" and "cannot be written" in found.detail


def test_a_folder_that_the_system_refuses_to_look_at_is_a_problem(tmp_path: Path) -> None:
    found = doctor.disk("results", tmp_path / (300 * "a"))
    assert found.state == "problem" and found.detail.endswith("a: File name too long") and found.mend


def test_data_that_cannot_be_looked_at_are_a_problem(tmp_path: Path) -> None:
    (found,) = doctor.data_sets(tmp_path / (300 * "a"))
    assert found.state == "problem" and "File name too long" in found.detail and "--data-dir" in found.mend


def test_data_sets(tmp_path: Path) -> None:
    corrupt = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    corrupt.parent.mkdir(parents=True)
    corrupt.write_bytes(b"?")
    cifar10, mnist, binarized = doctor.data_sets(tmp_path)
    assert cifar10.state == "note" and "data_batch_1 missing" in cifar10.detail
    assert mnist.state == "problem" and "t10k-labels-idx1-ubyte corrupt" in mnist.detail
    assert "wnrepro data fetch mnist" in mnist.mend and "cvae --binarization seeded" in mnist.costs
    assert binarized.state == "note" and "cvae --binarization larochelle" in binarized.costs


def test_roms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.roms().state == "ok"
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    assert doctor.roms().state == "problem"
    assert capsys.readouterr().out == ""
