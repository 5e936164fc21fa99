"""Commit, graphs and memory that a run records."""

from unittest.mock import Mock

import pytest
import torch

from wnrepro.records import Benchmark, RunRecord
from wnrepro.runs import provenance


@pytest.mark.parametrize(
    ("given", "commit"),
    [
        *(("0123abc", "0123abc"), ("a" * 40, "a" * 40), ("", None), ("012abc", None)),
        *(("a" * 41, None), ("main-branch", None), ("0123abc\n", None), ("０123abcd", None)),
    ],
)
def test_commit_is_gits_or_the_environments(monkeypatch: pytest.MonkeyPatch, given: str, commit: str | None) -> None:
    inside = provenance.git_state()
    monkeypatch.setenv("WNREPRO_COMMIT", given)
    assert provenance.git_state() == inside
    monkeypatch.setattr(provenance.subprocess, "run", Mock(side_effect=FileNotFoundError("git")))
    assert provenance.git_state() == {"commit": commit, "dirty": None}


def test_graphs_and_reserved_memory_of_a_gpu_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "device_name", lambda _: "A GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2)
    monkeypatch.delenv("WNREPRO_GRAPHS", raising=False)
    gpu, cpu = torch.device("cuda:1"), torch.device("cpu")
    assert [provenance.provenance(device)["graphs"] for device in (gpu, cpu)] == [True, False]
    monkeypatch.setenv("WNREPRO_GRAPHS", "0")
    assert not provenance.provenance(gpu)["graphs"]
    assert provenance.peak_memory_bytes(gpu) == 3 < provenance.peak_memory_bytes(cpu)


def test_a_device_is_the_same_whichever_version_has_named_it() -> None:
    names = [provenance.device_name(torch.device("cpu"), threads) for threads in (1, 2, 11)]
    assert [name.rsplit(", ", 1)[1] for name in names] == ["1 thread", "2 threads", "11 threads"]
    for now in names:
        for then in (now, now.replace(" 1 thread", " 1 threads")):
            record = {"status": "done", "epoch": 1, "device_name": then}
            assert RunRecord.model_validate(record).device_name == now
            assert Benchmark.model_validate({"device_name": then, "cifar": {"ratios": {}}}).device_name == now
