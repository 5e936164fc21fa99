"""The display of the grid: a live table on a terminal, plain lines elsewhere; and the printed plan."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wnrepro.progress import duration
from wnrepro.reproduce.plan import Promise, Task, time_left, totals
from wnrepro.text import count, printable

ORDER = ("running", "held", "failed", "waiting", "stopped", "diverged", "done")  # of states, from the top of the table
STYLES = {"done": "green", "diverged": "yellow", "failed": "bold red", "running": "cyan", "held": "cyan"}
FILE_WIDTH = 250  # columns without a terminal, so that no part of a plan is cut
MARGIN = 4  # lines of the terminal besides the rows: header, rule, number of hidden rows, totals


def gigabytes(size: int | None) -> str:
    """Format bytes as `1.6 GB`, or as a dash if the size is unknown."""
    return f"{size / 1e9:.1f} GB" if size else "–"


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
            "end": f"{task.state}{f', {task.text}' if task.text else ''}",
            "retry": f"{task.text}; resumes {at}{graphs} (try {task.tries + 1})",
            "stop": f"stopped, to resume {at}: another epoch would not fit the budget",
            "held": "another process computes it",
        }
        if not self.on_terminal:
            lines["start"] = f"resumes {at}" if task.reached else "begins"
        if news in lines and not self.quiet:
            over = sum(one.over for one in self.tasks)
            text = printable(f"{over}/{len(self.tasks)}  {task.name}  {lines[news]}")
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def picture(self) -> Group:
        """Draw a row for each run that fits on the terminal, and the totals of all."""
        tasks = sorted(self.tasks, key=lambda task: ORDER.index(task.state))
        shown = tasks[: max(1, self.console.height - MARGIN)]
        table = Table(box=None, expand=True, pad_edge=False)
        table.add_column("run", overflow="ellipsis", no_wrap=True, ratio=3)
        table.add_column("state", no_wrap=True)
        table.add_column("epochs", no_wrap=True, justify="right")
        table.add_column("", width=12)
        table.add_column("left", no_wrap=True, justify="right")
        table.add_column("last epoch", overflow="ellipsis", no_wrap=True, ratio=2)
        for task in shown:
            epochs = task.run.settings.epochs
            table.add_row(
                Text(task.name),
                Text(task.state, style=STYLES.get(task.state, "")),
                f"{task.reached}/{epochs}",
                ProgressBar(total=epochs, completed=task.epochs, width=12),
                "" if task.over else duration(task.seconds_left),
                Text(printable(task.text)),
            )
        more = [task.state for task in tasks[len(shown) :]]
        left = time_left(self.tasks, self.side_by_side)
        than = "about" if left.runs == sum(not task.over for task in self.tasks) else "more than"
        about = f"; {than} {duration(left.seconds)} left" if left.seconds else ""
        lines = [Text(f"and {counts(more)}", style="dim")] if more else []
        return Group(table, *lines, Text(f"{counts([task.state for task in self.tasks])}{about}"))


def print_plan(
    console: Console, tasks: Sequence[Task], promised: Sequence[Promise], side_by_side: Mapping[str, int]
) -> None:
    """Print a plan: a table of its runs, a table of what its claims can show, and a summary."""
    if not console.is_terminal:
        console.width = FILE_WIDTH
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold", ratio=2)
    for name in ("state", "epochs", "left", "memory", "estimated from"):
        table.add_column(name, no_wrap=True)
    table.add_column("serves", overflow="fold", ratio=1)
    for task in tasks:
        found, estimate = task.found, task.estimate
        left = duration(task.seconds_left), gigabytes(estimate.memory_bytes), estimate.source or "–"
        table.add_row(
            Text(task.name),
            Text(found.name, style=STYLES.get(found.name, "")),
            f"{found.epoch}/{task.run.settings.epochs}",
            *(("", "", "") if task.over else left),
            "; ".join(task.run.serves),
        )
    console.print(table)
    if promised:
        console.print(claims_table(promised))
    console.print(summary(tasks, side_by_side), highlight=False, soft_wrap=True)


def claims_table(promised: Sequence[Promise]) -> Table:
    """Return a table with a row for each claim: its seeds in the grid, and the power at their last look."""
    table = Table(box=None, pad_edge=False, title_justify="left", title="\nWhat the grid can decide")
    for name in ("claim", "seeds", "judged at", "reproduced if the paper is true", "if there is no effect"):
        table.add_column(name, justify="left" if name == "claim" else "right")
    table.add_column("80 % at a true value of")
    table.add_column("seeds for 80 %", justify="right")
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
    text += f" Left: about {duration(3600 * sums['hours_left'])} of computing" if known else " Time left: not known"
    fewest, most = min(sums["side_by_side"].values()), max(sums["side_by_side"].values())
    if known and most > 1:
        abreast = f"{most}" if fewest == most else f"{fewest} to {most}"
        text += f", {duration(3600 * sums['hours_left_side_by_side'])} with {abreast} side by side"
    if 0 < known < left:
        text += f" for the {known} of {left} runs of which it can be told"
    return text + (f"; the largest known run takes {gigabytes(memory)} of memory." if memory else ".")
