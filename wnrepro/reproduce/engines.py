"""Where the grid's runs are computed: an engine starts them, tells of their events, and ends them.

`Local` has a process a run on this machine; `cluster.Cluster` has them on the nodes of a Ray cluster.
"""

import dataclasses
import os
import queue
import threading
from collections.abc import Sequence

import torch

from wnrepro.reproduce.drive import MEMORY_EACH
from wnrepro.reproduce.work import Event, Job, Process
from wnrepro.training import available_memory, choose_device


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_on_cpus(processors: int, memory: int | None) -> int:
    """Runs side by side where the user does not say: one a processor, as far as there are MEMORY_EACH for each."""
    return max(1, min(processors, (memory or MEMORY_EACH) // MEMORY_EACH))


def devices(name: str) -> list[str]:
    """The devices that `auto`, `cpu`, `cuda` or `cuda:N` stands for: of the first and third every GPU that is there.

    Raises UserError where there is none of that name.
    """
    chosen = choose_device(name)
    if chosen.type == "cuda" and chosen.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]


class Local:
    """Processes on this machine; on its GPUs, so many on each."""

    def __init__(self, devices: Sequence[str], jobs: int | None, jobs_per_gpu: int) -> None:
        on_gpus = devices[0] != "cpu"
        self.memory_bytes = None if on_gpus else available_memory()
        if jobs is None:
            jobs = len(devices) * jobs_per_gpu if on_gpus else jobs_on_cpus(cores(), self.memory_bytes)
        self.jobs = jobs
        self.threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // jobs))
        self.free = [devices[k % len(devices)] for k in range(jobs)]  # a device for each run that may still start
        self.running: dict[str, Process] = {}
        self.told: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()

    def start(self, name: str, job: Job) -> None:
        """Start a run's process."""
        device = self.free.pop(0)
        process = self.running[name] = Process(dataclasses.replace(job, device=device))

        def listen() -> None:
            for event in process.events():
                if event.outcome:
                    process.end()
                    self.free.append(device)
                self.told.put((name, event))

        threading.Thread(target=listen, daemon=True).start()

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """What the runs have told since, after waiting for so many seconds at most."""
        told = []
        try:
            told.append(self.told.get(timeout=timeout))
            while True:
                told.append(self.told.get_nowait())
        except queue.Empty:
            return told

    def stop(self) -> None:
        """End every process; the runs go on from their last epochs another time."""
        for process in self.running.values():
            process.end()
