"""The data folder: checksums, what an incomplete one is told, downloads by stand-ins for the servers."""

import errno
import gzip
import hashlib
import io
import os
import re
import socket
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from factories import small_data
from filelock import FileLock
from torchvision.datasets import CIFAR10, MNIST

from wnrepro.data import files, images
from wnrepro.errors import DiskError, UserError

SETS = ("cifar10", "mnist", "binarized_mnist")


class Answer(io.BytesIO):
    """A server's answer."""

    url = None

    @property
    def length(self) -> int:
        return len(self.getvalue())


Served = dict[str, bytes | Exception]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Small data sets in place of the official servers' files, by name; an exception is raised."""
    served: Served = {}

    def urlopen(request: urllib.request.Request) -> Answer:
        assert socket.getdefaulttimeout() == files.TIMEOUT_SECONDS
        missing = urllib.error.HTTPError(request.full_url, 404, "Not Found", Message(), None)
        content = served.get(request.full_url.split("/")[-1], missing)
        if isinstance(content, Exception):
            raise content
        return Answer(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    pack(served, monkeypatch, tar_gz(small_data(monkeypatch, "cifar10")))
    packed = {f"{Path(k).name}.gz": gzip.compress(file) for k, file in small_data(monkeypatch, "mnist").items()}
    monkeypatch.setattr(MNIST, "resources", [(name, hashlib.md5(file).hexdigest()) for name, file in packed.items()])
    served |= packed | {Path(k).name: file for k, file in small_data(monkeypatch, "binarized_mnist").items()}
    return served


def pack(served: Served, monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    """Serve this archive as CIFAR-10's, with its checksum."""
    served[CIFAR10.filename] = archive
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())


def tar_gz(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """An archive; of links, the contents are the targets."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, content.decode(), len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def states(root: Path, dataset: str) -> set[str]:
    return {file.state for file in files.status(root) if file.dataset == dataset}


@pytest.mark.parametrize("dataset", SETS)
def test_fetch_downloads_what_is_missing_or_corrupt(
    served: Served, tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / list(files.DATASETS[dataset])[-1]
    for damage in (lambda: None, path.unlink, lambda: path.write_bytes(b"?")):
        damage()
        assert states(tmp_path / "new", dataset) != {"present"}
        files.fetch([dataset], tmp_path / "new")
        assert states(tmp_path / "new", dataset) == {"present"}
    served.clear()
    files.fetch([dataset], tmp_path / "new")  # downloads nothing
    assert capsys.readouterr().err == "", "progress is for terminals"


def fetch_fails(root: Path, dataset: str, error: type[UserError] = UserError) -> str:
    with pytest.raises(error) as caught:
        files.fetch([dataset], root)
    return str(caught.value)


FAULTS: dict[str, Callable[[bytes], bytes | Exception]] = {
    "cut": lambda content: content[:-5],
    "wrong checksum": lambda content: content + b"?",
    "refused": lambda _: urllib.error.URLError(ConnectionRefusedError("refused")),
    "silent": lambda _: TimeoutError("timed out"),
    "unreachable": lambda _: OSError(errno.EHOSTUNREACH, "No route to host"),
}


@pytest.mark.parametrize("fault", [*FAULTS, "not found"])
@pytest.mark.parametrize("dataset", SETS)
def test_failed_download_names_files_folder_and_checksums(
    served: Served, tmp_path: Path, dataset: str, fault: str
) -> None:
    answers = {name: FAULTS[fault](content) for name, content in served.items()} if fault in FAULTS else {}
    served.clear()
    served.update(answers)
    message = fetch_fails(tmp_path, dataset)
    assert str(tmp_path) in message
    for path, checksum in files.DATASETS[dataset].items():
        assert re.search(rf"{re.escape(path)} +(missing|corrupt) +{checksum.replace(':', ' ')}", message)
    assert "present" not in states(tmp_path, dataset) and socket.getdefaulttimeout() is None


def test_one_failed_set_does_not_keep_the_others_from_download(served: Served, tmp_path: Path) -> None:
    del served[CIFAR10.filename]
    with pytest.raises(UserError, match="cifar10"):
        files.fetch(SETS, tmp_path)
    assert states(tmp_path, "mnist") == states(tmp_path, "binarized_mnist") == {"present"}


def test_files_of_old_versions_of_torchvision_are_neither_read_nor_in_the_way(served: Served, tmp_path: Path) -> None:
    for name in ("training.pt", "test.pt"):
        path = tmp_path / "MNIST/processed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"damaged")
    files.fetch(["mnist"], tmp_path)
    assert states(tmp_path, "mnist") == {"present"}


def test_unknown_set_other_fetch_and_folder_that_is_a_file_are_refused(tmp_path: Path) -> None:
    assert "svhn" in fetch_fails(tmp_path, "svhn")
    with FileLock(tmp_path / ".fetch.lock"):
        assert str(tmp_path) in fetch_fails(tmp_path, "mnist")
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in fetch_fails(tmp_path / "file", "mnist", DiskError)


LINKS = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}
HOSTILE = LINKS | {"device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}


@pytest.mark.parametrize("kind", [*HOSTILE, "outside", "lacking", "no archive", "cut archive"])
def test_hostile_archive_writes_nothing_outside_the_data_folder(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also with the expected checksum."""
    (tmp_path / "outside").write_bytes(b"untouched")
    names = [next(iter(files.DATASETS["cifar10"])), "../beside", str(tmp_path / "absolute")]
    members = dict.fromkeys(names[:1] if kind == "lacking" else names, b"../../outside")
    archive = tar_gz(members, HOSTILE.get(kind, tarfile.REGTYPE))
    pack(served, monkeypatch, {"no archive": b"?", "cut archive": archive[:-20]}.get(kind, archive))
    fetch_fails(tmp_path / "root", "cifar10")
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "root"}
    assert (tmp_path / "outside").read_bytes() == b"untouched"


def test_checksums_equal_torchvisions() -> None:
    official = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    assert files.DATASETS["cifar10"] == {f"{CIFAR10.base_folder}/{name}": f"md5:{md5}" for name, md5 in official}
    assert [f"{Path(path).name}.gz" for path in files.DATASETS["mnist"]] == [name for name, _ in MNIST.resources]


def test_data_root_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("WNREPRO_DATA", raising=False)
    assert files.data_root(None) == tmp_path / ".cache/wnrepro"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.data_root(None) == tmp_path / "cache/wnrepro"
    monkeypatch.setenv("WNREPRO_DATA", "~/data")
    assert files.data_root(None) == tmp_path / "data"
    assert files.data_root(tmp_path / "given") == tmp_path / "given"
    assert files.free_bytes(tmp_path / "not/made/yet") > 0


@pytest.mark.parametrize("dataset", SETS)
def test_missing_files_are_named_with_folder_checksums_and_remedies(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(files.MissingDataError) as caught:
        files.require(dataset, tmp_path)
    said, plain = str(caught.value), caught.value.plain
    for path, checksum in files.DATASETS[dataset].items():
        assert f"{path}  missing  {checksum.replace(':', ' ')}" in said
    for one in (said, plain):
        assert all(part in one for part in (str(tmp_path), f"data fetch {dataset}", "--data-dir", "WNREPRO_DATA"))
    assert ("data fetch mnist`" in said.replace(f"data fetch {dataset}`", "")) == (dataset == "binarized_mnist")
    assert "--scale" in said and "--scale" not in plain


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-1],
    "emptied": lambda _: b"",
    "one bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "foreign": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("dataset", SETS)
def test_damaged_file_is_named_before_anything_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, damage: str
) -> None:
    contents = small_data(monkeypatch, dataset, tmp_path)
    files.require(dataset, tmp_path)
    parsed: list[Any] = []
    for name in ("datasets.CIFAR10", "datasets.mnist.read_image_file"):
        monkeypatch.setattr(f"torchvision.{name}", lambda *words, **more: parsed.append(words))
    monkeypatch.setattr("numpy.fromfile", lambda *words: parsed.append(words))
    path, content = list(contents.items())[-1]
    (tmp_path / path).write_bytes(DAMAGE[damage](content))
    read = {"cifar10": images.cifar10, "mnist": images.seeded_mnist, "binarized_mnist": images.binarized_mnist}
    with pytest.raises(UserError, match=f"{Path(path).name} +corrupt"):
        read[dataset](tmp_path)
    assert parsed == []


def test_summary_says_which_sets_are_complete_and_completes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder"
    for name in files.DATASETS:
        small_data(monkeypatch, name, folder)
    assert files.summary(files.status(folder), folder) == "all 3 data sets are complete"
    (folder / "MNIST/raw/train-labels-idx1-ubyte").unlink()
    (folder / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"?")
    said = files.summary(files.status(folder), folder)
    assert said.startswith("2 of 3 data sets are complete; incomplete: mnist (1 missing, 1 corrupt)")
    assert f"`wnrepro data fetch mnist --data-dir '{folder}'`" in said


def test_file_is_hashed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = small_data(monkeypatch, "binarized_mnist", tmp_path)
    hashed, digest = list[str](), hashlib.file_digest

    def counted(file: Any, kind: Any) -> Any:
        hashed.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", counted)
    for _ in range(3):
        files.require("binarized_mnist", tmp_path)
    assert len(hashed) == len(set(hashed)) == 3
    path = tmp_path / "binarized_mnist/binarized_mnist_valid.amat"
    content, modified = contents["binarized_mnist/binarized_mnist_valid.amat"], path.stat().st_mtime_ns
    time.sleep(0.02)  # the clock of a file system is a coarse one
    path.write_bytes(DAMAGE["one bit flipped"](content))
    os.utime(path, ns=(modified, modified))  # as a copy that keeps the time has it
    for _ in range(2):
        with pytest.raises(UserError, match=r"binarized_mnist_valid\.amat +corrupt"):
            files.require("binarized_mnist", tmp_path)
    time.sleep(0.02)
    path.write_bytes(content)
    files.require("binarized_mnist", tmp_path)
    assert hashed[3:] == [str(path)] * 2


def test_present_binarization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.present_binarization(tmp_path) == "larochelle", "nothing is there"
    small_data(monkeypatch, "mnist", tmp_path)
    assert files.present_binarization(tmp_path) == "seeded"
    path, *_ = small_data(monkeypatch, "binarized_mnist", tmp_path)
    assert files.present_binarization(tmp_path) == "larochelle"
    (tmp_path / path).write_bytes(b"?")
    assert files.present_binarization(tmp_path) == "larochelle", "a corrupt file is not passed over in silence"
    (tmp_path / path).unlink()
    assert files.present_binarization(tmp_path) == "seeded", "one of the three is missing"
