"""Step times of the parameterizations, a plain PyTorch loop and public programs, interleaved in one benchmark.

Every contender has its own process. A round times one training step of each, in a new random order. Ratios are paired
within the round; the result is the median ratio, its interval and n. Every round also times a large matrix product and
a copy, which give the device's limits. A step's floor is the time of its FLOPs at the speed of that product.

A step of DQN is `update_every` agent steps and their update. For wn and the plain loop, its parts are timed too:
emulation, acting and learning. Its floor is the floor of learning.
"""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import multiprocessing
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test

from wnrepro.bench.counting import COPIED_BYTES, COPY, PRODUCT, PRODUCT_SIZE, WHOLE, Step, Steps, ceilings, count_work
from wnrepro.bench.energy import Meter, find_meter
from wnrepro.bench.ours import AGENT_STEPS, LEARNING, our_steps
from wnrepro.bench.plain import plain_steps
from wnrepro.bench.public import missing, public_steps
from wnrepro.compiling import cache_fault
from wnrepro.custom import use
from wnrepro.device import set_precision
from wnrepro.experiments.atari import Replay
from wnrepro.experiments.dqn import Dqn, replay_device
from wnrepro.lockstep import Lockstep
from wnrepro.machine import available_memory
from wnrepro.mps import mps
from wnrepro.runs.directory import now, read_json, write_json
from wnrepro.runs.provenance import peak_memory_bytes, provenance
from wnrepro.settings import PARAMS, PRECISIONS, DqnSettings, Settings, Source, about

WARM_UP_STEPS = {"cpu": 1, "mps": 5, "cuda": 5}  # after the counted step; on a GPU the first steps are not yet a graph
PLAIN = "plain wn"
BASE = PARAMS[0]  # the denominator of the ratios
SEEDS = (1, 2, 4, 8)  # numbers of runs at a time
SEEDS_SECONDS = 5.0  # shortest duration of a measurement of several runs
CONTEXT_BYTES = 10**9  # GPU memory that a process needs besides its tensors
FULL_REPLAY = DqnSettings.replay_steps
SPARE_BYTES = 2 * 10**9  # memory that a run of DQN needs besides its replay
STEPS_TOGETHER = {"cpu": 1, "mps": 20, "cuda": 20}  # steps between two waits for the device, as in training

Show = Callable[[str], None]
Prepare = Callable[[Any, torch.device], tuple[dict[str, Step], dict[str, Any]]]  # steps to time, facts


def fast_precisions(device: torch.device) -> list[str]:
    """Return the precisions for which the device has hardware multiplication."""
    if device.type == "cuda":
        return list(PRECISIONS)
    if device.type == "mps":
        return ["fp32"]
    return ["fp32", "bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["fp32"]


def left_out(names: Sequence[str], wanted: Sequence[str], precisions: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each thing that is not timed here. names: experiments; wanted: precisions on request."""
    if not wanted and "bf16" not in precisions:
        yield "bf16 is not timed: this processor has no bf16 instructions (--precision bf16 times it anyway)"
    yield from filter(None, map(missing, names))


# ------------------------------------------------------------------------------- contenders


def step_seconds(step: Step, device: torch.device, at_least: float = 0.0) -> float:
    """Measure the mean seconds of a step, with the device's work, over STEPS_TOGETHER steps and `at_least` seconds."""
    waits: dict[str, Callable[[], None]] = {
        "cuda": functools.partial(torch.cuda.synchronize, device),
        "mps": torch.mps.synchronize,
    }
    wait = waits.get(device.type, lambda: None)
    wait()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < at_least:
        for _ in range(STEPS_TOGETHER[device.type]):
            step()
        count += STEPS_TOGETHER[device.type]
        wait()
    return (time.perf_counter() - began) / count


def prepare(
    make: Callable[[Any, torch.device], Steps], settings: Settings, device: torch.device
) -> tuple[dict[str, Step], dict[str, Any]]:
    """Make a contender's steps, count the work of an update, and warm up."""
    steps = make(settings, device)
    facts: dict[str, Any] = {"updates": steps.updates}
    if steps.counted:
        with torch.compiler.set_stance("force_eager"):  # compiled operations could not be counted
            facts["work"] = count_work(steps.counted)
    for step in steps.timed.values():
        for _ in range(WARM_UP_STEPS[device.type]):
            step_seconds(step, device)
    return steps.timed, facts


def run_contender(
    pipe: Any, prepare: Prepare, settings: Settings, device: torch.device, threads: int, source: Source | None
) -> None:
    """Run a contender in its process: prepare, send the steps' names and the facts, then time steps on request.

    The answer to a request (step, seconds, threads) is the time of a step and the peak memory. None ends the process.
    """
    torch.set_num_threads(threads)
    set_precision(settings.precision, device)
    cache_fault()
    if source is not None:
        use(source, tried=True)
    steps, facts = prepare(settings, device)
    pipe.send((list(steps), facts))
    while asked := pipe.recv():
        part, at_least, threads = asked
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        pipe.send((step_seconds(steps[part], device, at_least), peak_memory_bytes(device)))


class Contender:
    """The main process's handle of a contender's process."""

    def __init__(self, prepare: Prepare, settings: Settings, device: torch.device, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.settings, self.parts, self.facts, self.memory_bytes = settings, list[str](), dict[str, Any](), 0
        arguments = (theirs, prepare, settings, device, threads, about(settings.param).source)
        self.process = context.Process(target=run_contender, args=arguments, daemon=True)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits it: Ctrl-C is for `leave`
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()  # so that reading raises EOFError after the process has ended

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is prepared, and return whether it was in time. Raises EOFError if the process died."""
        if prepared := self.pipe.poll(seconds):
            self.parts, self.facts = self.pipe.recv()
        return prepared

    def ask(self, part: str, at_least: float = 0.0, threads: int | None = None) -> None:
        """Request the time of a step, computed with this number of threads; None: the last one."""
        self.pipe.send((part, at_least, threads))

    def answer(self) -> float:
        """Return the seconds per step of the requested part."""
        seconds, self.memory_bytes = self.pipe.recv()
        return float(seconds)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join()

    def leave(self, error: type[BaseException] | None, *_: object) -> None:
        """End the process, after an error at once."""
        if error is not None:
            self.process.terminate()
        self.end()


@contextlib.contextmanager
def contenders(
    entrants: dict[str, tuple[Prepare, Settings]], device: torch.device, threads: int, show: Show, at_once: bool = False
) -> Iterator[dict[str, Contender]]:
    """Start and prepare a process for each entrant, one after another or all at once, and end them after the block.

    One after another, a public program whose process dies is left out. Raises EOFError if another one dies.
    """
    with contextlib.ExitStack() as ending:
        started = {}
        for name, (prepare, settings) in entrants.items():
            show(f"warming up {name}")
            started[name] = Contender(prepare, settings, device, threads)
            ending.push(started[name].leave)
            if at_once:
                continue
            try:
                started[name].wait()
            except EOFError:
                if name not in public_steps(settings.name):
                    raise
                del started[name]
        if at_once:
            for contender in started.values():
                contender.wait()
        yield started


# ------------------------------------------------------------------------------- a measurement


def median_interval(values: np.ndarray) -> dict[str, float]:
    """Compute the median and its 95 % interval from order statistics, or from the extremes if n is small."""
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    low, high = (
        float(np.nan_to_num(x, nan=edge)) for x, edge in zip(interval, (values.min(), values.max()), strict=True)
    )
    return {"median": float(np.median(values)), "low": low, "high": high, "n": len(values)}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Compute the `median_interval` of the paired ratios."""
    return median_interval(np.array(over) / np.array(under))


def measure(
    device: torch.device,
    precisions: list[str],
    rounds: int,
    settings: Settings,
    show: Show,
    params: Sequence[str] = PARAMS,
) -> dict[str, Any]:
    """Time `rounds` steps of each contender and show progress. For DQN, measure the memory of a full replay too.

    `params`, BASE and the settings' parameterization are timed in the settings' precision, or in the first of
    `precisions` if it is not among them. The settings' parameterization and the plain loop are timed in all precisions.
    """
    params = list(dict.fromkeys([BASE, *params, settings.param]))
    precisions = [precision for precision in PRECISIONS if precision in precisions]
    main = settings.precision if settings.precision in precisions else precisions[0]
    labels = {precision: "" if precision == "fp32" else f" {precision}" for precision in precisions}
    ours, plain, limits = (functools.partial(prepare, make) for make in (our_steps, plain_steps, ceilings))
    entrants: dict[str, tuple[Prepare, Settings]] = {}
    for precision in precisions:
        here = dataclasses.replace(settings, precision=precision)
        for param in params if precision == main else [settings.param]:
            entrants[param + labels[precision]] = ours, dataclasses.replace(here, param=param)
        entrants[PLAIN + labels[precision]] = plain, here
        entrants[f"ceilings {precision}"] = limits, here
    public = public_steps(settings.name) if "fp32" in precisions else {}
    for name, make in public.items():
        entrants[name] = functools.partial(prepare, make), dataclasses.replace(settings, precision="fp32")
    meter = find_meter(device)
    with contenders(entrants, device, torch.get_num_threads(), show) as running:
        seconds, spent = time_rounds(running, rounds, settings.param, meter, show)
    updates = running[PLAIN + labels[main]].facts["updates"]

    flops = 2 * PRODUCT_SIZE[device.type] ** 3
    flops_per_second = {
        precision: median_interval(flops / np.array(seconds[f"ceilings {precision}", PRODUCT]))
        for precision in precisions
    }
    bytes_per_second = median_interval(2 * COPIED_BYTES / np.array(seconds[f"ceilings {precisions[0]}", COPY]))
    peaks = {"flops_per_second": flops_per_second, "bytes_per_second": bytes_per_second}
    times: dict[str, list[float]] = {}
    joules: dict[str, float] = {}
    memory: dict[str, int] = {}
    work: dict[str, dict[str, float]] = {}
    for (name, part), values in seconds.items():
        if part in (PRODUCT, COPY):
            continue
        contender, entry = running[name], name if part == WHOLE else f"{name}, {part}"
        times[entry] = [value / updates for value in values]
        joules[entry] = spent[name, part] / (rounds * STEPS_TOGETHER[device.type] * updates)
        memory[name] = contender.memory_bytes
        if part == (LEARNING if LEARNING in contender.parts else WHOLE):
            typical = float(np.median(times[entry]))
            work[entry] = compare_work(peaks, contender.settings.precision, contender.facts["work"], typical)
    ours_in = [settings.param + label for label in labels.values()]
    ratios = {
        f"{theirs} / {entry}": ratio(times[theirs], times[entry])
        for theirs in (PLAIN, *public)
        for entry in ours_in
        if theirs in times
    }
    for param in params[1:]:
        ratios[f"{param} / {BASE}"] = ratio(times[param + labels[main]], times[BASE + labels[main]])
    one = settings.param + labels[main]
    rates, joules_each = side_by_side(running[one].settings, device, memory[one], meter, show)
    in_one = lockstep(running[one].settings, device, memory[one], show) if device.type == "cuda" else ({}, {})
    figures = {
        "rounds": rounds,
        "precision": main,
        "batch_size": settings.batch_size,
        "step": "an update",
        "seconds": times,
        "unit": settings.unit,
        "per_second": {
            entry: median_interval(settings.step_size / np.array(values)) for entry, values in times.items()
        },
        "ratios": ratios,
        "ceilings": peaks,
        "work": work,
        "memory": memory,
        "side_by_side": {count: updates * rate for count, rate in rates.items()},
        "lockstep": in_one[0],
        "energy": {"left_out": meter.missing},
        "left_out": sorted(public.keys() - running.keys()),
    }
    if meter.counters:
        side = {count: value / updates for count, value in joules_each.items()}
        figures["energy"] = {"counter": meter.name, "joules": joules, "side_by_side": side, "lockstep": in_one[1]}
    if isinstance(settings, DqnSettings):
        figures["step"] = f"{settings.update_every} agent steps and their update, or one part of these"
        show("filling the replay")
        figures["replay_memory"] = full_replay_memory(settings, device)
    return figures


def time_rounds(
    running: dict[str, Contender], rounds: int, param: str, meter: Meter, show: Show
) -> tuple[dict[tuple[str, str], list[float]], dict[tuple[str, str], float]]:
    """Time every contender's steps. Return the seconds and the sum of joules by contender and step.

    Parts are timed only for `param`.
    """
    seconds: dict[tuple[str, str], list[float]] = {
        (name, part): []
        for name, contender in running.items()
        for part in contender.parts
        if part == WHOLE or contender.settings.param == param
    }
    joules = dict.fromkeys(seconds, 0.0)
    order, entries = np.random.default_rng(0), list(seconds)
    for number in range(rounds):
        show(f"round {number + 1} of {rounds}")
        for k in order.permutation(len(entries)):
            name, part = entries[k]
            before = meter.read()
            running[name].ask(part)
            seconds[name, part].append(running[name].answer())
            joules[name, part] += meter.joules_since(before)
    return seconds, joules


def compare_work(peaks: dict[str, Any], precision: str, work: dict[str, int], seconds: float) -> dict[str, float]:
    """Compare the work and speed of a step of this duration with the device's limits.

    The floor is the time of its FLOPs at the speed of the large product. The distance is the step's time over it.
    """
    flops_limit = peaks["flops_per_second"][precision]["median"]
    flops_per_second, bytes_per_second = work["flops"] / seconds, work["bytes"] / seconds
    return {
        **work,
        "floor_seconds": work["flops"] / flops_limit,
        "distance": flops_limit / flops_per_second,
        "flops_per_second": flops_per_second,
        "flops_share": flops_per_second / flops_limit,
        "bytes_per_second": bytes_per_second,
        "bytes_share": bytes_per_second / peaks["bytes_per_second"]["median"],
    }


def whole_step(settings: Settings, device: torch.device) -> Steps:
    """Return the experiment's training step alone, for `side_by_side`."""
    return Steps({WHOLE: our_steps(settings, device).timed[WHOLE]})


def fit(device: torch.device, memory_bytes: int) -> Iterator[int]:
    """Yield the numbers of runs of SEEDS that fit into the free memory, if a run needs `memory_bytes`."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return itertools.takewhile(lambda count: free is None or count * memory_bytes <= free, SEEDS)


def side_by_side(
    settings: Settings, device: torch.device, memory_bytes: int, meter: Meter, show: Show
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the total steps per second of SEEDS processes at a time, as memory allows, and the joules per step.

    On a CPU they share the threads; each has at least one. On a GPU they compute at the same time if MPS is available.
    `memory_bytes` is the memory of one process.
    """
    threads, train = torch.get_num_threads(), functools.partial(prepare, whole_step)
    rates: dict[str, float] = {}
    joules: dict[str, float] = {}
    with mps([str(device)], show), contextlib.ExitStack() as ending:
        running: list[Contender] = []
        for count in fit(device, memory_bytes + (CONTEXT_BYTES if device.type == "cuda" else 0)):
            share = max(threads // count, 1)
            entrants: dict[str, tuple[Prepare, Settings]] = {
                f"process {k + 1} of {count}": (train, settings) for k in range(len(running), count)
            }
            at_once = device.type == "cpu"  # on a GPU cuDNN tries its algorithms
            running += ending.enter_context(contenders(entrants, device, share, show, at_once)).values()
            show(f"processes at a time: {count}")
            before, began = meter.read(), time.perf_counter()
            for contender in running:
                contender.ask(WHOLE, SEEDS_SECONDS, share)
            rates[str(count)] = rate = sum(1 / contender.answer() for contender in running)
            joules[str(count)] = meter.joules_since(before) / (time.perf_counter() - began) / rate
    return rates, joules


def lockstep(
    settings: Settings, device: torch.device, memory_bytes: int, show: Show
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the total updates per second of SEEDS runs in one process, as memory allows, and the joules per update.

    Each number of runs has a separate process. `memory_bytes` is the memory of one run.
    """
    rates: dict[str, float] = {}
    joules: dict[str, float] = {}
    for count in fit(device, memory_bytes):
        show(f"runs in one process: {count}")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            task = process.submit(train_in_lockstep, settings, device, count)
            rates[str(count)], joules[str(count)] = task.result()
    return rates, joules


def train_in_lockstep(settings: Settings, device: torch.device, count: int) -> tuple[float, float]:
    """Train seeds 1 to `count` in lockstep, after a warm-up for at least SEEDS_SECONDS.

    Returns the total updates per second, and the joules per update.
    """
    set_precision(settings.precision, device)
    cache_fault()
    runs = [our_steps(dataclasses.replace(settings, seed=seed), device) for seed in range(1, count + 1)]
    meter = find_meter(device)
    over: list[tuple[float, float]] = []  # the first run ends the measurement

    def train(steps: Steps) -> None:
        for _ in range(WARM_UP_STEPS[device.type]):
            step_seconds(steps.timed[WHOLE], device)
        before, began, updates = meter.read(), time.perf_counter(), 0
        while not over:
            step_seconds(steps.timed[WHOLE], device)
            updates += STEPS_TOGETHER[device.type] * steps.updates * count
            seconds = time.perf_counter() - began
            if steps is runs[0] and seconds >= SEEDS_SECONDS:
                over.append((updates / seconds, meter.joules_since(before) / updates))

    for future in Lockstep(device).run([functools.partial(train, steps) for steps in runs]):
        future.result()
    return over[0]


def full_replay_memory(settings: DqnSettings, device: torch.device) -> dict[str, Any]:
    """Measure the peak memory in bytes of training with the full replay, or say why it was not measured."""
    needed, available = Replay.nbytes_needed(FULL_REPLAY) + SPARE_BYTES, available_memory()
    on = replay_device(FULL_REPLAY, device).type
    if on == "cpu" and available is not None and available < needed:
        why = f"it needs {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB are free"
        return {"replay_steps": FULL_REPLAY, "left_out": why}
    full = dataclasses.replace(settings, replay_steps=FULL_REPLAY, epochs=1, epoch_steps=AGENT_STEPS, test_steps=1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        peak = process.submit(train_with_full_replay, full, device).result()
    return {"replay_steps": FULL_REPLAY, "on": on, "peak_bytes": peak}


def train_with_full_replay(settings: DqnSettings, device: torch.device) -> int:
    """Fill the replay with one screen, train to the end, and return the peak memory in bytes of the replay's device."""
    experiment = Dqn(settings, device)
    screens, nothing = experiment.training.frames, np.zeros(settings.actors)
    for _ in range(experiment.replay.slots):
        experiment.replay.append(screens, nothing, nothing, nothing)
    experiment.agent_steps = settings.replay_start
    for _ in experiment.train():
        pass
    return peak_memory_bytes(experiment.replay.screens.device)


# ------------------------------------------------------------------------------- file and table


def store(
    results: Path, experiment: str, figures: dict[str, Any], device: torch.device, path: Path | None = None
) -> Path:
    """Write an experiment's figures and their provenance to the session's file, and return its path.

    path: the file; None creates results/bench/<device>_<time>.json.
    """
    about = {"created": now(), **provenance(device)}
    if path is None:
        slug = re.sub(r"[^a-z0-9]+", "-", about["device_name"].lower()).strip("-")
        at = datetime.datetime.now(datetime.UTC)
        path = results / "bench" / f"{slug}_{at:%Y-%m-%dT%H-%M-%S-%f}Z.json"
        path.parent.mkdir(parents=True, exist_ok=True)
    stored = read_json(path) or {"device_name": about["device_name"]}
    write_json(path, stored | {experiment: about | figures})
    return path


def table(figures: dict[str, Any]) -> str:
    """Format the figures as text tables."""
    limits, full, energy = figures["ceilings"], figures.get("replay_memory"), figures["energy"]
    of = f"median, 95 % interval, n = {figures['rounds']}"
    speeds = [f"{limit['median'] / 1e9:.4g} GFLOP/s {name}" for name, limit in limits["flops_per_second"].items()]
    blocks: dict[str, Any] = {
        f"seconds per step ({figures['step']}; median)": {
            name: {"seconds": float(np.median(values))} for name, values in figures["seconds"].items()
        },
        f"{figures['unit']} per second ({of})": figures["per_second"],
        f"ratios of step times, paired within a round ({of})": figures["ratios"],
        f"work of a step, beside a large matrix product ({', '.join(speeds)}) and a copy "
        f"({limits['bytes_per_second']['median'] / 1e9:.4g} GB/s): floor_seconds is the time of its FLOPs at the speed "
        f"of the product, distance is the step's time over that floor, and the shares are of the two "
        f"speeds": figures["work"],
        "peak memory of a process": {name: {"GB": peak / 1e9} for name, peak in figures["memory"].items()},
        "seeds of wn at a time: seconds in which all advance by a step, and per step and seed": seeds_table(figures),
    }
    if "joules" in energy:
        joules = {name: {"joules": value} for name, value in energy["joules"].items()}
        blocks[f"energy per step ({energy['counter']}; mean)"] = joules
    lines = []
    for title, rows in blocks.items():
        frame = pd.DataFrame.from_dict(rows, orient="index")
        lines += [title, frame.to_string(float_format="{:.4g}".format)]
    lines += [f"{name} is not timed: its process died" for name in figures["left_out"]]
    if "left_out" in energy:
        lines.append(f"energy was not measured: {energy['left_out']}")
    if full is not None:
        peak = f"{full['peak_bytes'] / 1e9:.2f} GB" if "peak_bytes" in full else f"not measured: {full['left_out']}"
        lines.append(f"peak memory of training with a full replay of {full['replay_steps']} steps: {peak}")
    return "\n".join(lines)


def seeds_table(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the rows of the table of seeds at a time: in processes of their own, and in one process."""
    rows = {}
    for how, name in (("side_by_side", "a process each"), ("lockstep", "in one process")):
        for seeds, rate in figures[how].items():
            row = rows[f"{seeds}, {name}"] = {"all": int(seeds) / rate, "each": 1 / rate}
            if seeds in (joules := figures["energy"].get(how, {})):
                row["joules each"] = joules[seeds]
    return rows
