"""Checksums, downloads from a real local server, binarizations, the bundled sets' split, ZCA against its definition."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wnrepro import data
from wnrepro.data import DATASETS, Download, File, Zca
from wnrepro.errors import UserError

REAL = os.environ.get("WNREPRO_DATA", "")


def needs(name: str, file: str) -> pytest.MarkDecorator:
    missing = not REAL or not (Path(REAL) / file).is_file()
    return pytest.mark.skipif(missing, reason=f"the real {name} is not under WNREPRO_DATA")


needs_cifar10 = needs("CIFAR-10", "cifar-10-batches-py/data_batch_1")
needs_mnist = needs("MNIST", "MNIST/raw/train-images-idx3-ubyte")
needs_binarized_mnist = needs("binarized MNIST", "binarized_mnist/binarized_mnist_train.amat")


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


# ---------------------------------------------------------------------------------- a local server


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; cuts the next answers after `cuts` bytes; `ranges` says whether it can resume."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.ranges = files, list[int](), True
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path[1:], wanted))
        content = self.server.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start : start + cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CONTENT = bytes(range(256)) * 4000  # several read blocks


def one_file(*urls: str, content: bytes = CONTENT) -> dict[str, list[Download]]:
    return {"toy": [Download(File("toy/file.bin", md5(content)), urls)]}


def fetch(datasets: dict[str, list[Download]], root: Path) -> list[tuple[str, int, int | None]]:
    seen: list[tuple[str, int, int | None]] = []
    data.fetch(datasets, root, lambda *step: seen.append(step), datasets)
    return seen


def files_under(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} - {".fetch.lock"}


# ---------------------------------------------------------------------------------- downloads


def test_fetch_downloads_verifies_and_reports_progress(server: Server, tmp_path: Path) -> None:
    server.files["a"] = CONTENT
    toy = one_file(server.url("a"))
    steps = fetch(toy, tmp_path / "new")
    assert (tmp_path / "new/toy/file.bin").read_bytes() == CONTENT
    assert files_under(tmp_path / "new") == {"toy/file.bin"}
    assert steps[0] == ("toy/file.bin", 0, len(CONTENT)) and steps[-1][1] == len(CONTENT)
    assert [f.state for f in data.status(tmp_path / "new", toy)] == ["present"]
    assert not fetch(toy, tmp_path / "new"), "what is there is not downloaded again"


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.files["a"] = CONTENT
    server.cuts = [300_000, 200_000]
    fetch(one_file(server.url("a")), tmp_path)
    assert (tmp_path / "toy/file.bin").read_bytes() == CONTENT
    assert server.asked == [("a", None), ("a", "bytes=300000-"), ("a", "bytes=500000-")]


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.files["a"] = CONTENT
    server.cuts = [100_000, 0]  # the second answer brings nothing, so this call gives up
    with pytest.raises(UserError, match="cut after 100000 of 1024000 bytes"):
        fetch(one_file(server.url("a")), tmp_path)
    assert files_under(tmp_path) == {"toy/file.bin.part"}
    fetch(one_file(server.url("a")), tmp_path)
    assert server.asked[-1] == ("a", "bytes=100000-")
    assert files_under(tmp_path) == {"toy/file.bin"}


def test_a_server_that_always_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["a"] = CONTENT
    server.cuts = [10] * 100
    with pytest.raises(UserError, match="cut after 50 of"):
        fetch(one_file(server.url("a")), tmp_path)
    assert len(server.asked) == data.ATTEMPTS


def test_a_server_that_cannot_resume_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.files["a"], server.ranges, server.cuts = CONTENT, False, [300_000]
    fetch(one_file(server.url("a")), tmp_path)
    assert (tmp_path / "toy/file.bin").read_bytes() == CONTENT
    assert server.asked == [("a", None), ("a", "bytes=300000-")]


@pytest.mark.parametrize("left", [b"rubbish", CONTENT[:-1] + b"?", CONTENT + b"more", CONTENT])
def test_any_part_left_behind_ends_well(server: Server, tmp_path: Path, left: bytes) -> None:
    server.files["a"] = CONTENT
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/file.bin.part").write_bytes(left)
    fetch(one_file(server.url("a")), tmp_path)
    assert files_under(tmp_path) == {"toy/file.bin"}
    assert (tmp_path / "toy/file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_is_deleted_and_the_next_mirror_tried(server: Server, tmp_path: Path) -> None:
    server.files |= {"bad": b"not that", "good": CONTENT}
    with pytest.raises(UserError, match="bad: what it sent has a wrong checksum and was deleted"):
        fetch(one_file(server.url("bad")), tmp_path)
    assert not files_under(tmp_path)
    fetch(one_file(server.url("nowhere"), server.url("bad"), server.url("good")), tmp_path)
    assert files_under(tmp_path) == {"toy/file.bin"}


def test_a_corrupt_file_is_replaced(server: Server, tmp_path: Path) -> None:
    server.files["a"] = CONTENT
    toy = one_file(server.url("a"))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/file.bin").write_bytes(CONTENT[:-1])
    found = data.status(tmp_path, toy)[0]
    assert (found.state, found.bytes) == ("corrupt", len(CONTENT) - 1)
    fetch(toy, tmp_path)
    assert data.status(tmp_path, toy)[0].state == "present"


def test_offline_says_which_files_where_and_their_checksums(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    toy = one_file(f"http://127.0.0.1:{port}/a")
    with pytest.raises(UserError) as told:
        fetch(toy, tmp_path)
    for part in ("toy/file.bin", md5(CONTENT).replace(":", " "), str(tmp_path), "refused"):
        assert part in str(told.value)
    assert not files_under(tmp_path)


def test_two_fetches_do_not_share_a_folder(tmp_path: Path) -> None:
    with data.FileLock(tmp_path / ".fetch.lock"), pytest.raises(UserError, match="Another fetch is running"):
        fetch(one_file("http://127.0.0.1:1/a"), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot read or write in .*file"):
        fetch(one_file("http://127.0.0.1:1/a"), tmp_path / "file")


def test_an_unknown_data_set_is_named() -> None:
    with pytest.raises(UserError, match="no data set 'svhn': choose from cifar10, mnist, binarized_mnist"):
        data.fetch(["svhn"], None, lambda *_: None)


def tar_gz(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_only_the_expected_members_are_unpacked(server: Server, tmp_path: Path) -> None:
    server.files["t"] = tar_gz({"toy/a": b"aa", "../outside": b"no", "/absolute": b"no", "toy/b": b"bb", "c": b""})
    members = (File("toy/a", md5(b"aa")), File("toy/b", md5(b"bb")))
    toy = {"toy": [Download(File("t.tar.gz", md5(server.files["t"])), (server.url("t"),), members)]}
    root = tmp_path / "root"
    fetch(toy, root)
    assert files_under(root) == {"t.tar.gz", "toy/a", "toy/b"} and not (tmp_path / "outside").exists()
    (root / "toy/b").unlink()
    server.files.clear()
    fetch(toy, root)  # from the archive that is there, without the network
    assert (root / "toy/b").read_bytes() == b"bb"


@pytest.mark.parametrize("kind", ["link out", "hard link out", "device", "pipe", "folder", "lacking", "rubbish"])
def test_a_hostile_archive_writes_nothing_outside_the_data(server: Server, tmp_path: Path, kind: str) -> None:
    """Also where its checksum is the expected one; what is there of the expected name is no file of it."""
    (tmp_path / "outside").write_bytes(b"aa")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        types = {"link out": tarfile.SYMTYPE, "hard link out": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        types |= {"pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}
        for name in ("toy", "toy/a", "../beside", str(tmp_path / "absolute")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = types.get(kind, tarfile.REGTYPE), "../outside"
            if kind != "lacking" or name != "toy/a":
                tar.addfile(info)
    server.files["t"] = b"\x1f\x8b rubbish" if kind == "rubbish" else packed.getvalue()
    toy = Download(File("t.tar.gz", md5(server.files["t"])), (server.url("t"),), (File("toy/a", md5(b"aa")),))
    with pytest.raises(UserError, match=r"t\.tar\.gz does not hold its files"):
        fetch({"toy": [toy]}, tmp_path / "root")
    assert files_under(tmp_path / "root") == {"t.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "root"}
    assert (tmp_path / "outside").read_bytes() == b"aa"


def test_a_packed_file_is_unpacked(server: Server, tmp_path: Path) -> None:
    server.files["z"] = gzip.compress(CONTENT)
    toy = Download(File("z/f.gz", md5(server.files["z"])), (server.url("z"),), (File("z/f", md5(CONTENT)),))
    fetch({"toy": [toy]}, tmp_path)
    assert (tmp_path / "z/f").read_bytes() == CONTENT


def test_addresses_and_checksums_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10, MNIST

    cifar = DATASETS["cifar10"][0]
    official = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    assert cifar.members == tuple(File(f"{CIFAR10.base_folder}/{n}", f"md5:{h}") for n, h in official)
    assert cifar.file == File(CIFAR10.filename, f"md5:{CIFAR10.tgz_md5}") and cifar.urls == (CIFAR10.url,)
    assert [d.file for d in DATASETS["mnist"]] == [File(f"MNIST/raw/{n}", f"md5:{h}") for n, h in MNIST.resources]
    for download, (name, _) in zip(DATASETS["mnist"], MNIST.resources, strict=True):
        assert download.urls == tuple(mirror + name for mirror in MNIST.mirrors)


# ---------------------------------------------------------------------------------- the folder


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("WNREPRO_DATA", raising=False)
    assert data.data_root(None) == tmp_path / ".cache/wnrepro"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_root(None) == tmp_path / "cache/wnrepro"
    monkeypatch.setenv("WNREPRO_DATA", "~/data")
    assert data.data_root(None) == tmp_path / "data"
    assert data.data_root(tmp_path / "given") == tmp_path / "given"


def test_free_bytes_of_a_folder_not_made_yet(tmp_path: Path) -> None:
    assert data.free_bytes(tmp_path / "a/b") > 0


def test_missing_cifar10_names_files_folder_checksums_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        data.load("cifar10", tmp_path)
    for file in DATASETS["cifar10"][0].members:
        assert file.path in str(told.value) and file.checksum.removeprefix("md5:") in str(told.value)
    for part in (str(tmp_path), "wnrepro data fetch cifar10", "WNREPRO_DATA"):
        assert part in str(told.value)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_file_with_a_wrong_checksum_is_never_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "was unpickled"
    for file in DATASETS["cifar10"][0].members:
        path = tmp_path / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(UserError, match="data_batch_1 corrupt"):
        data.cifar10(tmp_path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the file would have shown itself"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-1],
    "emptied": lambda _: b"",
    "one bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "foreign": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("dataset", ["cifar10", "mnist", "binarized_mnist"])
def test_a_damaged_file_is_named_before_anything_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, damage: str
) -> None:
    if dataset == "cifar10":
        members = [File(file.path, md5(file.path.encode())) for file in DATASETS["cifar10"][0].members]
        (tmp_path / "cifar-10-batches-py").mkdir()
        for file in members:
            (tmp_path / file.path).write_bytes(file.path.encode())
        monkeypatch.setitem(DATASETS, "cifar10", tuple(Download(file, ()) for file in members))
    else:
        {"mnist": make_mnist, "binarized_mnist": make_binarized_mnist}[dataset](tmp_path, monkeypatch)
    read = {"cifar10": data.cifar10, "mnist": data.seeded_mnist, "binarized_mnist": data.binarized_mnist}[dataset]
    data.require(dataset, tmp_path)
    parsed: list[Any] = []
    for name in ("torchvision.datasets.CIFAR10", "torchvision.datasets.MNIST", "numpy.fromfile"):
        monkeypatch.setattr(name, lambda *words, **more: parsed.append(words))
    path = tmp_path / DATASETS[dataset][-1].file.path
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match=rf"{dataset} is not complete .*{path.name} corrupt"):
        read(tmp_path)
    assert parsed == []


# ---------------------------------------------------------------------------------- the bundled set


def test_the_bundled_set() -> None:
    images = data.bundled()
    assert images.train_x.shape == (data.BUNDLED_TRAIN, 3, 32, 32) and images.train_x.dtype == torch.uint8
    assert images.test_x.shape == (data.BUNDLED_TEST, 3, 32, 32) and images.test_y.dtype == torch.int64
    for labels in (images.train_y, images.test_y):
        counts = torch.bincount(labels, minlength=10)
        assert len(counts) == 10 and counts.min() > 0.07 * len(labels)


def test_the_bundled_set_is_always_the_same() -> None:
    first = data.bundled()
    data.bundled.cache_clear()
    again = data.bundled()
    assert first is not again
    for name in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_the_bundled_halves_share_no_digit_and_no_pixel() -> None:
    train, test = data.bundled_material()
    digits = {half.digits[n].tobytes() for half in (train,) for n in range(len(half.digits))}
    assert not digits & {digit.tobytes() for digit in test.digits}
    assert len(train.digits) + len(test.digits) == 1797
    # Mark every place of the photographs that a half may use: the halves are views of one array.
    base = train.photos.base
    assert base is not None and test.photos.base is base
    train.photos[...], test.photos[...] = 1, 2
    assert (train.photos == 1).all() and (test.photos == 2).all()
    assert train.photos.shape[2] + test.photos.shape[2] <= base.shape[2] - 32


def test_the_bundled_images_are_made_of_their_half_alone() -> None:
    train, _ = data.bundled_material()
    train.photos[...] = 77
    x, _ = data._compose(data.Material(0 * train.digits, train.labels, train.photos), 20, np.random.default_rng(1))
    assert (x.float().mean((1, 2, 3)) - 77).abs().max() < 1


# ---------------------------------------------------------------------------------- binarized MNIST

AMAT = {"train": 5, "valid": 3, "test": 4}  # images in each of the small files made below


def make_binarized_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Small .amat files of noise, and their checksums in place of the official ones. Returns their lines of 0 and 1."""
    rng = np.random.default_rng(1)
    lines = {part: rng.integers(2, size=(count, 784)) for part, count in AMAT.items()}
    (root / "binarized_mnist").mkdir()
    downloads = []
    for part, rows in lines.items():
        content = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
        path = f"binarized_mnist/binarized_mnist_{part}.amat"
        (root / path).write_bytes(content)
        downloads.append(Download(File(path, f"sha256:{hashlib.sha256(content).hexdigest()}"), ()))
    monkeypatch.setitem(DATASETS, "binarized_mnist", tuple(downloads))
    return lines


def make_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Small MNIST files whose images are 0, 255 or 64 throughout, in this order, and their checksums."""
    (root / "MNIST/raw").mkdir(parents=True)
    grey, files = {}, []
    for half, count in {"train": 6, "t10k": 3}.items():
        grey[half] = np.broadcast_to(
            np.array([0, 255, 64], np.uint8).repeat(count // 3)[:, None, None], (count, 28, 28)
        )
        for name, sizes, values in (
            (f"{half}-images-idx3-ubyte", (0x0803, count, 28, 28), grey[half]),
            (f"{half}-labels-idx1-ubyte", (0x0801, count), np.zeros(count, np.uint8)),
        ):
            content = np.array(sizes, ">u4").tobytes() + values.tobytes()
            (root / "MNIST/raw" / name).write_bytes(content)
            files.append(File(f"MNIST/raw/{name}", md5(content)))
    monkeypatch.setitem(DATASETS, "mnist", tuple(Download(file, ()) for file in files))
    return grey


def rows(x: torch.Tensor) -> list[list[int]]:
    return x.flatten(1).tolist()


def test_binarized_mnist_is_train_and_then_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = make_binarized_mnist(tmp_path, monkeypatch)
    found = data.binarized_mnist(tmp_path)
    assert found.train_x.shape == (8, 1, 28, 28) and found.train_x.dtype == torch.uint8
    assert found.test_x.shape == (4, 1, 28, 28) and found.test_x.dtype == torch.uint8
    assert rows(found.train_x) == [*lines["train"].tolist(), *lines["valid"].tolist()]
    assert sorted(rows(found.test_x)) == sorted(lines["test"].tolist())
    assert torch.equal(found.test_x, data.binarized_mnist(tmp_path).test_x), "one order"


def test_seeded_mnist_draws_each_pixel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path, monkeypatch)
    found = data.seeded_mnist(tmp_path)
    assert found.train_x.shape == (6, 1, 28, 28) and found.train_x.dtype == torch.uint8
    assert found.test_x.shape == (3, 1, 28, 28)
    for x in (found.train_x, found.test_x):
        black, white, grey = x.flatten(1).split(len(x) // 3)
        assert (black == 0).all() and (white == 1).all(), "0 is never ink, 255 always"
        assert ((grey == 0) | (grey == 1)).all()
        assert abs(grey.float().mean() - 64 / 255) < 4 * (0.25 * 0.75 / grey.numel()) ** 0.5
    assert not torch.equal(found.train_x[4], found.train_x[5]), "each image has a draw of its own"
    again = data.seeded_mnist(tmp_path)
    assert torch.equal(found.train_x, again.train_x) and torch.equal(found.test_x, again.test_x)
    assert str(data.MNIST_SEED) in found.source


@needs_binarized_mnist
def test_real_binarized_mnist() -> None:
    found = data.binarized_mnist(Path(REAL))
    assert (len(found.train_x), len(found.test_x)) == data.pixel_sizes("mnist", "real") == (60_000, 10_000)
    assert set(found.train_x.unique().tolist()) == set(found.test_x.unique().tolist()) == {0, 1}
    for x in (found.train_x, found.test_x):
        assert x.float().mean().item() == pytest.approx(0.1307, abs=0.003)
    for part, place in (("train", 0), ("valid", 50_000)):
        with (Path(REAL) / f"binarized_mnist/binarized_mnist_{part}.amat").open() as file:
            first = [int(digit) for digit in file.readline().split()]
        assert rows(found.train_x[place : place + 1]) == [first]
    # A digit has its ink in the middle.
    assert found.train_x[:, :, 10:18, 10:18].float().mean() > 0.3
    assert not found.train_x[:, :, :, 0].float().mean() > 1e-4
    # In the file of test images the 980 zeros come first: they have no ink in the very middle.
    thousand = found.test_x[:1000, 0, 13:15, 13:15].float().mean()
    assert thousand.item() == pytest.approx(found.test_x[:, 0, 13:15, 13:15].float().mean().item(), abs=0.05)


@needs_mnist
def test_real_seeded_mnist() -> None:
    found = data.seeded_mnist(Path(REAL))
    assert (len(found.train_x), len(found.test_x)) == (60_000, 10_000)
    assert set(found.train_x.unique().tolist()) == {0, 1}
    raw = np.fromfile(Path(REAL) / "MNIST/raw/train-images-idx3-ubyte", np.uint8)[16:].reshape(60_000, 1, 28, 28)
    assert found.train_x.float().mean().item() == pytest.approx(raw.mean() / 255, abs=1e-3)
    certain = torch.from_numpy((raw == 0) | (raw == 255))
    assert torch.equal(found.train_x[certain] * 255, torch.from_numpy(raw)[certain])
    digest = hashlib.sha256(found.train_x.numpy().tobytes() + found.test_x.numpy().tobytes()).hexdigest()
    assert digest == "01e3b9eb8997b9451f6fc11cc2be212410747ff913b4a4241ffbf7ebe914853d", (
        "the same draw on every machine"
    )


# ---------------------------------------------------------------------------------- the bundled digits


def test_the_bundled_digits() -> None:
    found = data.bundled_digits()
    assert (len(found.train_x), len(found.test_x)) == data.pixel_sizes("mnist", "bundled")
    for x in (found.train_x, found.test_x):
        assert x.shape[1:] == (1, 28, 28) and set(x.unique().tolist()) == {0, 1}
        assert 0.1 < x.float().mean() < 0.2
        assert not x[:, :, :2].any() and not x[:, :, :, :2].any(), "a margin, as MNIST has"
    digest = hashlib.sha256(found.train_x.numpy().tobytes() + found.test_x.numpy().tobytes()).hexdigest()
    assert digest == "748140d8681f3cf421474ebbdcf40a128044d8794dda7dad76c056fd40decc6b", (
        "the same images on every machine"
    )


def test_no_bundled_test_digit_is_a_training_one() -> None:
    found = data.bundled_digits()

    def inks(x: torch.Tensor) -> set[bytes]:
        """The digits, wherever they lie: each cut to its ink."""
        cut = (image[image.any(1)][:, image.any(0)] for image in x[:, 0].numpy())
        return {bytes(ink.shape) + ink.tobytes() for ink in cut}

    assert len(inks(found.train_x)) > 1000
    assert not inks(found.train_x) & inks(found.test_x)


# ---------------------------------------------------------------------------------- the auto-encoders' images


@pytest.mark.parametrize(
    ("dataset", "kind", "source"),
    [("mnist", "bundled", "scikit-learn's digits, magn"), ("cifar10", "bundled", "crops")],
)
def test_bundled_pixels_need_no_files(dataset: str, kind: str, source: str, tmp_path: Path) -> None:
    data.require_pixels(dataset, kind, "larochelle" if dataset == "mnist" else None, tmp_path)
    found = data.pixels(dataset, kind, None, 30, 20, tmp_path)
    shape = (1, 28, 28) if dataset == "mnist" else (3, 32, 32)
    assert found.train_x.shape == (30, *shape) and found.test_x.shape == (20, *shape)
    assert found.train_x.dtype == torch.uint8 and source in found.source
    whole = data.bundled_digits() if dataset == "mnist" else data.bundled()
    assert torch.equal(found.train_x, whole.train_x[:30]) and torch.equal(found.test_x, whole.test_x[:20])


def test_pixels_of_real_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_binarized_mnist(tmp_path, monkeypatch)
    make_mnist(tmp_path, monkeypatch)
    fixed = data.pixels("mnist", "real", "larochelle", 6, 2, tmp_path)
    assert torch.equal(fixed.train_x, data.binarized_mnist(tmp_path).train_x[:6])
    assert torch.equal(fixed.test_x, data.binarized_mnist(tmp_path).test_x[:2]) and "Larochelle" in fixed.source
    drawn = data.pixels("mnist", "real", "seeded", 6, 2, tmp_path)
    assert torch.equal(drawn.train_x, data.seeded_mnist(tmp_path).train_x) and "seed" in drawn.source


def test_pixels_of_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(256, (80, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    small = data.Images(x[:60], torch.zeros(60), x[60:], torch.zeros(20), "small")
    monkeypatch.setattr(data, "cifar10", lambda data_dir: small)
    found = data.pixels("cifar10", "real", None, 30, 10, None)
    assert torch.equal(found.train_x, x[:30]) and torch.equal(found.test_x, x[60:70]) and found.source == "small"


@pytest.mark.parametrize(
    ("dataset", "binarization", "files"),
    [("mnist", "larochelle", "binarized_mnist"), ("mnist", "seeded", "mnist"), ("cifar10", None, "cifar10")],
)
def test_missing_pixels_name_files_and_what_to_do(
    dataset: str, binarization: str | None, files: str, tmp_path: Path
) -> None:
    for ask in (
        lambda: data.require_pixels(dataset, "real", binarization, tmp_path),
        lambda: data.pixels(dataset, "real", binarization, 100, 100, tmp_path),
    ):
        with pytest.raises(UserError) as told:
            ask()
        for download in DATASETS[files]:
            for file in download.wanted:
                assert file.path in str(told.value) and file.checksum.replace(":", " ") in str(told.value)
        assert f"wnrepro data fetch {files}`" in str(told.value) and str(tmp_path) in str(told.value)
        assert ("--binarization seeded" in str(told.value)) == (binarization == "larochelle")


def test_a_file_is_read_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_binarized_mnist(tmp_path, monkeypatch)
    read, digest = list[str](), hashlib.file_digest
    monkeypatch.setattr(data.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    for _ in range(3):
        data.require("binarized_mnist", tmp_path)
    assert len(read) == len(set(read)) == 3
    path = tmp_path / "binarized_mnist/binarized_mnist_valid.amat"
    content, time_of_change = path.read_bytes(), path.stat().st_mtime_ns
    time.sleep(0.02)  # the clock of a file system is a coarse one
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    os.utime(path, ns=(time_of_change, time_of_change))  # as a copy that keeps the time has it
    for _ in range(2):  # what is wrong is never remembered
        with pytest.raises(UserError, match=r"binarized_mnist_valid\.amat corrupt"):
            data.require("binarized_mnist", tmp_path)
    path.write_bytes(content)
    data.require("binarized_mnist", tmp_path)
    assert read[3:] == [str(path)] * 3


def test_the_binarization_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.binarization_at_hand(tmp_path) == "larochelle", "nothing is there"
    make_mnist(tmp_path, monkeypatch)
    assert data.binarization_at_hand(tmp_path) == "seeded"
    make_binarized_mnist(tmp_path, monkeypatch)
    assert data.binarization_at_hand(tmp_path) == "larochelle"
    corrupt = tmp_path / "binarized_mnist/binarized_mnist_valid.amat"
    corrupt.write_bytes(corrupt.read_bytes()[:-1])
    assert data.binarization_at_hand(tmp_path) == "larochelle", "a corrupt file is not passed over in silence"
    with pytest.raises(UserError, match=r"binarized_mnist_valid\.amat corrupt"):
        data.require_pixels("mnist", "real", "larochelle", tmp_path)
    corrupt.unlink()
    assert data.binarization_at_hand(tmp_path) == "seeded", "one of the three is missing"


# ---------------------------------------------------------------------------------- whitening


def plain_zca(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    flat = (x.reshape(len(x), -1).astype(np.float64) - 127.5) / 128
    centred = flat - flat.mean(0)
    u, s, _ = np.linalg.svd(centred.T @ centred / len(x))
    return flat.mean(0), u @ np.diag(1 / np.sqrt(s + epsilon)) @ u.T


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 3000), epsilon=st.sampled_from([1e-5, 1e-2, 1.0]))
def test_zca_is_its_definition(seed: int, count: int, epsilon: float) -> None:
    x = np.random.default_rng(seed).integers(256, size=(count, 3, 3, 2), dtype=np.uint8)
    mean, matrix = plain_zca(x, epsilon)
    zca = Zca.fit(torch.from_numpy(x), epsilon)
    np.testing.assert_allclose(zca.mean, mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(zca.matrix, matrix, rtol=1e-7, atol=1e-7 * np.abs(matrix).max())
    white = ((x.reshape(count, -1) - 127.5) / 128 - mean) @ matrix
    found = zca.apply(torch.from_numpy(x))
    assert found.dtype == torch.float32 and found.shape == x.shape
    np.testing.assert_allclose(found.reshape(count, -1), white, rtol=1e-5, atol=1e-5 * np.abs(white).max())


def test_zca_of_extreme_pixels_is_exact() -> None:
    x = torch.zeros(5000, 1, 1, 2, dtype=torch.uint8)
    x[0] = 255  # every other product is 128², the largest: a rounded sum would show in the tiny variance
    mean, matrix = plain_zca(x.numpy(), 1e-5)
    zca = Zca.fit(x)
    np.testing.assert_allclose(zca.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(zca.matrix, matrix, rtol=1e-9)


def test_whitened_images_have_the_identity_as_covariance() -> None:
    """Up to ε: in the eigenbasis of the images' covariance it is λ / (λ + ε) on the diagonal."""
    x = torch.randint(256, (2000, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x[:, 0] = x[:, 1] // 16 + 100  # directions of small variance too
    epsilon = 1e-2
    white = Zca.fit(x, epsilon).apply(x).flatten(1).double()
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(x.flatten(1).double().T / 128, correction=0))
    found = vectors.T @ torch.cov(white.T, correction=0) @ vectors
    torch.testing.assert_close(found, torch.diag(eigenvalues / (eigenvalues + epsilon)), atol=1e-5, rtol=0)
    assert white.mean(0).abs().max() < 1e-5


@needs_cifar10
def test_real_cifar10() -> None:
    images = data.load("cifar10", Path(REAL))
    assert images.train_x.shape == (50_000, 3, 32, 32) and images.test_x.shape == (10_000, 3, 32, 32)
    assert torch.bincount(images.train_y).tolist() == [5000] * 10
    assert torch.bincount(images.test_y).tolist() == [1000] * 10
    assert images.train_y[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    # The channels' well-known means: planes are red, green, blue, in this order.
    means = images.train_x.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    assert data.load("cifar10", Path(REAL)) is images, "loaded once a process"
    assert {f.state for f in data.status(Path(REAL)) if f.dataset == "cifar10"} == {"present"}


@needs_cifar10
def test_zca_of_the_real_training_set() -> None:
    """The covariance of all 50,000 whitened images is the identity up to ε (§5.1)."""
    x = data.load("cifar10", Path(REAL)).train_x
    zca = Zca.fit(x)
    total, square = torch.zeros(3072, dtype=torch.float64), torch.zeros(3072, 3072, dtype=torch.float64)
    for block in x.split(2000):
        white = zca.apply(block).flatten(1)
        total += white.double().sum(0)
        square += white.T @ white
    mean = total / len(x)
    assert mean.abs().max() < 1e-4
    # W = (C + ε)^-½ commutes with C, so the whitened covariance is W·C·W = I − ε·W², in whichever basis.
    expected = torch.eye(3072, dtype=torch.float64) - 1e-5 * zca.matrix @ zca.matrix
    torch.testing.assert_close(square / len(x) - torch.outer(mean, mean), expected, atol=1e-3, rtol=0)


# ---------------------------------------------------------------------------------- load, whitened


def test_whitened_takes_the_first_images_of_each_half(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(256, (80, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    small = data.Images(pixels[:60], torch.arange(60) % 10, pixels[60:], torch.arange(20) % 10, "small")
    monkeypatch.setattr(data, "load", lambda dataset, data_dir: small)
    data._whitened.cache_clear()
    found = data.whitened("bundled", None, 1e-2, 30, 10, "cpu")
    zca = Zca.fit(pixels[:60], 1e-2)
    torch.testing.assert_close(found.train_x, zca.apply(pixels[:30]))
    torch.testing.assert_close(found.test_x, zca.apply(pixels[60:70]))
    assert found.train_y.tolist() == [n % 10 for n in range(30)] and len(found.test_y) == 10
    assert found.source == "small"
    assert data.whitened("bundled", None, 1e-2, 30, 10, torch.device("cpu")) is found
    data._whitened.cache_clear()


def test_a_whitening_is_fitted_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; a damaged file is made anew, and none can be written without harm. Other images have another."""
    fits, fit = [], Zca.fit
    monkeypatch.setattr(Zca, "fit", lambda *words: fits.append(words) or fit(*words))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = torch.randint(256, (60, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def fitted(x: torch.Tensor = x, epsilon: float = 1e-2) -> int:
        found, expected = data.fitted(x, epsilon, "cpu"), fit(x, epsilon)
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.matrix, expected.matrix)
        return len(fits)

    assert [fitted(), fitted(), fitted(x + 1), fitted(epsilon=0.1), fitted(), fitted(epsilon=0.1)] == [1, 1, 2, 3, 3, 3]
    for path in (tmp_path / "wnrepro").glob("*.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert [fitted(), fitted()] == [4, 4]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [fitted(), fitted()] == [5, 6]


def test_of_eight_that_want_one_whitening_one_fits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait, and read the very same. Each has a lock of its own, as processes do."""
    fits, fit, together = [], Zca.fit, threading.Barrier(8)

    def slow(*words: Any) -> Zca:
        fits.append(words)
        time.sleep(0.5)
        return fit(*words)

    def wanted(_: int) -> Zca:
        together.wait()
        return data.fitted(x, 1e-2, "cpu")

    monkeypatch.setattr(Zca, "fit", slow)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = torch.randint(256, (60, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(wanted, range(8)))
    assert len(fits) == 1 and all(torch.equal(one.matrix, found[0].matrix) for one in found)


def test_a_full_disk_does_not_harm_a_whitening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = torch.randint(256, (60, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        found = data.fitted(x, 1e-2, "cpu")
    assert torch.equal(found.matrix, Zca.fit(x, 1e-2).matrix)
    assert [path.suffix for path in (tmp_path / "wnrepro").iterdir()] == [".lock"]


def test_looking_after_files_needs_no_torch() -> None:
    code = "import sys; from wnrepro import data, doctor; data.status(None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
