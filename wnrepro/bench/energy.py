"""The energy that a device uses, if it counts it: an NVIDIA GPU for NVML, a processor for RAPL under Linux."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3  # joules in a unit of RAPL and of NVML


@dataclass(frozen=True)
class Counter:
    """A counter of energy. joules: of one unit; wraps: the units after which it restarts at 0 (None: never)."""

    read: Callable[[], int]
    joules: float
    wraps: int | None = None


@dataclass(frozen=True)
class Meter:
    """The counters of a device. name: what they cover; missing: why there are none."""

    name: str = ""
    counters: Sequence[Counter] = ()
    missing: str = ""

    def read(self) -> list[int]:
        """Return the state of each counter, in its units."""
        return [counter.read() for counter in self.counters]

    def joules_since(self, before: Sequence[int]) -> float:
        """Return the joules since the counters had this state, if none has wrapped more than once."""
        pairs = [(counter, counter.read() - then) for counter, then in zip(self.counters, before, strict=True)]
        return sum(c.joules * (units % c.wraps if c.wraps else units) for c, units in pairs)


def find_meter(device: torch.device) -> Meter:
    """Return the energy counters of a device."""
    if device.type == "cuda":
        return nvml(device)
    return rapl(POWERCAP) if device.type == "cpu" else Meter(missing=f"{device.type} has no counter")


def rapl(folder: Path) -> Meter:
    """Return the counters of all processor packages below /sys/class/powercap."""
    counters = []
    try:
        for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's too; intel-rapl:0:0 is a part of intel-rapl:0
            if re.fullmatch(r"intel-rapl:\d+", zone.name) and (zone / "name").read_text().startswith("package"):
                read = functools.partial(_number, zone / "energy_uj")
                read()
                counters.append(Counter(read, MICRO, _number(zone / "max_energy_range_uj") + 1))
    except PermissionError as error:
        return Meter(missing=f"only root may read {error.filename}")
    except (OSError, ValueError) as error:
        return Meter(missing=f"RAPL's counters cannot be read ({error})")
    if not counters:
        return Meter(missing=f"{folder} has no RAPL counter of a processor")
    return Meter("RAPL, processor packages without memory", counters)


def nvml(device: torch.device) -> Meter:
    """Return the counter of an NVIDIA GPU."""
    try:
        import pynvml
    except ImportError:
        return Meter(missing="nvidia-ml-py is not installed (`pip install nvidia-ml-py` adds it)")
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        read = functools.partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        read()
    except pynvml.NVMLError as error:
        return Meter(missing=f"NVML does not tell ({error})")
    return Meter("NVML, the whole GPU", [Counter(read, MILLI)])


def _number(path: Path) -> int:
    return int(path.read_text())
