"""Engines that compute each run in a separate process: `Local` on this machine, `cluster.Cluster` on a Ray cluster."""

import dataclasses
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from wnrepro.errors import UserError
from wnrepro.machine import available_memory, cores, may_be_gpu, processor
from wnrepro.reproduce.drive import MEMORY_EACH
from wnrepro.reproduce.work import Event, Job, Process
from wnrepro.settings import SETTINGS

END_SECONDS = 3.0  # limit for the end of a run's process


def jobs_on_cpus(processors: int, memory: int | None) -> int:
    """Return the default number of parallel runs: one per processor, if each can have MEMORY_EACH bytes."""
    return max(1, min(processors, (memory or MEMORY_EACH) // MEMORY_EACH))


def threads(default: int) -> int:
    """Return the number of threads of each run: OMP_NUM_THREADS, or the default. Raises UserError if it is invalid."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # further numbers are for nested loops
    if given and not (given.isascii() and given.isdecimal() and len(given) < 5 and int(given) > 0):
        raise UserError(f"OMP_NUM_THREADS={given[:20]} must be an integer above 0; change or unset it")
    return int(given) if given else default


def devices(name: str) -> list[str]:
    """Return the devices that `auto`, `cpu`, `cuda` (every GPU) or `cuda:N` stands for.

    Raises UserError if there is no such device. Imports torch only if there may be a GPU.
    """
    if not may_be_gpu(name):
        return ["cpu"]
    import torch

    from wnrepro.device import choose_device

    chosen = choose_device(name)
    if chosen.type == "cuda" and chosen.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]


def device_name(device: str, threads: int = 0) -> str:
    """Return the GPU's name, or the processor's name and the number of threads. Imports torch only for a GPU."""
    if device == "cpu":
        return processor(threads)
    import torch

    from wnrepro.runs import provenance

    return provenance.device_name(torch.device(device))


def gpu_memory(devices: Sequence[str]) -> int:
    """Return the memory in bytes of the smallest of these GPUs."""
    import torch

    return min(torch.cuda.get_device_properties(device).total_memory for device in devices)


class Worker(Protocol):
    """A process that computes a run, here or on another machine."""

    def events(self) -> Iterator[Event]: ...
    def end(self) -> None: ...
    def save(self) -> None: ...
    def kill(self) -> None: ...


class Running(threading.Thread):
    """A run in progress: a thread that queues its worker's events, and the run's share of its device."""

    def __init__(self, name: str, worker: Worker, device: str, share: Fraction, events: "Events") -> None:
        super().__init__(name=name, daemon=True)
        self.worker, self.device, self.share, self.events = worker, device, share, events
        self.has_reported = False  # whether any event has arrived

    def run(self) -> None:
        try:
            for event in self.worker.events():
                self.has_reported = True
                self.events.put((self, event))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.events.put((self, Event(text=text, outcome="failed", traceback=traceback.format_exc())))


Events = queue.SimpleQueue[tuple[Running, Event]]


class Engine:
    """At most `jobs` parallel runs, identified by name, and on each GPU a limited number of each experiment.

    A run takes a share of a GPU: a half if two runs of its experiment fill it. The next run on a GPU starts after the
    last one there has reported progress. Thus cuDNN's trials of algorithms, at the start of a run, are not timed beside
    another run's and do not use memory at the same time.
    """

    stop_seconds = END_SECONDS  # limit for `stop` and all that follows it

    def __init__(
        self,
        devices: Sequence[str],
        jobs: int,
        threads: int,
        per_gpu: Mapping[str, int] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Start with no runs. per_gpu: runs that fill a GPU, by experiment; memory_bytes: for all runs together."""
        self.devices, self.jobs, self.threads, self.memory_bytes = devices, jobs, threads, memory_bytes
        self.shares = {name: Fraction(1, each) for name, each in (per_gpu or {}).items()}
        self.running: dict[str, Running] = {}
        self.events: Events = queue.SimpleQueue()

    @property
    def side_by_side(self) -> dict[str, int]:
        """The number of runs that it computes at a time, by experiment."""
        places = {name: len(self.devices) * share.denominator for name, share in self.shares.items()}
        return {name: min(self.jobs, places.get(name, self.jobs)) for name in SETTINGS}

    def place(self, experiment: str) -> str | None:
        """Return the device with the most room, or None if a run of this experiment may not start there."""
        if len(self.running) >= self.jobs:
            return None
        used = dict.fromkeys(self.devices, Fraction(0))
        for run in self.running.values():
            used[run.device] += run.share if run.has_reported or not self.shares else 1
        device = min(self.devices, key=lambda device: used[device])
        return device if used[device] + self.shares.get(experiment, 0) <= 1 else None

    def start(self, name: str, job: Job) -> None:
        """Start a run on the device from `place`."""
        device = self.place(job.run.experiment)
        assert device is not None
        worker = self.launch(dataclasses.replace(job, device=device))
        share = self.shares.get(job.run.experiment, Fraction(0))
        self.running[name] = Running(name, worker, device, share, self.events)
        self.running[name].start()

    def launch(self, job: Job) -> Worker:
        """Start the worker of a run. Only Linux's libraries are known to compute after a fork."""
        return Process(job, forks=job.device == "cpu" and sys.platform == "linux")

    def event(self, timeout: float) -> tuple[str, Event] | None:
        """Return the next event and its run's name, or None after `timeout` seconds. A last event frees the place."""
        try:
            run, event = self.events.get(timeout=timeout)
        except queue.Empty:
            return None
        if self.running.get(run.name) is not run:  # ended meanwhile
            return None
        if event.outcome:
            del self.running[run.name]
        return run.name, event

    def end(self, *names: str) -> None:
        """Kill these runs, which can resume from their last checkpoints later."""
        ended = [self.running.pop(name) for name in names]
        for run in ended:
            run.worker.kill()
        until = time.monotonic() + END_SECONDS
        for run in ended:
            run.join(max(0.0, until - time.monotonic()))

    def pause(self, name: str) -> None:
        """Let this run write a checkpoint and end, with a last event `lost`."""
        self.running[name].worker.end()

    def save(self) -> None:
        """Let every run that has begun write a checkpoint."""
        for run in self.running.values():
            if run.has_reported:
                run.worker.save()

    def stop(self, seconds: float = END_SECONDS / 2) -> None:
        """End every run, and give them this time to write a checkpoint."""
        until = time.monotonic() + seconds
        try:
            for run in self.running.values():
                run.worker.end()
            for run in self.running.values():
                run.join(max(0.0, until - time.monotonic()))
        finally:
            self.end(*self.running)


class Local(Engine):
    """Processes on this machine, on its GPUs or its processors.

    On a CPU each run computes with one thread, for any number of jobs. Sums over more threads have another order and
    other last bits, so a seed would give other rows for every --jobs. OMP_NUM_THREADS gives all runs more threads.
    """

    def __init__(self, devices: Sequence[str], jobs: int | None, per_gpu: Mapping[str, int]) -> None:
        if devices[0] == "mps":
            super().__init__(devices, jobs or 1, threads(cores()))
        elif devices[0] == "cpu":
            memory = available_memory()
            super().__init__(devices, jobs or jobs_on_cpus(cores(), memory), threads(1), memory_bytes=memory)
        else:
            places = len(devices) * max(per_gpu.values())
            jobs = min(places, jobs or places)
            super().__init__(devices, jobs, threads(max(1, cores() // jobs)), per_gpu)
