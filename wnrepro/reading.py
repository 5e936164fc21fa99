"""Reads untrusted JSON and CSV files. Their content becomes typed and bounded, with texts of one printable line."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from wnrepro.errors import UserError
from wnrepro.runs.directory import read_text
from wnrepro.settings import NAME, SETTINGS, printable

DEEPEST, MOST_ENTRIES, LONGEST_NAME, LONGEST_TEXT = 8, 10_000, 100, 2000  # of JSON: levels, and characters
LARGEST, LARGEST_INT = 1e40, 2**53  # numbers: float32 ends at 3.4e38
MOST_LAYERS = 1000
# The integer columns of tables with their bounds. Other columns than `layer` are floats, perhaps not finite.
INTEGERS = {"epoch": (0, 10_000), "time_step": (1, 10_000), "minibatches": (1, LARGEST_INT)}
INTEGERS |= dict.fromkeys(("game", "agent_steps", "episodes"), (0, LARGEST_INT))
FRACTIONS = ("train_error", "test_error")  # in 0..1, or nan


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
        raise UserError(
            f"{printable(str(path))} is malformed ({printable(text, 200)}): restore it from version control, or move "
            "its folder out of the results."
        ) from error


# ------------------------------------------------------------------------------- JSON


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
        raise ValueError("no finite number from 0 on")
    return value


Amount = Annotated[float, PlainValidator(_amount)]
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
    device_name: str = "unknown device"


class Facts(Content):
    data: str = ""
    importance_samples: Amount | None = None


class RunRecord(Provenance):
    """The content of run.json."""

    status: Literal["running", "done", "diverged", "failed"]
    epoch: int
    message: str = ""
    config_hash: str | None = None
    seconds: Amount | None = None
    peak_memory_bytes: Amount | None = None
    device: str = ""
    facts: Facts = Facts()
    resumed: list[Provenance] = []
    metrics_sha256: str | None = None  # in files of earlier versions
    tables_sha256: dict[str, Any] = {}


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


class StepTimes(Provenance):
    """One experiment's numbers in a benchmark."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    ratios: dict[str, Ratio]
    memory: dict[str, Any] = {}
    work: dict[str, Work] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "StepTimes":
        for name, ratio in self.ratios.items():
            if not 0 < ratio.low <= ratio.median <= ratio.high:
                raise ValueError(f"the median of {name} lies outside its interval, or the interval is not above 0")
        for name in self.work:
            if type(self.memory.get(contender(name))) is not int:
                raise ValueError(f"no memory of {contender(name)}")
        return self


class Benchmark(Content):
    """The content of a file of results/bench/."""

    device_name: str
    experiments: dict[str, StepTimes]

    @model_validator(mode="before")
    @classmethod
    def _by_experiment(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        found = {name: content[name] for name in SETTINGS if content.get(name) is not None}
        return {"experiments": found, "device_name": content.get("device_name") if found else ""}


Model = TypeVar("Model", bound=Content)


def contender(entry: str) -> str:
    """Return the contender of a benchmark's entry, such as `wn` for `wn, learning`."""
    return entry.split(", ")[0]


def read_json(path: Path, model: type[Model]) -> tuple[Model, dict[str, Any]]:
    """Read a JSON file. Returns its content as a `model` with printable texts, and unchanged."""
    with naming(path):
        try:
            raw = json.loads(read_text(path))
        except FileNotFoundError as error:
            raise ValueError("a link to nowhere") from error
        return model.model_validate(clean(raw)), raw


def clean(value: Any, depth: int = DEEPEST) -> Any:
    """Copy a JSON value with its texts printable and cut. Raises ValueError beyond the bounds."""
    if isinstance(value, dict | list) and (not depth or len(value) > MOST_ENTRIES):
        raise ValueError("nested too deeply, or with too many entries")
    if isinstance(value, dict):
        return {printable(name, LONGEST_NAME): clean(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list):
        return [clean(one, depth - 1) for one in value]
    most = LARGEST_INT if isinstance(value, int) else LARGEST
    if isinstance(value, int | float) and most < abs(value) < math.inf:
        raise ValueError("a number beyond all bounds")
    return printable(value, LONGEST_TEXT) if isinstance(value, str) else value


# ------------------------------------------------------------------------------- CSV


def read_table(path: Path, columns: tuple[str, ...], *later: str) -> pd.DataFrame:
    """Read these columns of a CSV file, without an incomplete last line. A missing file has no rows.

    later: columns that files of earlier versions lack, and that are then nan.
    """
    every = [*columns, *later]
    try:
        text = read_text(path)
    except FileNotFoundError:
        text = ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    header = lines[0].split(",") if lines else every
    found: dict[str, Any] = {}
    with naming(path):
        for number, line in enumerate(lines, 1):
            if line.count(",") != len(header) - 1:
                raise ValueError(f"line {number} has not the header's {len(header)} fields")
        for name in every:
            if header.count(name) != 1 and not (name in later and name not in header):
                raise ValueError(f"not one column {name}")
        # Python parses the numbers below: some versions of pandas' reader round them.
        texts = pd.DataFrame(columns=every, dtype=object)
        if lines:
            content = io.StringIO("\n".join(lines))
            texts = pd.read_csv(content, dtype=object, na_filter=False, quoting=csv.QUOTE_NONE)
        for name in every:
            column = texts[name].to_numpy() if name in texts else np.full(len(texts), "nan")
            if name == "layer":
                found[name] = pd.Series([printable(text, LONGEST_NAME) for text in column], dtype=str)
                if found[name].nunique() > MOST_LAYERS:
                    raise ValueError(f"more than {MOST_LAYERS} layers")
                continue
            values = found[name] = column.astype(np.int64 if name in INTEGERS else np.float64)
            low, high = INTEGERS.get(name, (0, 1) if name in FRACTIONS else (-LARGEST, LARGEST))
            outside = (values < low) | (values > high)
            if (outside & (np.isfinite(values) | (name in FRACTIONS))).any():
                raise ValueError(f"{name}: a number outside {low:g} to {high:g}")
    return pd.DataFrame(found)
