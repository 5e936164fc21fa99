"""The display of the grid: live rows on a terminal, plain lines elsewhere; and the printed plan."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from wnrepro import errors
from wnrepro.errors import complain
from wnrepro.events import Epoch, News, Note, Progress
from wnrepro.progress import TimeLeft, brief, duration
from wnrepro.reproduce.plan import Promise, Task, time_left, totals
from wnrepro.text import count, printable

ORDER = ("done", "diverged", "failed", "stopped", "running", "held", "waiting")  # of states, within a line
SHOWN = ("running", "held", "failed")  # the states whose runs have a row, from the top
STYLES = {"done": "green", "diverged": "yellow", "failed": "bold red", "running": "cyan", "held": "cyan"}
FILE_WIDTH = 250  # columns without a terminal, so that no part of a plan is cut
DETAILS = 62  # characters of a row beside the run's name
BAR = 12
SERVES = 32  # characters, at least, of the plan's column `serves`
TEXT = 60  # characters of a plan's text about a run
PLAN = ("run", "state", "epochs", "left", "memory", "estimated from", "last epoch")  # columns of a plan


def gigabytes(size: int | None) -> str:
    """Format bytes as `1.6 GB`, or as a dash if the size is unknown."""
    return f"{size / 1e9:.1f} GB" if size else "–"


def bar(share: float, width: int = BAR) -> Text:
    """Draw a bar of which this share is full."""
    full = min(width, math.floor(share * width))
    return Text.assemble(("━" * full, "green"), ("─" * (width - full), "dim"))


def counts(states: Sequence[str]) -> str:
    """Format the number of tasks in each state as `3 done, 1 failed`."""
    return ", ".join(f"{number} {name}" for name, number in Counter(states).items())


class Board:
    """A display of the tasks of `drive`. Use it as a context manager, and pass its `show` to `drive`."""

    def __init__(self, console: Console, tasks: Sequence[Task], side_by_side: Mapping[str, int], quiet: bool) -> None:
        self.console, self.tasks, self.side_by_side, self.quiet = console, tasks, side_by_side, quiet
        self.on_terminal = console.is_terminal and not quiet
        self.live = Live(console=console, get_renderable=self.picture, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Board":
        for task in self.tasks:
            if task.over:
                self.line(f"{task.name}  already ", task.state, f", {task.text}" if task.text else "")
        if self.on_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, task: Task, news: str) -> None:
        """Print a task's important news as a line, above the table if there is one."""
        at = f"from epoch {task.reached} of {task.run.settings.epochs}"
        graphs = "" if task.graphs else " without CUDA graphs"
        lines = {
            "end": f", {task.text}" if task.text else "",
            "retry": f"{task.text}; resumes {at}{graphs} (try {task.tries + 1})",
            "stop": f"stopped: another epoch would not fit in the budget; resumes {at}",
            "held": f"{task.directory.lock.holder()} trains it" if news == "held" else "",
        }
        if not self.on_terminal:
            lines["start"] = f"resumes {at}" if task.reached else "starts"
        if news in lines:
            over, all_tasks = sum(one.over for one in self.tasks), str(len(self.tasks))
            start = f"{over:>{len(all_tasks)}}/{all_tasks}  {task.name}  "
            self.line(start, task.state if news == "end" else "", lines[news])

    def line(self, start: str, state: str, end: str) -> None:
        """Print a line with a state in its colour, above the rows if there are any."""
        if not self.quiet:
            parts = printable(start), (state, STYLES.get(state, "")), printable(end)
            self.console.print(Text.assemble(*parts), soft_wrap=True)

    def picture(self) -> Group:
        """Draw a row for each run at work, a line for each experiment, and a bar for all: no more than fits."""
        console, experiments = self.console, self.experiments()
        if len(experiments) + 2 > console.height:
            experiments = []
        tasks = sorted((task for task in self.tasks if task.state in SHOWN), key=lambda task: SHOWN.index(task.state))
        abreast = max((len(task.name) for task in tasks), default=0) + DETAILS <= console.width
        rows: list[Text] = []
        for task in tasks:
            row = self.row(task, abreast)
            lines = sum(math.ceil(len(line) / console.width) for line in row)
            if len(rows) + lines + len(experiments) + 1 > console.height:
                break
            rows += [part for line in row for part in line.wrap(console, console.width)]
        return Group(*rows, *experiments, self.total())

    def row(self, task: Task, abreast: bool) -> list[Text]:
        """Return a run's name and details, abreast or one below the other. The name is never cut."""
        left = "" if task.over else f"{duration(task.seconds_left)} left"
        details = Text.assemble(
            (f"{task.state:<8}", STYLES[task.state]),
            f"{task.reached}/{task.run.settings.epochs}".rjust(7) + "  ",
            *(bar(task.epochs / task.run.settings.epochs), f"{left:>13}  ", printable(task.text)),
        )
        width = max(len(one.name) for one in self.tasks if one.state in SHOWN) if abreast else 0
        details.truncate(self.console.width - (width + 2), overflow="ellipsis")
        if abreast:
            return [Text.assemble(f"{task.name:<{width}}  ", details)]
        return [Text(task.name), Text.assemble("  ", details)]

    def experiments(self) -> list[Text]:
        """Return a line for each experiment: how many of its runs are in each state."""
        states: dict[str, list[str]] = {}
        for task in sorted(self.tasks, key=lambda task: ORDER.index(task.state)):
            states.setdefault(task.run.experiment, []).append(task.state)
        names = dict.fromkeys(task.run.experiment for task in self.tasks)
        return [Text(f"{name:<{max(map(len, names))}}  {counts(states[name])}", no_wrap=True) for name in names]

    def total(self) -> Text:
        """Return a bar for all runs, how many are over, and the time left."""
        left = time_left(self.tasks, self.side_by_side)
        than = "about" if left.runs == sum(not task.over for task in self.tasks) else "more than"
        about = f", {than} {duration(left.seconds)} left" if left.seconds else ""
        over = sum(task.over for task in self.tasks)
        share = sum(1.0 if task.over else task.epochs / task.run.settings.epochs for task in self.tasks)
        text = Text.assemble(bar(share / len(self.tasks)), f"  {over} of {len(self.tasks)} runs ended{about}")
        text.no_wrap = True
        return text


class TaskShow:
    """The display of a run that this process executes, to call with every event of the run."""

    def __init__(self, board: Board, task: Task) -> None:
        self.board, self.task = board, task
        task.state, task.began = "running", time.monotonic()
        self.time_left = task.time_left = TimeLeft(task.run.settings.epochs, task.reached, task.began)
        board.show(task, "start")

    def __call__(self, event: News) -> None:
        task, now = self.task, time.monotonic()
        if isinstance(event, Note):
            self.board.line(f"{task.name}  {event.text}", "", "")
        elif isinstance(event, Progress):
            task.epochs = event.epoch - 1 + event.done / event.total
            self.time_left.tick(task.epochs, now)
        elif isinstance(event, Epoch):
            task.epochs, task.text = float(event.epoch), brief(event.metrics)
            self.time_left.epoch(event.epoch, now)


def complain_of_failures(tasks: Sequence[Task]) -> int:
    """Print why each failed run has failed, on standard error, and return the number of failed runs."""
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed:
        hint = f"; {errors.HINT}" if task.traceback and not errors.DEBUG else ""
        what = "" if task.found.name == "odd" else f"{task.directory.folder}: failed, "
        complain(f"{what}{printable(task.text, 300)}{hint}", task.traceback)
    return len(failed)


def print_plan(
    console: Console, tasks: Sequence[Task], promised: Sequence[Promise], side_by_side: Mapping[str, int]
) -> None:
    """Print a plan: a table of its runs, a table of what its claims can show, and a summary."""
    if not console.is_terminal:
        console.width = FILE_WIDTH
    columns = zip(PLAN, *map(plan_cells, tasks), strict=True)
    if sum(max(map(len, cells)) + 2 for cells in columns) + SERVES <= console.width:
        console.print(plan_table(tasks))
    else:
        for task in tasks:
            name, state, epochs, left, memory, source, last = plan_cells(task)
            parts = [last, left and f"{left} left{f' ({source})' if task.estimate.source else ''}", memory]
            console.print(Text(name))
            details = f"{state:<8}{epochs:>8}  {', '.join(part for part in parts if part not in ('', '–'))}"
            console.print(Padding(Text(details), (0, 0, 0, 2)))
            console.print(Padding(Text(f"for {'; '.join(task.run.serves)}", style="dim"), (0, 0, 0, 4)))
    if promised:
        console.print(claims_table(promised))
    console.print(summary(tasks, side_by_side), highlight=False, soft_wrap=True)


def plan_cells(task: Task) -> tuple[str, ...]:
    """Return a run's name, state, epochs, time left, memory, source of the estimate and last epoch's figures."""
    estimate = task.estimate
    left = duration(task.seconds_left), gigabytes(estimate.memory_bytes), estimate.source or "–"
    epochs = f"{task.found.epoch}/{task.run.settings.epochs}"
    return (task.name, task.found.name, epochs, *(("", "", "") if task.over else left), printable(task.text, TEXT))


def plan_table(tasks: Sequence[Task]) -> Table:
    """Return a table with a row for each run."""
    table = Table(box=None, pad_edge=False)
    for name in PLAN:
        table.add_column(name, no_wrap=True)
    table.add_column("serves", overflow="fold", min_width=SERVES - 2)
    for task in tasks:
        run, state, *cells = map(Text, plan_cells(task))
        state.stylize(STYLES.get(task.found.name, ""))
        table.add_row(run, state, *cells, "; ".join(task.run.serves))
    return table


def claims_table(promised: Sequence[Promise]) -> Table:
    """Return a table with a row for each claim: its seeds in the grid, and the power at their last look."""
    table = Table(
        box=None, pad_edge=False, title_justify="left", title="\nPower of the claims with the seeds of the grid"
    )
    for name in ("claim", "seeds", "judged at", "reproduced if the paper is right", "if there is no effect"):
        table.add_column(name, justify="left" if name == "claim" else "right")
    table.add_column("80 % power at a true value of")
    table.add_column("seeds for 80 % power", justify="right")
    for claim, number, power in promised:
        chances = [f"{share:.0%}".replace("%", " %") for share in (power.true, power.null)]
        table.add_row(
            *(claim, str(number), str(power.n), *chances),
            Text(power.difference),
            "–" if power.seeds80 is None else str(power.seeds80),
        )
    return table


def summary(tasks: Sequence[Task], side_by_side: Mapping[str, int]) -> str:
    """Describe the state of the grid, and the time and memory that its remaining runs need."""
    sums = totals(tasks, side_by_side)
    text = f"{count(sums['runs'], 'run')}: {counts([task.found.name for task in tasks])}."
    left = sum(not task.over for task in tasks)
    if not left:
        return text
    known, memory = sums["hours_left_known_for"], sums["memory_bytes_most"]
    text += f" Left: about {duration(3600 * sums['hours_left'])} of computing" if known else " The time left is unknown"
    fewest, most = min(sums["side_by_side"].values()), max(sums["side_by_side"].values())
    if known and most > 1:
        abreast = f"{most}" if fewest == most else f"{fewest} to {most}"
        text += f", or {duration(3600 * sums['hours_left_side_by_side'])} with {abreast} runs at a time"
    if 0 < known < left:
        text += f", for the {known} of {left} runs with an estimate"
    return text + (f". The largest known run needs {gigabytes(memory)} of memory." if memory else ".")
