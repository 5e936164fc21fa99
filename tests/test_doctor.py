"""Each finding where all is well, and where it is not, by real files and real package metadata."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from wnrepro import doctor
from wnrepro.data.files import DATASETS


def test_diagnose_covers_everything_and_says_how_to_mend_it(tmp_path: Path) -> None:
    findings = doctor.diagnose(tmp_path / "data", tmp_path / "results")
    names = [finding.name for finding in findings]
    for name in ("python", "torch", "gpu", "cpu", "memory", "results", "data folder", *DATASETS, "roms"):
        assert names.count(name) == 1, name
    for finding in findings:
        assert finding.state in ("ok", "note", "problem")
        assert bool(finding.costs and finding.mend) == (finding.state != "ok"), finding
        assert finding.detail
    assert torch.__version__ in next(finding.detail for finding in findings if finding.name == "torch")
    assert not list(tmp_path.iterdir()), "it writes nothing"


def test_unmet_requirements_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "toypackage-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: toypackage", "Version: 1.0"]
    for requirement in ("numpy>=1", "numpy>=999", "no-such-package>=2", "no-such-extra; extra == 'more'"):
        lines.append(f"Requires-Dist: {requirement}")
    (info / "METADATA").write_text("\n".join([*lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    (numpy, _), missing = doctor.unmet("toypackage")
    assert numpy == "numpy>=999" and missing == ("no-such-package>=2", "not installed")
    found = doctor.packages("toypackage")
    assert found.state == "problem" and "'numpy>=999' 'no-such-package>=2'" in found.mend
    assert doctor.packages("no-such-package").state == "problem"


def test_torch_that_does_not_load_is_a_problem_and_exit_code_1(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda *_: [doctor.Finding("gpu", "note", "none", "time", "buy one")])
    code, printed, error = run("doctor")
    assert (code, error, printed.splitlines()[-1]) == (0, "", "1 note: gpu")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "diagnose", lambda *_: [doctor.torch_build()])
    code, printed, error = run("doctor")
    assert (code, error, printed.splitlines()[-1]) == (1, "", "1 problem: torch")


def test_summary_counts_and_names_what_is_wrong() -> None:
    states = {"python": "ok", "torch": "problem", "gpu": "note", "roms": "problem"}
    findings = [doctor.Finding(name, state, "") for name, state in states.items()]
    assert doctor.summary(findings) == "2 problems: torch, roms; 1 note: gpu"
    assert doctor.summary(findings[:1]) == "no problem in 1 check"


@pytest.mark.parametrize(
    ("script", "usable", "state"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 580.65.06'", True, "ok"),
        ("echo 'NVIDIA H200, 143771 MiB, 580.65.06'", False, "problem"),
        ("echo 'No devices were found'; exit 6", False, "note"),
    ],
)
def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, usable: bool, state: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    found = doctor.gpu()
    assert found.state == state
    assert ("NVIDIA H200, 143771 MiB, driver 580.65.06" in found.detail) == (state != "note")


@pytest.mark.parametrize(
    ("flags", "state"), [("sse avx2 amx_bf16", "ok"), ("sse avx2", "note"), ("", "ok"), (None, "ok")]
)
def test_cpu_with_and_without_bf16(tmp_path: Path, flags: str | None, state: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:  # a system without this file
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\n")
    found = doctor.cpu(cpuinfo)
    assert found.state == state
    assert flags is None or ("Some CPU" in found.detail and ("avx2" in found.detail) == ("avx2" in flags))


@pytest.mark.parametrize(("pages", "state", "detail"), [(500_000, "problem", "2.0 GB"), (4_000_000, "ok", "16.4 GB")])
def test_memory(monkeypatch: pytest.MonkeyPatch, pages: int, state: str, detail: str) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.__getitem__)
    assert (doctor.memory().state, doctor.memory().detail) == (state, detail)


@pytest.mark.parametrize(
    ("name", "free", "state"),
    [("new", 10**12, "ok"), ("new", 10**6, "problem"), ("file", 10**12, "problem"), (300 * "a", 10**12, "problem")],
)
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, free: int, state: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=free))
    found = doctor.disk("results", tmp_path / name)
    assert found.state == state and name in found.detail and bool(found.mend) == (state == "problem")


def test_data_sets(tmp_path: Path) -> None:
    corrupt = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    corrupt.parent.mkdir(parents=True)
    corrupt.write_bytes(b"?")
    cifar10, mnist, binarized = doctor.data_sets(tmp_path)
    assert cifar10.state == binarized.state == "note" and "data_batch_1 missing" in cifar10.detail
    assert mnist.state == "problem" and "t10k-labels-idx1-ubyte corrupt" in mnist.detail
    assert "wnrepro data fetch mnist" in mnist.mend and "--binarization seeded" in mnist.costs
    (unreadable,) = doctor.data_sets(tmp_path / (300 * "a"))
    assert unreadable.state == "problem" and "--data-dir" in unreadable.mend


def test_roms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.roms().state == "ok"
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    assert doctor.roms().state == "problem"
    assert capsys.readouterr().out == ""
