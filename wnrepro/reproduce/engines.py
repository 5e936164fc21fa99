"""Where the grid's runs are computed: an engine starts them, tells of their events, and ends them.

`Local` has a process a run on this machine; `cluster.Cluster` has them on the nodes of a Ray cluster.
"""

import dataclasses
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from wnrepro.device import available_memory, choose_device, cores
from wnrepro.errors import UserError
from wnrepro.reproduce.drive import MEMORY_EACH
from wnrepro.reproduce.work import Event, Job, Process
from wnrepro.settings import SETTINGS


def jobs_on_cpus(processors: int, memory: int | None) -> int:
    """Runs side by side where the user does not say: one a processor, as far as there are MEMORY_EACH for each."""
    return max(1, min(processors, (memory or MEMORY_EACH) // MEMORY_EACH))


def threads(otherwise: int) -> int:
    """With how many threads each run computes: as OMP_NUM_THREADS says. Raises UserError where that is no number."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # more of them are of nested loops
    if given and not (given.isascii() and given.isdecimal() and len(given) < 5 and int(given) > 0):
        raise UserError(f"reproduce: OMP_NUM_THREADS={given[:20]} is no number; give one such as 2, or unset it")
    return int(given) if given else otherwise


def devices(name: str) -> list[str]:
    """The devices that `auto`, `cpu`, `cuda` or `cuda:N` stands for: of the first and third every GPU that is there.

    Raises UserError where there is none of that name.
    """
    chosen = choose_device(name)
    if chosen.type == "cuda" and chosen.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(chosen)]


def gpu_memory(devices: Sequence[str]) -> int:
    """Bytes of the smallest of these GPUs."""
    return min(torch.cuda.get_device_properties(device).total_memory for device in devices)


@dataclass(frozen=True)
class Running:
    """A run on its way: its process, the thread that hears it, and what it takes of its device."""

    process: Process
    listener: threading.Thread
    device: str
    share: Fraction


class Local:
    """Processes on this machine; on its GPUs, of each experiment so many on each.

    A run takes its share of a GPU: a half where two of its experiment fill it. jobs: so many at most in all. The next
    run on a GPU starts when the last one there has told of its progress: what cuDNN tries out at the beginning is then
    not timed beside another's, nor takes its memory at the same time.

    On a CPU each run computes with one thread, however many are side by side: sums over more threads have another order
    and other last bits, so that a seed would give other rows with every --jobs. OMP_NUM_THREADS gives all of them more.
    """

    stop_seconds = 3.0

    def __init__(self, devices: Sequence[str], jobs: int | None, per_gpu: Mapping[str, int]) -> None:
        on_gpus = devices[0] != "cpu"
        self.memory_bytes = None if on_gpus else available_memory()
        self.shares = {name: Fraction(1, per_gpu.get(name, 1)) if on_gpus else Fraction(0) for name in SETTINGS}
        if on_gpus:
            places = len(devices) * max(per_gpu.values(), default=1)
        else:
            places = jobs or jobs_on_cpus(cores(), self.memory_bytes)
        self.jobs = min(places, jobs or places)
        self.side_by_side = {
            name: min(self.jobs, len(devices) * per_gpu.get(name, 1)) if on_gpus else self.jobs for name in SETTINGS
        }
        self.threads = threads(max(1, cores() // self.jobs) if on_gpus else 1)
        self.devices = list(devices)
        self.running: dict[str, Running] = {}
        self.silent: set[str] = set()  # the runs on GPUs of which nothing was heard yet
        self.told: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()

    def used(self, device: str) -> Fraction:
        """The shares of this GPU that are taken."""
        return sum((one.share for one in list(self.running.values()) if one.device == device), Fraction(0))

    def open(self) -> list[str]:
        """The devices on which another run may start now, from the one of which most is free."""
        silent = {one.device for name, one in list(self.running.items()) if name in self.silent}
        return sorted((device for device in self.devices if device not in silent), key=self.used)

    def room(self, experiment: str) -> bool:
        """Whether a run of this experiment may start."""
        share = self.shares[experiment]
        return len(self.running) < self.jobs and any(self.used(device) + share <= 1 for device in self.open())

    def start(self, name: str, job: Job) -> None:
        """Start a run's process, on the GPU of which most is free."""
        device = self.open()[0]
        if device != "cpu":
            self.silent.add(name)
        process = Process(dataclasses.replace(job, device=device))

        def listen() -> None:
            for event in process.events():
                self.silent.discard(name)
                if event.outcome:
                    process.end()
                    del self.running[name]
                self.told.put((name, event))

        listener = threading.Thread(target=listen, daemon=True)
        self.running[name] = Running(process, listener, device, self.shares[job.experiment])
        listener.start()

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """What the runs have told since, after waiting for so many seconds at most."""
        told = []
        try:
            told.append(self.told.get(timeout=timeout))
            while True:
                told.append(self.told.get_nowait())
        except queue.Empty:
            return told

    def end(self, name: str) -> None:
        """End a run's process, which goes on from its last epoch another time; its place is free then."""
        if one := self.running.get(name):
            one.process.process.kill()
            one.listener.join()

    def stop(self) -> None:
        """End every process; the runs go on from their last epochs another time."""
        running = list(self.running.values())
        for one in running:
            one.process.process.kill()
        for one in running:
            one.listener.join()
