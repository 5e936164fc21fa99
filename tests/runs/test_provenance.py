"""Commit, versions, graphs and memory that a run records."""

import pytest
import torch

from wnrepro.runs import provenance


def test_commit_is_gits(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = provenance.git_state()
    monkeypatch.setenv("WNREPRO_COMMIT", "0123abc")
    assert provenance.git_state() == inside


@pytest.mark.parametrize(
    ("given", "commit"),
    [
        *(("0123abc", "0123abc"), ("a" * 40, "a" * 40), ("", None), ("012abc", None)),
        *(("a" * 41, None), ("main-branch", None), ("0123abc\n", None), ("０123abcd", None)),
    ],
)
def test_commit_without_git_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, given: str, commit: str | None
) -> None:
    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", no_git)
    monkeypatch.setenv("WNREPRO_COMMIT", given)
    assert provenance.git_state() == {"commit": commit, "dirty": None}


@pytest.mark.parametrize(("device", "given", "graphs"), [("cuda", "", True), ("cuda", "0", False), ("cpu", "", False)])
def test_graphs_are_recorded(monkeypatch: pytest.MonkeyPatch, device: str, given: str, graphs: bool) -> None:
    monkeypatch.setattr(provenance, "device_name", lambda _: "A GPU")
    monkeypatch.setenv("WNREPRO_GRAPHS", given)
    if not given:
        monkeypatch.delenv("WNREPRO_GRAPHS")
    assert provenance.provenance(torch.device(device))["graphs"] is graphs


def test_memory_of_a_gpu_is_what_the_allocator_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2)
    cuda, cpu = (provenance.peak_memory_bytes(torch.device(name)) for name in ("cuda:1", "cpu"))
    assert cuda == 3 < cpu
