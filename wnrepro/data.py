"""Images as tensors: CIFAR-10, binarized MNIST, bundled sets that need no download; whitening, checksums, downloads.

Pixels are uint8, N×3×32×32 in 0..255 or N×1×28×28 in 0..1. The classifiers see `(x − 127.5) / 128`, ZCA-whitened
(§5.1), the auto-encoders the pixels themselves. Nothing is unpickled or unpacked before its checksum was verified.
torch, torchvision and scikit-learn are imported where they are used, so that looking after the files needs none of
them.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http
import http.client
import io
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from wnrepro.errors import DiskError, UserError
from wnrepro.runs.directory import write_atomic
from wnrepro.settings import CvaeSettings, DrawSettings

if TYPE_CHECKING:
    import torch

# ---------------------------------------------------------------------------------- the files


@dataclass(frozen=True)
class File:
    """A file under the data folder and its official checksum, such as `md5:c58f…`."""

    path: str
    checksum: str


@dataclass(frozen=True)
class Download:
    """A file to download, its addresses (tried in turn) and the files to unpack from it, if it is packed."""

    file: File
    urls: tuple[str, ...]
    members: tuple[File, ...] = ()

    @property
    def wanted(self) -> tuple[File, ...]:
        return self.members or (self.file,)


def _mnist(kind: str, packed: str, unpacked: str) -> Download:
    name = f"{kind}-ubyte"
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    return Download(
        File(f"MNIST/raw/{name}.gz", f"md5:{packed}"),
        tuple(f"{mirror}{name}.gz" for mirror in mirrors),
        (File(f"MNIST/raw/{name}", f"md5:{unpacked}"),),
    )


def _binarized_mnist(part: str, sha256: str) -> Download:
    name = f"binarized_mnist_{part}.amat"
    url = f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/{name}"
    return Download(File(f"binarized_mnist/{name}", f"sha256:{sha256}"), (url,))


# Folders, addresses and checksums are torchvision's; binarized MNIST is Larochelle's fixed binarization.
DATASETS: dict[str, tuple[Download, ...]] = {
    "cifar10": (
        Download(
            File("cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"),
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            (
                File("cifar-10-batches-py/data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
                File("cifar-10-batches-py/data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
                File("cifar-10-batches-py/data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
                File("cifar-10-batches-py/data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
                File("cifar-10-batches-py/data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
                File("cifar-10-batches-py/test_batch", "md5:40351d587109b95175f43aff81a1287e"),
                File("cifar-10-batches-py/batches.meta", "md5:5ff9c542aee3614f3951f8cda6e48888"),
            ),
        ),
    ),
    "mnist": (
        # the packed file's checksum, then the unpacked one's
        _mnist("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        _mnist("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        _mnist("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        _mnist("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    ),
    "binarized_mnist": (
        _binarized_mnist("train", "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        _binarized_mnist("valid", "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
        _binarized_mnist("test", "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    ),
}


@dataclass(frozen=True)
class FileStatus:
    """A file on disk: `state` is present (checksum verified), missing or corrupt; `bytes` is its size."""

    dataset: str
    name: str
    path: Path
    state: str
    bytes: int
    checksum: str


def cache_folder() -> Path:
    """`wnrepro` in the user's cache folder."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).absolute() / "wnrepro"


def data_root(data_dir: Path | None) -> Path:
    """The data folder: the one given, else WNREPRO_DATA, else the user's cache folder."""
    given = data_dir or os.environ.get("WNREPRO_DATA")
    return Path(os.path.expanduser(given)).absolute() if given else cache_folder()


def status(data_dir: Path | None, datasets: Mapping[str, Sequence[Download]] = DATASETS) -> list[FileStatus]:
    """Every file of every data set, its checksum verified."""
    root = data_root(data_dir)
    files = [(name, file) for name, downloads in datasets.items() for d in downloads for file in d.wanted]
    return [_status(name, file, root) for name, file in files]


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _status(dataset: str, file: File, root: Path) -> FileStatus:
    path = root / file.path
    try:
        size = path.stat().st_size if path.is_file() else 0
        state = "present" if _matches(path, file.checksum) else "corrupt" if path.exists() else "missing"
    except OSError as error:
        raise DiskError(f"Cannot read {path} ({error.strerror}): check its permissions.") from error
    return FileStatus(dataset, path.name, path, state, size, file.checksum)


VERIFIED: set[tuple[Path, str, int, int, int]] = set()  # what this process has verified, and when that was last changed


def _matches(path: Path, checksum: str) -> bool:
    """Whether the file is there and has the checksum; once it had, it is read again only after a change."""
    if not path.is_file():
        return False
    now = path.stat()
    this = path, checksum, now.st_size, now.st_mtime_ns, now.st_ctime_ns
    if this in VERIFIED:
        return True
    kind, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if digest.hexdigest() != wanted:
        return False
    VERIFIED.add(this)
    return True


def _listing(files: Iterable[File]) -> str:
    return "".join(f"\n  {file.path}  {file.checksum.replace(':', ' ')}" for file in files)


# What else the user can do where a data set is not there.
INSTEAD = {"binarized_mnist": "give --binarization seeded, which needs nothing but MNIST's own files (`mnist`), or "}


def require(dataset: str, data_dir: Path | None) -> Path:
    """The data folder, if every file of `dataset` is there with its official checksum; else UserError."""
    root = data_root(data_dir)
    files = [file for download in DATASETS[dataset] for file in download.wanted]
    wrong = {file: state for file in files if (state := _status(dataset, file, root).state) != "present"}
    if wrong:
        states = ", ".join(f"{Path(file.path).name} {state}" for file, state in wrong.items())
        raise UserError(
            f"The data set {dataset} is not complete in {root} ({states}): run "
            f"`wnrepro data fetch {dataset}`, or {INSTEAD.get(dataset, '')}copy these files there, or point "
            f"--data-dir or WNREPRO_DATA at the folder that has them:{_listing(wrong)}"
        )
    return root


# ---------------------------------------------------------------------------------- downloads

Progress = Callable[[str, int, int | None], None]  # file, bytes so far, bytes in all where the server says
ATTEMPTS = 5  # per address: the first, and then to resume after a cut connection
TIMEOUT_SECONDS = 30.0


def fetch(
    names: Iterable[str],
    data_dir: Path | None,
    progress: Progress,
    datasets: Mapping[str, Sequence[Download]] = DATASETS,
) -> None:
    """Download what is missing or corrupt of the named data sets, and verify it.

    A download goes to `*.part`, which the next call resumes, and gets its name only once its checksum is
    verified; so do the files unpacked from it. UserError names the files that cannot be had.
    """
    root = data_root(data_dir)
    downloads: list[Download] = []
    for name in names:
        if name not in datasets:
            raise UserError(f"There is no data set {name!r}: choose from {', '.join(datasets)}.")
        downloads += datasets[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".fetch.lock", timeout=0):
            failed = {d.file: reasons for d in downloads if (reasons := _fetch_one(d, root, progress))}
    except Timeout as error:
        raise UserError(f"Another fetch is running in {root}: wait until it is done.") from error
    except OSError as error:
        raise DiskError(
            f"Cannot read or write in {root} ({error.strerror}): make room there or see to its "
            f"permissions, or choose another folder with --data-dir or WNREPRO_DATA."
        ) from error
    if failed:
        why = "; ".join(reason for reasons in failed.values() for reason in reasons)
        raise UserError(
            f"Could not download {len(failed)} of {len(downloads)} files ({why}): run the same command again "
            f"once the network is there (it resumes) or these files are copied to {root}:{_listing(failed)}"
        )


def _fetch_one(download: Download, root: Path, progress: Progress) -> list[str]:
    """Get, verify and unpack one download. Returns why it could not be had; nothing when all is well."""
    if all(_matches(root / file.path, file.checksum) for file in download.wanted):
        return []
    target = root / download.file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _matches(target, download.file.checksum):
        part = target.with_name(target.name + ".part")
        reasons: list[str] = []
        for url in download.urls:
            reason = _receive_verified(url, part, download.file, progress)
            if not reason:
                _commit(part, target)
                break
            reasons.append(f"{url}: {reason}")
        else:
            return reasons
    _unpack(target, download.members, root)
    return []


def _receive_verified(url: str, part: Path, wanted: File, progress: Progress) -> str:
    """Complete `part` from `url`, over several connections if need be. Returns why it failed, or nothing."""
    reason = ""
    for _ in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, functools.partial(progress, wanted.path))
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if part.exists() and part.stat().st_size > before:
                continue
            return reason
        if _matches(part, wanted.checksum):
            return ""
        part.unlink()
        reason = "what it sent has a wrong checksum and was deleted"
        if not before:
            return reason
    return reason


def _receive(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    """Add to `part` what it lacks of `url`, or all of it where the server cannot resume.

    Raises ConnectionError if the connection is cut; `part` then keeps what came.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "wnrepro"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is lacking, unless the part is of some other file: its checksum tells
        raise
    with answer:
        resumes = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumes else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if resumes else "wb") as file:
            progress(have, total)
            for chunk in _chunks(answer):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection was cut after {have} of {total} bytes")


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := answer.read(1 << 18):
            yield chunk
    except (OSError, http.client.HTTPException) as error:  # told apart from the disk's errors
        raise ConnectionError(f"the connection was cut: {error}") from error


def _unpack(archive: Path, members: Iterable[File], root: Path) -> None:
    """Unpack the `members`, and nothing else, from a verified .tar.gz, or the one from a verified .gz.

    UserError where it does not hold one of them as a file with its checksum.
    """
    wrong = f"{archive} does not hold its files with their checksums: remove it, and run the same command again."
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(archive)) if archive.name.endswith(".tar.gz") else None
            for member in members:
                packed: IO[bytes] | gzip.GzipFile | None = None
                if tar is None:
                    packed = stack.enter_context(gzip.open(archive))
                elif tar.getmember(member.path).isfile():
                    packed = tar.extractfile(member.path)
                target = root / member.path
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                part.unlink(missing_ok=True)
                with part.open("xb") as file:
                    shutil.copyfileobj(packed or io.BytesIO(), file)
                if not _matches(part, member.checksum):
                    part.unlink()
                    raise UserError(wrong)
                _commit(part, target)
        except (KeyError, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise UserError(wrong) from error


def _commit(part: Path, target: Path) -> None:
    """Give a verified file its name, once its bytes are on the disk."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)


# ---------------------------------------------------------------------------------- the images


@dataclass(frozen=True)
class Images:
    """A data set: x uint8 (N, 3, 32, 32), y int64 (N,) in 0..9; `source` says in words what it is."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    source: str


def load(dataset: str, data_dir: Path | None) -> Images:
    """The data set `cifar10` or `bundled`, loaded once a process."""
    return bundled() if dataset == "bundled" else cifar10(data_root(data_dir))


def cifar10(data_dir: Path | None) -> Images:
    """CIFAR-10 (50,000 + 10,000 images) from torchvision's files; UserError unless each checksum is right."""
    return _cifar10(require("cifar10", data_dir))


@functools.lru_cache(maxsize=1)
def _cifar10(root: Path) -> Images:
    import torch
    from torchvision.datasets import CIFAR10

    def tensors(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        part = CIFAR10(root, train=train)
        x = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        return torch.from_numpy(x), torch.tensor(part.targets)

    return Images(*tensors(train=True), *tensors(train=False), source="CIFAR-10, md5 verified")


# The bundled set's split: digits (by their place in scikit-learn's set) and columns of the photographs. The
# columns between the two belong to neither.
TRAIN_DIGITS, TEST_DIGITS = slice(0, 1400), slice(1400, 1797)
TRAIN_COLUMNS, TEST_COLUMNS = slice(0, 480), slice(512, 640)
BUNDLED_TRAIN, BUNDLED_TEST = 12_000, 1_000  # so many, for a whitening that holds for the test half too


@dataclass(frozen=True)
class Material:
    """What a half of the bundled set is made of: digits (n, 8, 8) in 0..1, labels, photos (2, 427, w, 3)."""

    digits: np.ndarray
    labels: np.ndarray
    photos: np.ndarray


def bundled_material() -> tuple[Material, Material]:
    """The material of the training and of the test half: other digits, other places of the photographs."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    images = digits.images / 16
    photos = np.stack(load_sample_images().images)  # china.jpg and flower.jpg
    return (
        Material(images[TRAIN_DIGITS], digits.target[TRAIN_DIGITS], photos[:, :, TRAIN_COLUMNS]),
        Material(images[TEST_DIGITS], digits.target[TEST_DIGITS], photos[:, :, TEST_COLUMNS]),
    )


@functools.lru_cache(maxsize=1)
def bundled() -> Images:
    """Ten classes that need no download: scikit-learn's digits, each blended over a crop of a photograph.

    Always the same images. Their numbers mean nothing beside the paper's.
    """
    rng = np.random.default_rng(1602_07868)
    train, test = bundled_material()
    halves = *_compose(train, BUNDLED_TRAIN, rng), *_compose(test, BUNDLED_TEST, rng)
    return Images(*halves, source="bundled: scikit-learn's digits over crops of its sample photographs")


def _compose(material: Material, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` images: a random digit in a random warm colour, place and contrast, over a random crop.

    The crop is 8×8 pixels magnified to 32×32, and so smooth; the digit 8×8 to 24×24, and then sharpened.
    Whitening raises each frequency to the same variance: over texture it would leave little of the digit.
    """
    import torch

    which = rng.integers(len(material.digits), size=count)
    digits = _magnify(8, 24) @ material.digits[which] @ _magnify(8, 24).T
    digits = np.clip(4 * (digits - 0.5) + 0.5, 0, 1) * rng.uniform(0.8, 1, size=(count, 1, 1))
    colour = rng.integers([200, 120, 0], [256, 200, 60], size=(count, 3))
    down, right = rng.integers(2, 7, size=(2, count))

    photo = rng.integers(len(material.photos), size=count)
    _, height, width, _ = material.photos.shape
    top, left = rng.integers(height - 7, size=count), rng.integers(width - 7, size=count)
    window = np.arange(8)
    crops = material.photos[
        photo[:, None, None], (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None]
    ]
    stretch = _magnify(8, 32)

    x = np.empty((count, 3, 32, 32), np.uint8)
    for n in range(count):
        ink = np.zeros((32, 32))
        ink[down[n] : down[n] + 24, right[n] : right[n] + 24] = digits[n]
        crop = stretch @ crops[n].transpose(2, 0, 1) @ stretch.T
        x[n] = np.rint(crop + ink * (colour[n, :, None, None] - crop))
    return torch.from_numpy(x), torch.from_numpy(material.labels[which]).long()


def _magnify(small: int, large: int) -> np.ndarray:
    """The large×small matrix of linear interpolation along one side of an image."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(small)))


# ---------------------------------------------------------------------------------- images without labels


@dataclass(frozen=True)
class Pixels:
    """Images alone: uint8 (N, 1, 28, 28) in 0..1, or (N, 3, 32, 32) in 0..255; `source` says in words what they are."""

    train_x: torch.Tensor
    test_x: torch.Tensor
    source: str


MNIST_SEED = 1602_07868  # for numpy's RandomState, whose stream is the same in all versions
DIGITS_TRAIN, DIGITS_TEST = 4_000, 500
SIZES = {  # training, test
    "cifar10": (50_000, 10_000),
    "bundled": (BUNDLED_TRAIN, BUNDLED_TEST),
    "mnist": (60_000, 10_000),
    "digits": (DIGITS_TRAIN, DIGITS_TEST),
}
BUNDLED_FOR = {"cifar10": "bundled", "mnist": "digits"}  # what stands in for a data set that is not at hand


def pixel_sizes(dataset: str, data: str) -> tuple[int, int]:
    """How many training and test images `pixels` has; its arguments."""
    return SIZES[BUNDLED_FOR[dataset] if data == "bundled" else dataset]


def pixels(
    dataset: str, data: str, binarization: str | None, train_examples: int, test_examples: int, data_dir: Path | None
) -> Pixels:
    """The first so many images of each half of `mnist` or `cifar10`, `real` or what is `bundled` in its place.

    binarization: `larochelle` or `seeded`, which real MNIST alone asks for. Raises as `require_pixels`.
    """
    images: Images | Pixels
    if data == "bundled":
        images = bundled_digits() if dataset == "mnist" else bundled()
    elif dataset == "cifar10":
        images = cifar10(data_dir)
    else:
        images = binarized_mnist(data_dir) if binarization == "larochelle" else seeded_mnist(data_dir)
    return Pixels(images.train_x[:train_examples], images.test_x[:test_examples], images.source)


def require_pixels(dataset: str, data: str, binarization: str | None, data_dir: Path | None) -> None:
    """Raise UserError unless the files that `pixels` reads are complete; it reads none for what is bundled."""
    if data == "real":
        require({"larochelle": "binarized_mnist", "seeded": "mnist", None: dataset}[binarization], data_dir)


def check_pixels(
    dataset: str, settings: CvaeSettings | DrawSettings, data_dir: Path | None, at_most: Sequence[str]
) -> None:
    """Raise UserError where `pixels` with these settings would, or a setting named in `at_most` exceeds the images."""
    s = settings
    for name in at_most:
        if getattr(s, name) > s.train_examples:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(s, name)}: there are only {s.train_examples} training "
                "images; give fewer"
            )
    for name, size in zip(("train_examples", "test_examples"), pixel_sizes(dataset, s.data), strict=True):
        if getattr(s, name) > size:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(s, name)}: {dataset} ({s.data}) has {size}; give fewer"
            )
    if s.data == "bundled" and s.binarization is not None:
        raise UserError(f"--binarization {s.binarization}: the bundled images are binary already; leave it out")
    require_pixels(dataset, s.data, s.binarization, data_dir)


def binarization_at_hand(data_dir: Path | None) -> str:
    """The binarization whose files are there, by name alone: `seeded` where only MNIST's are, else `larochelle`."""
    root = data_root(data_dir)

    def there(dataset: str) -> bool:
        return all((root / file.path).is_file() for download in DATASETS[dataset] for file in download.wanted)

    return "seeded" if there("mnist") and not there("binarized_mnist") else "larochelle"


def binarized_mnist(data_dir: Path | None) -> Pixels:
    """Larochelle's fixed binarization: his 50,000 training and then 10,000 validation images; 10,000 test images.

    His file of test images is sorted by digit; here they are in an order drawn once, so that the first so many
    stand for all of them. UserError unless each file's checksum is right.
    """
    import torch

    root = require("binarized_mnist", data_dir)

    def read(part: str) -> torch.Tensor:
        """Lines of 784 digits, 0 or 1, each with a blank or the line's end behind it."""
        text = np.fromfile(root / f"binarized_mnist/binarized_mnist_{part}.amat", np.uint8)
        return torch.from_numpy(text.reshape(-1, 1, 28, 28, 2)[..., 0] - ord("0"))

    train, test = torch.cat([read("train"), read("valid")]), read("test")
    test = test[np.random.RandomState(MNIST_SEED).permutation(len(test))]
    return Pixels(train, test, "MNIST, Larochelle's fixed binarization, sha256 verified")


def seeded_mnist(data_dir: Path | None) -> Pixels:
    """MNIST (60,000 + 10,000 images) from torchvision's files, each pixel drawn once with probability grey / 255.

    Always the same draw. UserError unless each file's checksum is right.
    """
    import torch
    from torchvision.datasets import MNIST

    root = require("mnist", data_dir)
    rng = np.random.RandomState(MNIST_SEED)

    def draw(train: bool) -> torch.Tensor:
        grey = MNIST(root, train=train).data.numpy()[:, None]
        return torch.from_numpy((rng.randint(255, size=grey.shape, dtype=np.uint8) < grey).astype(np.uint8))

    source = f"MNIST, binarized once by seed {MNIST_SEED} (drawn with probability grey/255), md5 verified"
    return Pixels(draw(train=True), draw(train=False), source)


@functools.lru_cache(maxsize=1)
def bundled_digits() -> Pixels:
    """Binary 28×28 digits that need no download: scikit-learn's, 8×8 pixels magnified to 20×20, in random places.

    Always the same images; the test half's digits are others than the training half's. Their bound means nothing
    beside the paper's.
    """
    import torch

    rng = np.random.default_rng(1602_07868)

    def place(digits: np.ndarray, count: int) -> torch.Tensor:
        grey = _magnify(8, 20) @ digits[rng.integers(len(digits), size=count)] @ _magnify(8, 20).T
        ink = grey > 0.5 - 1e-9  # a half is ink, however it was rounded
        down, right = rng.integers(2, 7, size=(2, count))
        x = np.zeros((count, 1, 28, 28), np.uint8)
        for n in range(count):
            x[n, 0, down[n] : down[n] + 20, right[n] : right[n] + 20] = ink[n]
        return torch.from_numpy(x)

    train, test = bundled_material()
    halves = place(train.digits, DIGITS_TRAIN), place(test.digits, DIGITS_TEST)
    return Pixels(*halves, source="bundled: scikit-learn's digits, magnified and binarized")


# ---------------------------------------------------------------------------------- whitening


CHECKSUM = 32  # bytes of sha256 at the head of a whitening that is kept
PATIENCE_SECONDS = 300.0  # with another process that fits the same whitening, some ten times what it takes


@dataclass(frozen=True)
class Zca:
    """ZCA whitening (§5.1): x − `mean` (3072,), times the symmetric `matrix` (3072, 3072), both float64."""

    mean: torch.Tensor
    matrix: torch.Tensor

    @staticmethod
    def fit(x: torch.Tensor, epsilon: float = 1e-5, device: torch.device | str = "cpu") -> Zca:
        """The whitening V (Λ + ε)^-½ Vᵀ of uint8 images x (N, …) with the covariance V Λ Vᵀ.

        The covariance is over N, not N − 1 (authors' code). Its sums are of the integers x − 128, which no
        float rounds: in a block of 1024 images they stay within 2²⁴ (float32), over all within 2⁵³ (float64).
        """
        import torch

        x = x.flatten(1)
        count, size = x.shape
        device = torch.device(device)
        exact = torch.float32 if device.type == "cpu" else torch.float64  # tf32's sums are no float32 sums
        total = torch.zeros(size, dtype=torch.float64, device=device)
        square = torch.zeros(size, size, dtype=torch.float64, device=device)
        for block in x.split(1024):
            centred = block.to(device, exact) - 128
            total += centred.sum(0)
            square += centred.T @ centred
        mean = total / count
        covariance = square.div_(count).sub_(torch.outer(mean, mean)).div_(128**2)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        matrix = (vectors / torch.sqrt(eigenvalues.clamp(min=0) + epsilon)) @ vectors.T
        return Zca((mean + 0.5) / 128, matrix)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The whitened float32 images, on this whitening's device, of uint8 images x (any device)."""
        import torch

        white = torch.empty(x.shape, dtype=torch.float32, device=self.mean.device)
        for source, target in zip(x.split(1024), white.split(1024), strict=True):
            pixels = (source.flatten(1).to(self.mean.device, torch.float64) - 127.5) / 128
            target.copy_(((pixels - self.mean) @ self.matrix).view_as(target))
        return white


def fitted(x: torch.Tensor, epsilon: float, device: str) -> Zca:
    """`Zca.fit`, once: what it took its seconds for is kept in the user's cache folder, by a hash of the images.

    Of several processes that want it one fits it, and the others wait for that. A file there that is damaged is made
    anew; where none can be written, there is none.
    """
    import torch

    kind = torch.device(device).type
    key = hashlib.sha256(x.numpy().tobytes() + f"{epsilon!r} {kind}".encode()).hexdigest()[:16]
    path = cache_folder() / f"whitening-{key}.pt"
    zca = _kept(path, device)
    if zca is not None:
        return zca
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock", timeout=PATIENCE_SECONDS))
        zca = _kept(path, device)
        if zca is None:
            zca, content = Zca.fit(x, epsilon, device), io.BytesIO()
            torch.save({"mean": zca.mean.cpu(), "matrix": zca.matrix.cpu()}, content)
            with contextlib.suppress(OSError, DiskError):
                write_atomic(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    return zca


def _kept(path: Path, device: str) -> Zca | None:
    """A whitening in a file of `fitted`; None where there is none, or a damaged one."""
    import torch

    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    if content[:CHECKSUM] != hashlib.sha256(content[CHECKSUM:]).digest():
        return None
    return Zca(**torch.load(io.BytesIO(content[CHECKSUM:]), map_location=device, weights_only=True))


def whitened(
    dataset: str,
    data_dir: Path | None,
    epsilon: float,
    train_examples: int,
    test_examples: int,
    device: torch.device | str,
) -> Images:
    """The first so many images of each half, whitened: an Images whose x are float32 tensors on `device`.

    The whitening is fitted to all training images of the set. The last result is kept for the next call.
    """
    return _whitened(dataset, data_root(data_dir), epsilon, train_examples, test_examples, str(device))


@functools.lru_cache(maxsize=1)
def _whitened(dataset: str, root: Path, epsilon: float, train_examples: int, test_examples: int, device: str) -> Images:
    images = load(dataset, root)
    zca = fitted(images.train_x, epsilon, device)
    return Images(
        zca.apply(images.train_x[:train_examples]),
        images.train_y[:train_examples].to(device),
        zca.apply(images.test_x[:test_examples]),
        images.test_y[:test_examples].to(device),
        images.source,
    )
