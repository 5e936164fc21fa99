"""The JSON files of a results folder: one model for each.

Their content is untrusted; it becomes typed and bounded, with texts of one printable line. This module imports neither
torch nor pandas.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from wnrepro.errors import UserError
from wnrepro.settings import NAME, SETTINGS
from wnrepro.text import printable

LARGEST_FILE = 2**24  # bytes; larger files are refused. The tables of the paper's longest runs are far smaller
DEEPEST, MOST_ENTRIES, LONGEST_NAME, LONGEST_TEXT = 8, 10_000, 100, 2000  # of JSON: levels, and characters
LARGEST, LARGEST_INT = 1e40, 2**53  # numbers: float32 ends at 3.4e38


class Content(BaseModel):
    """A strictly typed JSON object. null counts as missing, and unknown entries of other versions are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: value for name, value in content.items() if value is not None or name not in known}


def _amount(value: Any) -> Any:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("must be a finite number of at least 0")
    return value


Amount = Annotated[float, PlainValidator(_amount)]
# Earlier versions wrote `1 threads`; the names of one device must be equal.
DeviceName = Annotated[str, AfterValidator(lambda name: re.sub(r", 1 threads$", ", 1 thread", name))]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=1e-30, allow_inf_nan=False)]


class GitState(Content):
    commit: str = "unknown"
    dirty: bool = False


class Versions(Content):
    torch: str = "unknown"


class Provenance(Content):
    """When, where and by which code something was measured."""

    created: str = ""
    git: GitState = GitState()
    versions: Versions = Versions()
    device_name: DeviceName = "unknown device"
    together: Annotated[int, Field(ge=1)] = 1  # runs in the process, which share its seconds and peak memory


class Facts(Content):
    data: str = ""
    importance_samples: Amount | None = None


class RunRecord(Provenance):
    """The content of run.json."""

    status: Literal["running", "done", "diverged", "failed"]
    epoch: int
    epochs: int | None = None
    message: str = ""
    config_hash: str | None = None
    updated: str = ""
    seconds: Amount | None = None
    peak_memory_bytes: Count | None = None
    device: str = ""
    graphs: bool = False
    facts: Facts = Facts()
    resumed: list[Provenance] = []
    metrics_sha256: str | None = None  # in files of earlier versions
    tables_sha256: dict[str, Any] = {}
    weights_sha256: str | None = None
    continued: dict[str, Any] | None = None  # the shorter run that this one continues
    sha256: str | None = None


class RunSettings(Content):
    param: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    lr: Rate
    seed: int
    epochs: int


class Parameterization(Content):
    """The entry of config.json for a parameterization that is not the paper's."""

    class_name: str = Field(alias="class")
    label: str
    lr: Rate | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class RunConfig(Content):
    """The content of config.json."""

    experiment: str
    scale: Literal["paper", "short", "quick"]
    settings: RunSettings
    parameterization: Parameterization | None = None
    hash: str


class Ratio(Content):
    median: Amount
    low: Amount
    high: Amount
    n: int


class Work(Content):
    flops: Amount
    bytes: Amount
    floor_seconds: Amount
    distance: Amount
    flops_share: Amount
    bytes_share: Amount


class ReplayMemory(Content):
    on: str = ""
    peak_bytes: Count | None = None


ByRuns = dict[Annotated[int, Field(strict=False)], Amount]  # a number by runs at a time


class Energy(Content):
    """Joules per step, by contender, and by the number of runs in processes of their own or in one."""

    counter: str = ""
    joules: dict[str, Amount] = {}
    side_by_side: ByRuns = {}
    lockstep: ByRuns = {}


class StepTimes(Provenance):
    """One experiment's numbers in a benchmark.

    side_by_side, lockstep: the total steps per second by the number of runs, in processes of their own or in one.
    """

    device: str = ""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    seconds: dict[str, Annotated[list[Amount], Field(min_length=1)]] = {}
    ratios: dict[str, Ratio]
    memory: dict[str, Count] = {}
    replay_memory: ReplayMemory | None = None
    side_by_side: ByRuns = {}
    lockstep: ByRuns = {}
    energy: Energy = Energy()
    work: dict[str, Work] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "StepTimes":
        for name, ratio in self.ratios.items():
            if not 0 < ratio.low <= ratio.median <= ratio.high:
                raise ValueError(f"the median of {name} lies outside its interval, or the interval is not above 0")
        for name in self.work:
            if contender(name) not in self.memory:
                raise ValueError(f"the memory of {contender(name)} is missing")
        return self


def contender(entry: str) -> str:
    """Return the contender of a benchmark's entry, such as `wn` for `wn, learning`."""
    return entry.split(", ")[0]


class Benchmark(Content):
    """The content of a file of results/bench/."""

    device_name: DeviceName
    experiments: dict[str, StepTimes]

    @model_validator(mode="before")
    @classmethod
    def _by_experiment(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        found = {name: content[name] for name in SETTINGS if content.get(name) is not None}
        return {"experiments": found, "device_name": content.get("device_name") if found else ""}

    @model_validator(mode="after")
    def _of_device(self) -> "Benchmark":
        for one in self.experiments.values():
            one.device_name = self.device_name
        return self


# ------------------------------------------------------------------------------- reading

Model = TypeVar("Model", bound=Content)


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises FileNotFoundError, or UserError for a folder, a pipe or too large a file."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a file; move it away")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix this, or use another --results") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_FILE >> 20} MiB, the limit for a run's files; move it away")
    return content


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text. Raises as `read_bytes`, and UserError for another encoding."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); fix it, or move it away") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an error in a file's content into a UserError that names the file."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError) as error:
        text = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its content"
            text = f"`{place}`: {first['msg'].removeprefix('Value error, ')}"
        todo = "restore it from version control, or move its folder out of the results"
        if path.with_name("checkpoint.pt").exists():
            todo = f"{'' if path.suffix == '.csv' else 'remove it and '}repeat the command that trained the run, "
            todo += "which restores it from checkpoint.pt"
        raise UserError(f"{printable(str(path))}: malformed ({printable(text, 200)}); {todo}") from error


def read_model(path: Path, model: type[Model]) -> tuple[Model, dict[str, Any]]:
    """Read a JSON file. Returns its content as a `model` with printable texts, and unchanged."""
    with naming(path):
        try:
            raw = json.loads(read_text(path))
        except FileNotFoundError as error:
            raise ValueError("it is a broken link") from error
        return model.model_validate(clean(raw)), raw


def clean(value: Any, depth: int = DEEPEST) -> Any:
    """Copy a JSON value with its texts printable and cut. Raises ValueError beyond the bounds."""
    if isinstance(value, dict | list) and (not depth or len(value) > MOST_ENTRIES):
        raise ValueError("it is nested too deeply or has too many entries")
    if isinstance(value, dict):
        return {printable(name, LONGEST_NAME): clean(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list):
        return [clean(one, depth - 1) for one in value]
    most = LARGEST_INT if isinstance(value, int) else LARGEST
    if isinstance(value, int | float) and most < abs(value) < math.inf:
        raise ValueError("it has a number that is too large")
    return printable(value, LONGEST_TEXT) if isinstance(value, str) else value
