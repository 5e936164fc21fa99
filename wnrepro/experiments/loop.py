"""The training loop of every experiment: epochs, data order, progress, divergence, state.

`train()` yields rows and never opens a file. An experiment adds its data and model, and defines `step` (an
update on a minibatch) and `evaluate`.
"""

import abc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from wnrepro import signals
from wnrepro.compiling import Compilation, cache_fault
from wnrepro.cuda_graphs import Captured
from wnrepro.device import image_format, keep_memory, set_precision
from wnrepro.events import Epoch, Note, Progress
from wnrepro.experiments.measurements import first_non_finite, identity_residuals, layer_rows
from wnrepro.optim import PolyakAverage
from wnrepro.parameterization import bound_v_norm, updated
from wnrepro.runs import warm_start
from wnrepro.settings import Settings

S = TypeVar("S", bound=Settings)
E = TypeVar("E", bound="Experiment[Any]")
Rows = list[dict[str, Any]]  # the rows of a table
PROGRESS_EVERY = 5  # minibatches between two Progress events
TEST_BATCH = 500
COMPARED = 100  # inputs on which an exported model is compared


def to_rows(images: Shaped[Tensor, "N C H W"], device: torch.device) -> Shaped[Tensor, "N H W C"]:
    """Move images to the device, in the format from which `minibatch` makes channels_last images without a copy."""
    return images.permute(0, 2, 3, 1).contiguous().to(device)


def minibatch(rows: Shaped[Tensor, "N H W C"], index: Int[Tensor, " B"]) -> Shaped[Tensor, "B C H W"]:
    """Return the images with these indices, in the device's format."""
    return rows[index].permute(0, 3, 1, 2).contiguous(memory_format=image_format(rows.device))


@dataclass
class Within:
    """An epoch in progress.

    epoch: the number of completed epochs; tables: the rows of epoch 0; began: when it began, by
    time.perf_counter, without the time between a stop and a resume; order: the order of the examples; logged: the
    results of `step` so far.
    """

    epoch: int
    tables: dict[str, Rows]
    began: float
    order: Tensor | None = None
    logged: list[Tensor] = field(default_factory=list)


class Exported(NamedTuple):
    """A model of plain layers for export, with the outputs that the run's own network has for some inputs.

    names: the names of the input and the output.
    """

    model: nn.Module
    inputs: Tensor
    expected: Tensor
    names: tuple[str, str]


class Experiment(abc.ABC, Generic[S]):
    """An experiment with its settings and data; `train` runs it, and `load_state_dict` resumes it.

    A subclass sets `net`, `optimizer`, `train_x`, `test_x` and, if it averages parameters, `average`.

    facts: facts about the run for run.json: number of parameters, residuals of the identities and more.
    logged: results of `step` in this epoch, (values, minibatches); the first value is the loss or bound, in nats.
    within: the epoch in progress; None between epochs.
    log_steps: the number of updates between two rows of steps.csv; None: no rows.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    train_x: Tensor
    test_x: Tensor
    logged: Tensor
    objective = "loss"  # or "bound": the first value of a step
    limit: float  # limit of an epoch's median loss or bound, beyond which training has diverged

    def __init__(self, settings: S, device: torch.device) -> None:
        """Seed torch's global generators with `settings.seed`."""
        set_precision(settings.precision, device)
        cache_fault()
        if device.type == "cpu":
            keep_memory()
        self.settings, self.device = settings, device
        self.epoch, self.weights_only = 0, False
        self.within: Within | None = None
        self.log_steps: int | None = None
        self.average: PolyakAverage | None = None
        self.compilation: Compilation | None = None
        self.facts: dict[str, Any] = {}
        self.captured_step = Captured(self.step, device)
        torch.manual_seed(settings.seed)
        self.order = torch.Generator().manual_seed(settings.seed)

    # Methods to define or override in an experiment.

    @classmethod
    @abc.abstractmethod
    def load(cls: type[E], settings: Any, data_dir: Path | None, device: torch.device) -> E:
        """Create the experiment on its settings' data. Raises UserError if the data are missing."""

    @classmethod
    def on_noise(cls: type[E], settings: Any, device: torch.device) -> E:
        """Create the experiment on at least 20 minibatches of random data, for `train_once` in benchmarks."""
        return cls.load(settings, None, device).ready()

    @abc.abstractmethod
    def step(self, index: Tensor, /) -> tuple[Tensor, ...]:
        """Train on the examples of this index (B,), and return the values to log, each (), the objective first."""

    @abc.abstractmethod
    def evaluate(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        """Compute the metrics of the last epoch, without epoch and seconds, and the rows of other tables."""

    def initialize(self, index: Tensor) -> Rows:
        """Run the data-dependent init on the examples of this index (B,), and return the rows of init.csv."""
        return []

    def schedule(self) -> None:
        """Set the learning rate for the next epoch."""

    def measure(self) -> dict[str, Rows]:
        """Measure rows of other tables after an epoch that has not diverged; its seconds do not include this."""
        return {}

    # The loop.

    def train(self) -> Iterator[Progress | Epoch | Note]:
        """Train from the current epoch to the last, and yield an Epoch after each and Progress in between.

        Training ends as diverged if the objective is beyond its limit or a part of the state is not finite.
        """
        yield from self.begin()
        columns = self.settings.models[self.part].metrics
        while self.epoch < self.settings.epochs:
            self.within = within = self.within or self.open_epoch()
            self.schedule()
            self.epoch += 1
            refused = self.compilation.refused if self.compilation else ""
            for done in self.train_epoch():
                yield Progress(self.epoch, done, self.epoch_size)
            if self.compilation and self.compilation.refused != refused:
                self.facts |= self.compilation.facts
                yield from self.compilation.notes
            metrics, further = self.evaluate()
            metrics |= {"epoch": self.epoch, "seconds": round(time.perf_counter() - within.began, 3)}
            if self.log_steps:
                rate = {name: metrics[name] for name in ("lr",) if name in metrics}
                further["steps"] = [row | rate for row in self.step_rows(self.log_steps)]
            further["layers"] = layer_rows(self.net, self.epoch)
            diverged = self.divergence(metrics) or first_non_finite(self.net, self.optimizer, further["layers"])
            if not diverged:
                further |= self.measure()
            tables = within.tables
            for name, rows in further.items():
                tables[name] = tables.get(name, []) + rows
            self.within = None
            yield Epoch(self.epoch, {name: metrics[name] for name in columns}, tables, diverged)
            if diverged:
                return

    @property
    def part(self) -> str | None:
        """The data set or game, if the experiment has several."""
        return getattr(self.settings, self.settings.part) if self.settings.part else None

    @property
    def epoch_size(self) -> int:
        """The number of examples in an epoch, those of all full minibatches."""
        return len(self.train_x) // self.settings.batch_size * self.settings.batch_size

    def begin(self) -> Iterator[Note]:
        """Prepare for training, at the start and after a resume, and yield notes."""
        yield from self.compilation.notes if self.compilation else ()

    def open_epoch(self) -> Within:
        """Begin the next epoch; the first one includes the init and the rows of epoch 0."""
        began, tables = time.perf_counter(), dict[str, Rows]()
        if self.epoch == 0:
            tables = self.start() | {"layers": layer_rows(self.net, 0)}
            self.facts |= identity_residuals(self.settings.seed)
        return Within(self.epoch, tables, began)

    def start(self) -> dict[str, Rows]:
        """Run the init on the first examples of the first epoch, and return the rows of epoch 0."""
        order = torch.randperm(len(self.train_x), generator=self.order.clone_state())
        return {"init": self.first_weights(order[: getattr(self.settings, "init_examples", 0)].to(self.device))}

    def first_weights(self, examples: Tensor) -> Rows:
        """Run the init on these examples and return its rows, or take the weights of another run."""
        if (name := getattr(self.settings, "init_from", None)) is None:
            return self.initialize(examples)
        source = warm_start.source(name)
        self.take_weights(source.weights)
        self.facts["init_from"] = f"{source.run.name}/seed-{source.run.settings.seed}, epoch {source.epoch}"
        return []

    def take_weights(self, weights: dict[str, Tensor]) -> None:
        """Set the weights that training starts from."""
        self.net.load_state_dict(weights)

    def train_epoch(self) -> Iterator[int]:
        """Train on all full minibatches in a new random order, and yield the number of examples done.

        A resumed epoch continues after its last minibatch.
        """
        assert self.within is not None
        batch_size, logged = self.settings.batch_size, self.within.logged
        if self.within.order is None:
            self.within.order = torch.randperm(len(self.train_x), generator=self.order)
        order = self.within.order.to(self.device)
        self.net.train()
        for start in range(len(logged) * batch_size, self.epoch_size, batch_size):
            logged.append(torch.stack(self.captured_step(order[start : start + batch_size])))
            if len(logged) % PROGRESS_EVERY == 0 or signals.wanted():
                yield len(logged) * batch_size
        self.logged = torch.stack(logged, 1)

    @property
    def saves_within_epochs(self) -> bool:
        """Whether `state_dict` is complete between two minibatches; it is not if a subclass overrides `train_epoch`."""
        return type(self).train_epoch is Experiment.train_epoch

    def step_rows(self, every: int) -> Rows:
        """Return the epoch's rows of steps.csv: the objective of every `every`-th update, in nats."""
        name = "loss" if self.objective == "loss" else "bound_nats"
        values = enumerate(self.logged[0].tolist(), start=1 + (self.epoch - 1) * self.logged.shape[1])
        return [{"epoch": self.epoch, "update": k, name: value} for k, value in values if k % every == 0]

    def divergence(self, metrics: dict[str, Any]) -> str:
        """Return a sentence on how the epoch's objective has diverged, or an empty string if it has not.

        The median is used because every run starts with a few steps of high loss.
        """
        typical, sign = self.logged[0].median().item(), 1 if self.objective == "loss" else -1
        if self.logged[0].isfinite().all() and sign * typical <= sign * self.limit:
            return ""
        return (
            f"median training {self.objective} {typical:.3g} nats in epoch {self.epoch}; the limit is {self.limit:.3g}"
        )

    def optimize(self, loss: Tensor) -> None:
        """Update the parameters with the gradient of a loss ()."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if (v_norm_max := getattr(self.settings, "v_norm_max", None)) is not None:
            bound_v_norm(self.net, v_norm_max)
        updated(self.net)
        if self.average is not None:
            self.average.update_parameters(self.net)

    def ready(self: E) -> E:
        """Run the init on the first examples, in preparation for `train_once`."""
        self.initialize(torch.arange(getattr(self.settings, "init_examples", 0), device=self.device))
        self.net.train()
        return self

    def train_once(self) -> Tensor:
        """Train on a random minibatch, and return the objective ()."""
        index = torch.randperm(len(self.train_x), generator=self.order)[: self.settings.batch_size]
        return self.captured_step(index.to(self.device))[0]

    def test_batches(self) -> Iterator[Tensor]:
        """Yield minibatches of indices (B,) of all test examples. A waiting signal ends the test."""
        for index in torch.arange(len(self.test_x), device=self.device).split(TEST_BATCH):
            signals.check()
            yield index

    def describe(self, source: str) -> None:
        """Initialize `facts` with facts about the data and the model."""
        self.facts = {"data": source, "parameters": sum(p.numel() for p in self.net.parameters())}
        self.facts |= self.compilation.facts if self.compilation else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resume, without torch's global generators."""
        state: dict[str, Any] = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {} if self.average is None else {"average": self.average.state_dict()}
        state |= {"order": self.order.get_state(), "facts": self.facts}
        if self.within is None:
            return state | {"epoch": self.epoch}
        now, logged = self.within, torch.stack(self.within.logged, 1)
        within = {"epoch": now.epoch, "tables": now.tables, "order": now.order, "logged": logged}
        within["seconds"] = time.perf_counter() - now.began
        return state | {"within": within}  # earlier versions refuse it, for it has no `epoch`

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        facts = {name: fact for name, fact in state["facts"].items() if name != "not_compiled"}
        self.facts = facts | (self.compilation.facts if self.compilation else {})
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if "order" in state:  # dqn's checkpoints of earlier versions have none
            self.order.set_state(state["order"])
        self.within = None
        if within := state.get("within"):
            began, logged = time.perf_counter() - within["seconds"], within["logged"].to(self.device)
            self.within = Within(within["epoch"], within["tables"], began, within["order"], list(logged.unbind(1)))
        self.epoch = (within or state)["epoch"]

    def load_weights(self, weights: dict[str, Tensor], epoch: int) -> None:
        """Restore only the weights that tests use, after this epoch."""
        self.epoch, self.weights_only = epoch, True
        self.net.load_state_dict(weights)
        if self.average is not None:
            self.average.module.load_state_dict(weights)
