"""Computes the grid's runs, each in a separate process, on this machine; `cluster.Cluster` does on a Ray cluster."""

import dataclasses
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import torch

from wnrepro.device import available_memory, choose_device, cores
from wnrepro.errors import UserError
from wnrepro.reproduce.drive import MEMORY_EACH
from wnrepro.reproduce.work import Event, Job, Process
from wnrepro.settings import SETTINGS

END_SECONDS = 3.0  # that a run's process may take to end


def jobs_on_cpus(processors: int, memory: int | None) -> int:
    """Return the default of runs side by side: one a processor, as far as there are MEMORY_EACH for each."""
    return max(1, min(processors, (memory or MEMORY_EACH) // MEMORY_EACH))


def threads(otherwise: int) -> int:
    """Return the threads with which each run computes: OMP_NUM_THREADS. Raises UserError where that is no number."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # more of them are of nested loops
    if given and not (given.isascii() and given.isdecimal() and len(given) < 5 and int(given) > 0):
        raise UserError(f"reproduce: OMP_NUM_THREADS={given[:20]} is no number; give one such as 2, or unset it")
    return int(given) if given else otherwise


def devices(name: str) -> list[str]:
    """Return the devices that `auto`, `cpu`, `cuda` or `cuda:N` stands for: without a number, every GPU.

    Raises UserError where there is none of that name.
    """
    chosen = choose_device(name)
    if chosen.type == "cuda" and chosen.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]


def gpu_memory(devices: Sequence[str]) -> int:
    """Return the bytes of the smallest of these GPUs."""
    return min(torch.cuda.get_device_properties(device).total_memory for device in devices)


class Worker(Protocol):
    """What computes a run: a process here or on another machine."""

    def events(self) -> Iterator[Event]: ...
    def kill(self) -> None: ...


class Running(threading.Thread):
    """A run on its way: its worker, to which this thread listens, and what it takes of its device."""

    def __init__(self, name: str, worker: Worker, device: str, share: Fraction, told: "Told") -> None:
        super().__init__(name=name, daemon=True)
        self.worker, self.device, self.share, self.told = worker, device, share, told
        self.heard = False  # whether it has told anything yet

    def run(self) -> None:
        for event in self.worker.events():
            self.heard = True
            self.told.put((self, event))


Told = queue.SimpleQueue[tuple[Running, Event]]


class Engine:
    """Runs side by side, each known by its name: at most `jobs`, and on each GPU a limited number of each experiment.

    A run takes its share of a GPU: a half where two of its experiment fill it. The next run on a GPU starts when the
    last one there has told of its progress: what cuDNN tries out at the beginning is then not timed beside another's,
    nor takes its memory at the same time.
    """

    stop_seconds = END_SECONDS  # that `stop`, and what comes after it, may take

    def __init__(
        self,
        devices: Sequence[str],
        jobs: int,
        threads: int,
        per_gpu: Mapping[str, int] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """per_gpu: of each experiment, where runs have shares of the devices; memory_bytes: of all runs together."""
        self.devices, self.jobs, self.threads, self.memory_bytes = devices, jobs, threads, memory_bytes
        self.shares = {name: Fraction(1, each) for name, each in (per_gpu or {}).items()}
        self.running: dict[str, Running] = {}
        self.told: Told = queue.SimpleQueue()

    @property
    def side_by_side(self) -> dict[str, int]:
        """How many runs it takes at a time, by experiment."""
        places = {name: len(self.devices) * share.denominator for name, share in self.shares.items()}
        return {name: min(self.jobs, places.get(name, self.jobs)) for name in SETTINGS}

    def place(self, experiment: str) -> str | None:
        """Return the device on which a run of this experiment may start: that of which most is free."""
        used = dict.fromkeys(self.devices, Fraction(0))
        for run in self.running.values():
            used[run.device] += run.share if run.heard or not self.shares else 1
        device = min(self.devices, key=lambda device: used[device])
        fits = len(self.running) < self.jobs and used[device] + self.shares.get(experiment, 0) <= 1
        return device if fits else None

    def start(self, name: str, job: Job) -> None:
        """Start a run where it has a place."""
        device = self.place(job.run.experiment)
        assert device is not None
        worker = self.launch(dataclasses.replace(job, device=device))
        share = self.shares.get(job.run.experiment, Fraction(0))
        self.running[name] = Running(name, worker, device, share, self.told)
        self.running[name].start()

    def launch(self, job: Job) -> Worker:
        """Start what computes a run."""
        return Process(job)

    def event(self, timeout: float) -> tuple[str, Event] | None:
        """Return a run's next event, after waiting for at most this number of seconds; its last one frees its place."""
        try:
            run, event = self.told.get(timeout=timeout)
        except queue.Empty:
            return None
        if self.running.get(run.name) is not run:  # ended meanwhile
            return None
        if event.outcome:
            del self.running[run.name]
        return run.name, event

    def end(self, *names: str) -> None:
        """End these runs, which resume from their last epochs another time."""
        ended = [self.running.pop(name) for name in names]
        for run in ended:
            run.worker.kill()
        for run in ended:
            run.join(END_SECONDS)

    def stop(self) -> None:
        """End every run."""
        self.end(*self.running)


class Local(Engine):
    """Processes on this machine: on its GPUs, a limited number of each experiment on each, or on its processors.

    On a CPU each run computes with one thread, however many are side by side: sums over more threads have another order
    and other last bits, so that a seed would give other rows with every --jobs. OMP_NUM_THREADS gives all of them more.
    """

    def __init__(self, devices: Sequence[str], jobs: int | None, per_gpu: Mapping[str, int]) -> None:
        if devices[0] == "cpu":
            memory = available_memory()
            super().__init__(devices, jobs or jobs_on_cpus(cores(), memory), threads(1), memory_bytes=memory)
        else:
            places = len(devices) * max(per_gpu.values())
            jobs = min(places, jobs or places)
            super().__init__(devices, jobs, threads(max(1, cores() // jobs)), per_gpu)
