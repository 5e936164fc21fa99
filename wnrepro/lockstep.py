"""Several runs that train in one process, and compute the same step at the same time.

Each run executes in a thread, but only one thread computes at a time. It computes until it calls a captured function,
and then the next one does. Once all runs wait in such a call, a GPU computes the calls as one CUDA graph with a branch
for each run, if each could be captured; else one after another. Every run has its own states of torch's global
generators, so that it draws the random numbers that it draws alone. All calls on a GPU are in one thread, since cuBLAS
and cuDNN prepare themselves in each thread, which a capture would not allow.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import torch

from wnrepro import signals
from wnrepro.cuda_graphs import Captured, Graph, Tensors, here

T = TypeVar("T")
MOST_GRAPHS = 16  # with further combinations of functions, the runs compute one after another


class Abandoned(BaseException):
    """The other runs were interrupted, so that this one ends too."""


class Member(threading.Thread, Generic[T]):
    """A run's thread, its states of the global generators, and the call that it waits in.

    It computes between `resume` and the next call or the end, while the thread of `resume` waits.
    """

    def __init__(self, task: Callable[[], T], device: torch.device, together: int) -> None:
        super().__init__(daemon=True)
        self.task, self.device, self.together, self.result = task, device, together, Future[T]()
        self.turn, self.back = threading.Semaphore(0), threading.Event()  # of an event a second wait returns too
        self.call: tuple[Captured, Tensors] | None = None
        self.outputs: Tensors | None = None
        self.error: BaseException | None = None
        self.grad = True
        self.cpu_state = torch.get_rng_state()
        self.generator = None
        if device.type == "cuda":
            self.generator = default_generator(device).clone_state()
        self.start()

    def run(self) -> None:
        self.turn.acquire()
        here.meet, here.together = self.meet, self.together
        try:
            if self.error is not None:
                raise self.error
            self.result.set_result(self.task())
        except BaseException as error:
            self.result.set_exception(error)
        self.back.set()

    def meet(self, captured: Captured, inputs: Tensors) -> Tensors:
        """Wait until all runs wait in a call, and return this one's outputs."""
        self.call, self.outputs, self.grad = (captured, inputs), None, torch.is_grad_enabled()
        self.back.set()
        self.turn.acquire()
        if self.error is not None:
            raise self.error
        return captured.call(inputs) if self.outputs is None else self.outputs

    def resume(self) -> None:
        """Compute until the next call or the end. After an interruption, the next call ends the run."""
        with self.generators():
            self.back.clear()
            self.turn.release()
            try:
                self.back.wait()
            except BaseException:
                self.error = Abandoned()
                self.back.wait()
                raise

    @contextlib.contextmanager
    def generators(self) -> Iterator[None]:
        """Give the global generators this run's states within the block."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.cpu_state)
        shared = None
        if self.generator is not None:
            shared = default_generator(self.device).graphsafe_get_state()
            default_generator(self.device).graphsafe_set_state(self.generator)
        try:
            yield
        finally:
            self.cpu_state = torch.get_rng_state()
            torch.set_rng_state(before)
            if shared is not None:
                default_generator(self.device).graphsafe_set_state(shared)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute this run's call in another thread within the block: with its generators and gradient mode."""
        with self.generators(), torch.set_grad_enabled(self.grad):
            yield


def default_generator(device: torch.device) -> Any:
    """Return torch's global generator of a GPU."""
    torch.cuda.init()  # before it, there are none
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


class Lockstep:
    """Runs on one device that compute in turn, and their joint graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs: dict[Any, Graph] = {}

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[Future[T]]:
        """Execute the tasks, each in a thread, and return their results or exceptions.

        An exception in this thread, such as an interruption, ends every task at its next call of a captured function.
        """
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # each thread has its current GPU
        members: list[Member[T]] = []
        try:
            members.extend(Member(task, self.device, len(tasks)) for task in tasks)
            live = members
            while live:
                for member in live:
                    if member.call is None:  # it has not begun
                        signals.check()
                    member.resume()
                waiting = [member for member in live if not member.result.done()]
                if len(waiting) < len(live):
                    self.forget()
                live = waiting
                self.compute(live)
        except BaseException:
            for member in members:
                member.error = Abandoned()
                if not member.result.done():
                    member.resume()
                member.join()
            raise
        return [member.result for member in members]

    def forget(self) -> None:
        """Free the joint graphs, since a run has ended."""
        if self.graphs:
            torch.cuda.synchronize(self.device)
            self.graphs.clear()

    def compute(self, members: Sequence[Member[T]]) -> None:
        """Compute the calls in which these runs wait: as one graph, if there are several and each could be captured.

        Runs on a CPU compute their own.
        """
        calls = [member.call for member in members if member.call]
        if not all(captured.captures for captured, _ in calls):
            return
        branches, inputs = [captured.branch(given) for captured, given in calls], [given for _, given in calls]
        key = tuple(map(id, branches))
        known = key in self.graphs or len(self.graphs) < MOST_GRAPHS
        if len(calls) < 2 or not known or not all(branch.ready for branch in branches):
            for member, (captured, given) in zip(members, calls, strict=True):
                try:
                    with member.computing():
                        member.outputs = captured.call(given)
                except Exception as error:
                    member.error = error
            return
        try:
            if key not in self.graphs:
                contexts = [member.computing() for member in members]
                generators = [member.generator for member in members if member.generator is not None]
                self.graphs[key] = Graph(branches, inputs, contexts, generators)
            for member, outputs in zip(members, self.graphs[key].replay(inputs), strict=True):
                member.outputs = outputs
        except Exception as error:  # it belongs to every run
            for member in members:
                member.error = error
