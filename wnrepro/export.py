"""Exports a run's tables and settings as an event file for TensorBoard. Never imports torch.

It uses tensorboardX without its SummaryWriter, which writes in a thread, and waits forever if the disk is full.
"""

import contextlib
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wnrepro.errors import DiskError, UserError
from wnrepro.reading import read_table
from wnrepro.results import Run, read_run
from wnrepro.settings import SETTINGS

FILE = "events.out.tfevents.wnrepro"  # TensorBoard reads every file with tfevents in its name


def write_events(folder: Path, board: Path) -> Path:
    """Write or replace the event file of the run in `folder` in <board>/<experiment>/<variant>/seed-<n>.

    Raises UserError without tensorboardX or a run, and DiskError if writing fails.
    """
    library, run = tensorboardx(), read_run(folder)
    path = board.absolute() / run.experiment / run.variant / f"seed-{run.seed}" / FILE
    try:
        if board.exists() and not board.is_dir():
            raise UserError(f"--tensorboard {board}: is a file; use a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
            with contextlib.closing(library.RecordWriter(f"{scratch}/part")) as writer:
                for event in events(run, library):
                    writer.write(event.SerializeToString())
                writer.flush()
            Path(scratch, "part").replace(path)
    except OSError as error:
        todo = f"cannot be written ({error.strerror}); free some space, change its permissions, or use another folder"
        raise DiskError(f"--tensorboard {board}: {todo}") from error
    return path


def tensorboardx() -> Any:
    """Import tensorboardX without torch, which it would import, for seconds, only to recognize tensors."""
    absent = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]
    try:
        import tensorboardX.summary
    except ImportError:
        raise UserError("--tensorboard: needs tensorboardX; run `pip install 'wnrepro[tensorboard]'`") from None
    finally:
        if absent:
            del sys.modules["torch"]
    return tensorboardX


def events(run: Run, library: Any) -> Iterator[Any]:
    """Yield the events of the file's version, of the settings, and of every row of the tables."""
    event, summary = library.proto.event_pb2.Event, library.summary.Summary
    clock = times(run)
    yield event(wall_time=clock[0][1], file_version="brain.Event:2")
    yield event(wall_time=clock[0][1], summary=library.summary.text("settings", settings(run)))
    for table in ("metrics", "layers", "kl_steps"):
        for row in getattr(run, table).to_dict("records"):
            if (epoch := row.pop("epoch")) in clock:  # else metrics.csv does not have it yet
                tag = "/".join([table, *(str(row.pop(key)) for key in ("layer", "time_step") if key in row)])
                values = [summary.Value(tag=f"{tag}/{name}", simple_value=value) for name, value in row.items()]
                yield event(step=clock[epoch][0], wall_time=clock[epoch][1], summary=summary(value=values))
    for row in steps(run):
        epoch, update = row.pop("epoch"), row.pop("update")
        if epoch in clock:
            values = [summary.Value(tag=f"steps/{name}", simple_value=value) for name, value in row.items()]
            yield event(step=update, wall_time=clock[epoch][1], summary=summary(value=values))


def steps(run: Run) -> list[dict[Any, Any]]:
    """Return the rows of steps.csv, if the run has it."""
    columns = [str(name) for name in run.metrics]
    objective = "bound_nats" if any("bound" in name for name in columns) else "loss"
    rates = [name for name in columns if name == "lr"]
    return read_table(run.path / "steps.csv", ("epoch", "update", objective, *rates)).to_dict("records")


def times(run: Run) -> dict[int, tuple[int, float]]:
    """Return by epoch its step (dqn: agent steps), and its end time if the run had never paused."""
    try:
        start = datetime.strptime(run.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        start = 0.0
    steps = run.metrics[SETTINGS[run.experiment].step_column].tolist()
    ends = list(itertools.accumulate(run.metrics["seconds"].tolist(), initial=start))
    return dict(enumerate(zip([0, *steps], ends, strict=True)))


def settings(run: Run) -> str:
    """Format the run's settings as a table in Markdown, with special characters as entities."""
    about = {"experiment": run.experiment, "scale": run.config.scale, "state": run.state, **run.settings}
    lines = ["| setting | value |", "|---|---|"]
    for row in about.items():
        name, value = (re.sub(r"[^\w .,+-]|_", lambda sign: f"&#{ord(sign[0])};", str(cell)) for cell in row)
        lines.append(f"| {name} | {value} |")
    return "\n".join(lines)
