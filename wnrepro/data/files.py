"""The data folder: its files, their checksums, and their download by torchvision.

Each checksum is verified before a file is unpickled or unpacked. Only a download imports torch.
"""

import contextlib
import functools
import hashlib
import http.client
import io
import os
import shlex
import shutil
import socket
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from wnrepro.errors import DISK_ERRORS, DiskError, UserError
from wnrepro.preflight import import_uninterrupted
from wnrepro.text import count, printable

# The files of each data set, below the data folder, and their official checksums. The files of CIFAR-10 and MNIST are
# torchvision's; binarized MNIST is Larochelle's fixed binarization.
DATASETS: dict[str, dict[str, str]] = {
    "cifar10": {
        "cifar-10-batches-py/data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "md5:40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "md5:5ff9c542aee3614f3951f8cda6e48888",
    },
    "mnist": {
        "MNIST/raw/train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
        "MNIST/raw/train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
        "MNIST/raw/t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
        "MNIST/raw/t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
    },
    "binarized_mnist": {
        f"binarized_mnist/binarized_mnist_{part}.amat": f"sha256:{digest}"
        for part, digest in {
            "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
            "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
            "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
        }.items()
    },
}
LAROCHELLE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
TIMEOUT_SECONDS = 30.0  # longest wait for a server's answer
# What training can do without a data set, besides the scale quick.
ALTERNATIVES = {"binarized_mnist": "`wnrepro data fetch mnist` suffices for a binarization with a seed; "}
# The errors of a download or a broken archive; an OSError may also come from the disk.
DOWNLOAD_ERRORS = (RuntimeError, http.client.HTTPException, tarfile.TarError, zlib.error, EOFError, OSError)


class MissingDataError(UserError):
    """Missing or corrupt files of a data set. Only a command that trains offers `alternatives` to them.

    plain: the sentence without the alternatives.
    """

    def __init__(self, sentence: str, alternatives: str, listing: str) -> None:
        super().__init__(sentence + alternatives + listing)
        self.plain = sentence + listing


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
    """Return the folder `wnrepro` in the user's cache folder."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).absolute() / "wnrepro"


def data_root(data_dir: Path | None) -> Path:
    """Return the data folder: `data_dir`, else WNREPRO_DATA, else `cache_folder()`."""
    given = data_dir or os.environ.get("WNREPRO_DATA")
    return Path(os.path.expanduser(given)).absolute() if given else cache_folder()


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the closest of its parents that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(existing_folder(folder)).free


def status(data_dir: Path | None) -> list[FileStatus]:
    """Return the status of every file of every data set, after verifying its checksum."""
    return [file for dataset in DATASETS for file in _files(dataset, data_root(data_dir))]


def summary(statuses: Sequence[FileStatus], data_dir: Path | None) -> str:
    """Return one line: which data sets are complete, and the command that completes the others."""
    there = "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
    wrong = {name: Counter(file.state for file in statuses if file.dataset == name) for name in DATASETS}
    lacks = {name: states for name, states in wrong.items() if states.keys() - {"present"}}
    if not lacks:
        return f"all {count(len(DATASETS), 'data set')} are complete"
    parts = [
        f"{name} ({', '.join(f'{number} {state}' for state, number in states.items() if state != 'present')})"
        for name, states in lacks.items()
    ]
    complete = f"{len(DATASETS) - len(lacks)} of {count(len(DATASETS), 'data set')} are complete"
    text = f"{complete}; incomplete: {', '.join(parts)}"
    return f"{text}; `wnrepro data fetch {' '.join(lacks)}{there}` downloads the missing and corrupt files"


def _files(dataset: str, root: Path) -> list[FileStatus]:
    statuses = []
    for name, checksum in DATASETS[dataset].items():
        path = root / name
        try:
            size = path.stat().st_size if path.is_file() else 0
            state = "present" if _verified(path, checksum) else "corrupt" if path.exists() else "missing"
        except OSError as error:
            raise DiskError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        statuses.append(FileStatus(dataset, path.name, path, state, size, checksum))
    return statuses


def _incomplete(dataset: str, root: Path) -> list[FileStatus]:
    return [file for file in _files(dataset, root) if file.state != "present"]


def _verified(path: Path, checksum: str) -> bool:
    if not path.is_file():
        return False
    now = path.stat()
    algorithm, _, expected = checksum.partition(":")
    return _digest(path, algorithm, now.st_size, now.st_mtime_ns, now.st_ctime_ns) == expected


@functools.lru_cache
def _digest(path: Path, algorithm: str, *_: int) -> str:
    """Compute the hexadecimal hash of a file, again only if its size or times have changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _listing(files: Iterable[FileStatus], root: Path) -> str:
    return "".join(
        f"\n  {file.path.relative_to(root)}  {file.state}  {file.checksum.replace(':', ' ')}" for file in files
    )


def require(dataset: str, data_dir: Path | None) -> Path:
    """Return the data folder. Raises MissingDataError unless every file of `dataset` has its official checksum."""
    root = data_root(data_dir)
    if incomplete := _incomplete(dataset, root):
        raise MissingDataError(
            f"data set {dataset}: is incomplete in {root}; run `wnrepro data fetch {dataset}`, copy the files below to "
            "that folder, or set --data-dir or WNREPRO_DATA to the folder that has them",
            f" ({ALTERNATIVES.get(dataset, '')}--scale quick needs no download)",
            f":{_listing(incomplete, root)}",
        )
    return root


def present_binarization(data_dir: Path | None) -> str:
    """Return `seeded` if the files of MNIST exist and those of binarized MNIST do not, else `larochelle`."""
    root = data_root(data_dir)
    present = {name for name, files in DATASETS.items() if all((root / file).is_file() for file in files)}
    return "seeded" if "mnist" in present and "binarized_mnist" not in present else "larochelle"


def fetch(datasets: Iterable[str], data_dir: Path | None) -> None:
    """Download the missing or corrupt files of the data sets by torchvision, and verify them.

    Raises UserError that names the files that could not be downloaded, and DiskError if they cannot be stored.
    """
    root, names = data_root(data_dir), list(datasets)
    for name in names:
        if name not in DATASETS:
            raise UserError(f"data fetch {printable(name, 60)}: unknown; use some of {', '.join(DATASETS)}")
    failed: list[FileStatus] = []
    reasons = []
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision sets none
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".fetch.lock", timeout=0):
            for name in names:
                reason = "a wrong checksum"
                try:
                    _download(name, root)
                except DOWNLOAD_ERRORS as error:
                    if getattr(error, "errno", None) in DISK_ERRORS:
                        raise
                    reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
                if incomplete := _incomplete(name, root):
                    failed += incomplete
                    reasons.append(f"{name}: {reason}")
    except Timeout as error:
        raise UserError(f"data fetch: another fetch is running in {root}; wait until it ends") from error
    except OSError as error:
        raise DiskError(
            f"{root}: cannot be read or written ({error.strerror}); free some space, change its permissions, or set "
            "--data-dir or WNREPRO_DATA to another folder"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    if failed:
        raise UserError(
            f"data fetch: not every data set could be downloaded ({'; '.join(reasons)}); run the same command again "
            f"when the network works, or copy these files or their archive to {root}:{_listing(failed, root)}"
        )


def _download(dataset: str, root: Path) -> None:
    """Download a data set by torchvision unless it is complete, and show the progress on a terminal."""
    incomplete = _incomplete(dataset, root)
    if not incomplete:
        return
    import_uninterrupted("torchvision.datasets")
    from torchvision.datasets import CIFAR10, MNIST
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    for file in incomplete:  # torchvision keeps existing files
        file.path.unlink(missing_ok=True)
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        if dataset == "cifar10":
            download_and_extract_archive(CIFAR10.url, root, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        elif dataset == "mnist":
            mnist = MNIST.__new__(MNIST)  # its __init__ would unpickle files of old versions, without a checksum
            mnist.root = str(root)
            mnist.download()
        else:
            for file in incomplete:
                download_url(f"{LAROCHELLE}{file.name}", file.path.parent, file.name)
