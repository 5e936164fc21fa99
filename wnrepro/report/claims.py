"""What the runs say about each claim of `paper.CLAIMS`: the numbers, the verdict, and both in words."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wnrepro import paper
from wnrepro.paper import CLAIMS, NOT_RUN
from wnrepro.report import verdicts
from wnrepro.report.load import Results, Run, longest, random_scores, scale_defaults, step_ratios

NOT_FINITE = "not finite"
NAMED = 3  # at most, of the numbers that are not finite


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, the numbers in words, and on how much (`n`) and which devices they rest."""

    verdict: str
    measured: str
    n: str = "0 seeds"
    devices: str = "none"


def findings(results: Results) -> dict[str, Finding]:
    """The finding of every claim, by its id."""
    return {claim.id: FINDERS[claim.id](results) for claim in CLAIMS}


def count(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plain(value: float, form: str = ".2f") -> str:
    """A number, or that it is none."""
    if not math.isfinite(value):
        return NOT_FINITE
    text = f"{value:{form}}"
    return f"−{text[1:]}" if text.startswith("-") else text


def percent(value: float, digits: int = 2) -> str:
    """A fraction as per cent."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else NOT_FINITE


def signed(value: float) -> str:
    """A relative difference as per cent."""
    return f"{100 * value:+.1f} %".replace("-", "−") if math.isfinite(value) else NOT_FINITE


def nats(value: float, sign: str = "") -> str:
    """A bound in nats, without the unit (`sign="+"`: a difference)."""
    return plain(value, f"{sign}.2f")


def score(value: float) -> str:
    """Of a game."""
    return plain(value, ".1f")


def _found(verdict: str, measured: str, used: Iterable[Run], lost: Iterable[str] = ()) -> Finding:
    """lost: the numbers that the verdict needs and that are not finite; it is open then, whatever the others say."""
    used, lost = list(used), list(dict.fromkeys(lost))
    n = f"{count(len({run.seed for run in used}), 'seed')}, {count(len(used), 'run')}"
    if lost:
        verdict, measured = paper.INCONCLUSIVE, f"{measured}; {_named(lost)}"
    return Finding(verdict, measured, n, ", ".join(sorted({run.device for run in used})) or "none")


def _named(lost: Sequence[str]) -> str:
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return f"{NOT_FINITE}: {', '.join(lost[:NAMED])}{more}"


def not_finite(run: Run, column: str, epochs: int | None = None) -> list[str]:
    """The name of this column of metrics.csv where it is not finite in one of the first so many epochs, or the last."""
    values = run.metrics[column].to_numpy(float)
    needed = values[-1:] if epochs is None else values[:epochs]
    return [] if np.isfinite(needed).all() else [f"{column} of {run.name}"]


def _identities(results: Results, names: Sequence[str]) -> Finding:
    used = [run for run in results.runs if any(name in run.facts for name in names)]
    residuals = [[run.facts[name] for run in used if name in run.facts] for name in names]
    measured = "; ".join(
        f"{name} ≤ {plain(np.max(values), '.1e')}" if values else f"{name} not measured"
        for name, values in zip(names, residuals, strict=True)
    )
    if lost := [run.name for run in used if not all(math.isfinite(run.facts.get(name, 0.0)) for name in names)]:
        measured += f"; {_named(lost)}"
    return _found(verdicts.identities(residuals), measured, used)


def _c1(results: Results) -> Finding:
    return _identities(results, ("eq3_residual", "v_dot_grad_v"))


def _c2(results: Results) -> Finding:
    return _identities(results, ("wn_is_bn_residual",))


def _c3(results: Results) -> Finding:
    parts = results.parts
    with_init = [run for part in parts.values() for run in part.in_precision if len(run.init)]
    with_loss = [run for part in parts.values() for run in part.standard if "init_loss" in run.facts]
    means = [value for run in with_init for value in run.init["mean_abs_max"]]
    variances = [value for run in with_init for name in ("variance_min", "variance_max") for value in run.init[name]]
    starts: dict[tuple[str, str | None, int, str], dict[str, list[float]]] = {}
    for run in with_loss:
        device = str(run.record.get("device")).split(":")[0]  # a seed draws other numbers on a GPU
        start = starts.setdefault((run.experiment, run.dataset, run.seed, device), {})
        start.setdefault(run.param, []).append(run.facts["init_loss"])
    losses = [[loss for some in start.values() for loss in some] for start in starts.values() if len(start) == 4]
    verdict = verdicts.same_start(means, variances, losses)
    said = []
    if with_init:
        low, high = plain(np.min(variances), ".4f"), plain(np.max(variances), ".4f")
        said.append(f"|mean| ≤ {plain(np.max(means), '.1e')}, variance {low} to {high}")
    if losses:
        spread = plain(np.max([verdicts.spread(some) for some in losses]), ".1e")
        said.append(f"the four initial losses spread by ≤ {spread} of their mean ({count(len(losses), 'start')})")
    elif verdict != NOT_RUN:
        said.append("no start with all four initial losses")
    lost = [run.name for run in with_init if not np.isfinite(run.init.drop(columns="layer")).all(axis=None)]
    lost += [run.name for run in with_loss if not math.isfinite(run.facts["init_loss"])]
    if lost:
        said.append(_named(list(dict.fromkeys(lost))))
    used = {run.name: run for run in (*with_init, *with_loss)}
    return _found(verdict, "; ".join(said) or "no init measured", used.values())


def _c4(results: Results) -> Finding:
    results = results.of("cifar")
    if results.scale != "paper":
        return Finding(NOT_RUN, f"the test errors at scale {results.scale} are not comparable with table 2")
    used = [run for run in results.figure1 if run.epochs == paper.EPOCHS and (run.done or run.diverged)]
    diverged = sorted({run.param for run in used if run.diverged})
    errors = {
        param: [100 * run.final("test_error") for run in used if run.param == param and run.done]
        for param in paper.TABLE2
    }
    said = []
    for param, values in errors.items():
        low, high = verdicts.t_interval(values)
        interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
        if values:
            said.append(f"{param} {percent(float(np.mean(values)) / 100)}{interval} (n = {len(values)})")
    said += [f"{param} diverged" for param in diverged]
    lost = [name for run in used if run.done for name in not_finite(run, "test_error")]
    return _found(verdicts.table2(errors, diverged), "; ".join(said) or "no finished run", used, lost)


def _c5(results: Results) -> Finding:
    results = results.of("cifar")
    ratios: dict[str, list[float]] = {"wn": [], "bn": []}
    used: dict[str, Run] = {}
    said, lost = [], []
    for param, values in ratios.items():
        for seed in sorted({run.seed for run in results.standard}):
            ours = _candidates(results, param, seed)
            normals = [run for run in _candidates(results, "normal", seed) if not run.diverged]
            trained = [run for run in ours if not run.diverged]
            if not ours or not normals:
                continue
            if not trained:
                values.append(math.inf)
                used.update((run.name, run) for run in ours)
                said.append(f"{param} diverged (seed {seed})")
                continue
            shared = min(run.epoch for run in trained + normals)
            if shared < paper.SHARED_EPOCHS:
                said.append(f"{param}: only {count(shared, 'shared epoch')} (seed {seed})")
                continue
            used.update((run.name, run) for run in trained + normals)
            if gone := [name for run in trained + normals for name in not_finite(run, "train_error", shared)]:
                lost += gone
                continue
            error, best = min((_mean_error(run, shared), run.lr) for run in trained)
            baseline, normal_lr = min((_mean_error(run, shared), run.lr) for run in normals)
            values.append(error / baseline if baseline > 0 else math.inf)
            said.append(
                f"{param} {signed(values[-1] - 1)} (seed {seed}, {count(shared, 'epoch')}; "
                f"lr {best:g} against {normal_lr:g})"
            )
    none = "no other seed with both" if lost else "no seed with normal and wn or bn"
    measured = "; ".join(said) or none
    if said:
        measured = f"mean training error relative to normal's: {measured}"
    if not any(ratios.values()) and said:
        return _found(paper.INCONCLUSIVE, measured, used.values(), lost)
    return _found(verdicts.faster(ratios), measured, used.values(), lost)


def _candidates(results: Results, param: str, seed: int) -> list[Run]:
    """The finished standard runs of a parameterization and seed, or else the unfinished ones."""
    runs = [run for run in results.standard if run.param == param and run.seed == seed]
    return [run for run in runs if run.done or run.diverged] or runs


def _mean_error(run: Run, epochs: int) -> float:
    return float(run.metrics["train_error"].iloc[:epochs].mean())  # skips nan: see `not_finite`


def _c6(results: Results) -> Finding:
    results = results.of("cifar")
    used = [run for run in results.standard if run.param == "normal" and run.lr >= paper.DIVERGING_LR]
    outcomes, said = [], []
    for run in used:
        outcome = "diverged" if run.diverged else "unfinished"
        if run.done:
            outcome = "trained" if run.final("train_error") < paper.TRAINED_ERROR else "untrained"
        outcomes.append((run.lr, outcome))
        said.append(f"lr {run.lr:g}, seed {run.seed}: {_outcome(run, outcome)}")
    measured = "; ".join(said) or f"no run of normal at {paper.DIVERGING_LR:g} or above"
    lost = [name for run in used if run.done for name in not_finite(run, "train_error")]
    return _found(verdicts.divergence(outcomes), measured, used, lost)


def _outcome(run: Run, outcome: str) -> str:
    error = f"training error {percent(run.final('train_error'))}"
    return {
        "diverged": f"diverged ({count(run.epoch, 'epoch')} of {run.epochs} logged)",
        "trained": f"trained to {error}",
        "untrained": f"neither diverged nor trained ({error})",
        "unfinished": f"unfinished, {run.state}",
    }[outcome]


def _c7(results: Results) -> Finding:
    devices, said = [], []
    rounds: set[int] = set()
    benches = [bench for bench in results.bench.values() if "cifar" in bench]  # §5.1
    for bench in benches:
        by_name = step_ratios(bench, "cifar")
        measured = {param: by_name[f"{param} / normal"] for param in ("bn", "wn") if f"{param} / normal" in by_name}
        devices.append({param: (ratio["low"], ratio["high"], ratio["n"]) for param, ratio in measured.items()})
        rounds.update(ratio["n"] for ratio in measured.values())
        numbers = ", ".join(
            f"{param} {signed(ratio['median'] - 1)} [{signed(ratio['low'] - 1)}, {signed(ratio['high'] - 1)}]"
            for param, ratio in measured.items()
        )
        said.append(f"{bench['device_name']}: {numbers or 'bn and wn not measured'}")
    return Finding(
        verdicts.step_time(devices),
        "; ".join(said) or "no step times of cifar in results/bench",
        " or ".join(count(number, "paired round") for number in sorted(rounds)) or "0 rounds",
        ", ".join(sorted({bench["device_name"] for bench in benches})) or "none",
    )


def _c8(results: Results) -> Finding:
    results = results.of("cifar")
    runs = [run for run in results.figure1 if run.param in ("bn", "wn+mobn") and len(run.noise)]
    if not runs:
        return _found(verdicts.noise([], [], 0), "no noise measured", [])
    tables = {
        param: pd.concat([run.noise.assign(seed=run.seed) for run in runs if run.param == param] or [runs[0].noise[:0]])
        for param in ("bn", "wn+mobn")
    }
    bn, mobn = tables["bn"], tables["wn+mobn"]
    if bn.empty or mobn.empty:
        missing = "bn" if bn.empty else "wn+mobn"
        verdict = verdicts.noise([(0.0, 0.0)] * len(mobn), [(0.0, 0.0)] * len(bn), 0)
        return _found(verdict, f"{missing} not measured at figure 1's learning rate", runs)
    both = mobn.merge(bn, on=["seed", "epoch", "layer"], suffixes=("_mobn", "_bn"))
    minibatches = int(min(bn["minibatches"].min(), mobn["minibatches"].min()))
    prefix = "excess_kurtosis_"
    of_mobn = list(zip(both[f"{prefix}median_mobn"], both[f"{prefix}q75_mobn"], strict=True))
    of_bn = list(zip(both[f"{prefix}median_bn"], both[f"{prefix}q25_bn"], strict=True))
    verdict = verdicts.noise(of_mobn, of_bn, minibatches)
    if both.empty:
        return _found(paper.INCONCLUSIVE, "no seed and epoch at which both were measured", runs)
    clear = sum(low > high for (_, high), (_, low) in zip(of_mobn, of_bn, strict=True))
    measured = (
        f"median excess kurtosis over layers: wn+mobn {plain(np.median([a for a, _ in of_mobn]))}, bn "
        f"{plain(np.median([b for b, _ in of_bn]))}; bn clearly above in {clear} of {len(both)} layers × "
        f"measurements (epochs {', '.join(str(epoch) for epoch in sorted(set(both['epoch'])))}; "
        f"{minibatches} minibatches)"
    )
    used = [run for run in runs if run.seed in set(both["seed"])]
    lost = [f"noise of {run.name}" for run in used if not np.isfinite(run.noise.drop(columns="layer")).all(axis=None)]
    return _found(verdict, measured, used, lost)


def _reach(run: Run) -> int:
    """The epochs that a run can be compared over: one that diverged stays so to its end."""
    return run.epochs if run.diverged else run.epoch


def _bound(run: Run, epochs: int) -> float:
    """The test bound in nats after so many epochs; −inf of a run that diverged, nan where it is not finite else."""
    if run.diverged:
        return -math.inf
    bound = float(run.metrics["test_bound_nats"].iloc[epochs - 1])
    return bound if math.isfinite(bound) else math.nan


def _lost_bounds(pairs: Iterable[tuple[Run, Run]], epochs: int) -> list[str]:
    """The test bounds after so many epochs that are not finite, of runs that did not diverge."""
    runs = [run for pair in pairs for run in pair if math.isnan(_bound(run, epochs))]
    return [f"test_bound_nats of {run.name}" for run in runs]


def _with_normal(runs: Iterable[Run], ours: str = "wn") -> list[tuple[Run, Run]]:
    """A parameterization and normal by seed, where both have an epoch."""
    begun = {(run.param, run.seed): run for run in runs if _reach(run)}
    seeds = sorted(seed for param, seed in begun if param == ours and ("normal", seed) in begun)
    return [(begun[ours, seed], begun["normal", seed]) for seed in seeds]


def _shared(pairs: Sequence[tuple[Run, Run]]) -> tuple[list[tuple[Run, Run]], int]:
    """The pairs that have the last epoch which `SEEDS` of them share (of fewer: all), and that epoch."""
    shared = sorted((min(map(_reach, pair)) for pair in pairs), reverse=True)
    epochs = shared[min(len(shared), paper.SEEDS) - 1] if pairs else 0
    return [pair for pair in pairs if min(map(_reach, pair)) >= epochs], epochs


def _or_diverged(value: float, words: Callable[[float], str] = nats) -> str:
    return "diverged" if value == -math.inf else words(value)


def _c9(results: Results) -> Finding:
    compared: list[tuple[list[float], list[float], int]] = []
    used: list[Run] = []
    said, lost = [], []
    for dataset in paper.FIGURE2:
        pairs, epochs = _shared(_with_normal(results.of("cvae", dataset).figure2))
        wn, normal = ([_bound(pair[i], epochs) for pair in pairs] for i in (0, 1))
        compared.append((wn, normal, epochs))
        used += [run for pair in pairs for run in pair]
        lost += _lost_bounds(pairs, epochs)
        said.append(f"{dataset}: {_compared_bounds(wn, normal, epochs)}")
        if pairs:
            schedule = scale_defaults("cvae", "paper", dataset)["epochs"]
            said[-1] += f" ({count(len(pairs), 'seed')}, {count(epochs, 'epoch')}; scale paper has {schedule})"
    measured = "final test bound, wn − normal, nats: " + "; ".join(said) if used else "no seed with wn and normal"
    return _found(verdicts.better_bound(compared), measured, used, lost)


def _compared_bounds(wn: Sequence[float], normal: Sequence[float], epochs: int) -> str:
    """The difference and both spreads over seeds in words, or every seed's two bounds where one is lost."""
    if not wn:
        return "no seed with both"
    if not np.isfinite([*wn, *normal]).all():
        return ", ".join(f"{_or_diverged(a)} against {_or_diverged(b)}" for a, b in zip(wn, normal, strict=True))
    differences = [a - b for a, b in zip(wn, normal, strict=True)]
    text = nats(float(np.mean(differences)), "+")
    if len(wn) > 1:
        low, high = verdicts.t_interval(differences)
        spreads = [plain(float(np.std(values, ddof=1))) for values in (wn, normal)]
        text += f" [{nats(low, '+')}, {nats(high, '+')}], standard deviation {spreads[0]} against {spreads[1]}"
    return text if epochs >= paper.CONVERGED_EPOCHS else f"{text}, not converged"


def _c10(results: Results) -> Finding:
    seeds: list[tuple[float, int]] = []
    used: list[Run] = []
    said, lost = [], []
    part = results.of("draw")
    for wn, normal in _with_normal(part.figure3):
        epochs = min(_reach(wn), _reach(normal))
        epoch, words = _reached(wn, normal, epochs)
        if epochs < paper.SHARED_EPOCHS:
            words = f"only {count(epochs, 'shared epoch')}"
        elif not math.isnan(epoch):
            used += [wn, normal]
        elif not (wn.diverged and normal.diverged):
            lost.append(f"test_bound_nats of {wn.name} or {normal.name}")
        seeds.append((epoch, epochs))
        said.append(f"seed {wn.seed}: {words}")
    for g, runs in part.others("g_start").items():  # not judged
        for wn, normal in _with_normal([*(run for run in part.figure3 if run.param == "normal"), *runs]):
            words = _reached(wn, normal, min(_reach(wn), _reach(normal)))[1]
            said.append(f"outside the rule, with g = {g:g} at the start, seed {wn.seed}: {words}")
    measured = "test bound of wn, " + "; ".join(said) if said else "no seed with wn and normal"
    return _found(verdicts.earlier(seeds), measured, used, lost)


def _reached(wn: Run, normal: Run, epochs: int) -> tuple[float, str]:
    """The epoch at which wn reaches normal's test bound after `epochs` (see `verdicts.earlier`), and it in words."""
    if normal.diverged:
        return (math.nan, "both diverged") if wn.diverged else (1.0, "normal diverged")
    ours, target = _bound(wn, epochs), _bound(normal, epochs)
    bounds = [] if wn.diverged else list(wn.metrics["test_bound_nats"].iloc[:epochs])
    epoch = verdicts.reached(bounds, target)
    if math.isnan(epoch):
        return epoch, f"a bound is {NOT_FINITE}"
    if epoch == math.inf:
        return epoch, f"not reached: {_or_diverged(ours)} against {nats(target)} of epoch {epochs}"
    return epoch, (
        f"reaches normal's {nats(target)} nats of epoch {epochs} at epoch {epoch:.1f} "
        f"({epochs - epoch:.1f} epochs, {percent(1 - epoch / epochs, 1)} earlier)"
    )


def _c11(results: Results) -> Finding:
    compared: list[tuple[list[tuple[float, float]], int]] = []
    used: list[Run] = []
    said, beside, lost = [], [], []
    for game in paper.TABLE3:
        part = results.of("dqn", game)
        for actors, runs in [(None, part.figure4), *part.others("actors").items()]:
            pairs, epochs = _shared(_with_normal(runs))
            if not pairs:
                continue
            scores = [(_max_score(wn, epochs), _max_score(normal, epochs)) for wn, normal in pairs]
            means = " / ".join(_or_diverged(float(mean), score) for mean in np.mean(scores, axis=0))
            n = f"{count(len(pairs), 'seed')}, {count(epochs, 'epoch')}"
            words = f"{paper.game_name(game)} {means} ({n})"
            if actors is None:
                compared.append((scores, epochs))
                of_game = [run for pair in pairs for run in pair]
                used += of_game
                lost += [name for run in _undiverged(of_game) for name in not_finite(run, "test_score", epochs)]
                said.append(words)
            else:  # not judged
                beside.append(f"{words} by {actors} games in lock-step")
    if compared:
        mean, (low, high) = verdicts.mean_log_ratio([scores for scores, _ in compared])
        seeds = min(len(scores) for scores, _ in compared)
        interval = f" [{low:+.2f}, {high:+.2f}]" if seeds >= paper.SEEDS and math.isfinite(low) else ""
        if math.isfinite(mean):
            numbers = f"{mean:+.2f}{interval} (×{plain(np.exp(mean))}, {count(len(compared), 'game')})"
            said.append(f"mean log ratio {numbers}".replace("-", "−"))
    measured = _said("maximum test score, wn / normal", said, beside) or "no game and seed with wn and normal"
    return _found(verdicts.better_scores(compared), measured, used, lost)


def _said(what: str, said: Sequence[str], beside: Sequence[str]) -> str:
    """What was measured, and what lies outside the rule."""
    parts = {what: said, "outside the rule": beside}
    return "; ".join(f"{name}: {'; '.join(words)}" for name, words in parts.items() if words)


def max_score(run: Run, epochs: int) -> float:
    """The largest mean test score of the first so many epochs; nan where one is not finite, or there is none."""
    scores = run.metrics["test_score"].to_numpy(float)[:epochs]
    return float(scores.max()) if len(scores) and np.isfinite(scores).all() else math.nan


def _max_score(run: Run, epochs: int) -> float:
    """`max_score`; −inf of a run that diverged."""
    return -math.inf if run.diverged else max_score(run, epochs)


def _undiverged(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if not run.diverged]


def _c12(results: Results) -> Finding:
    shares: list[tuple[float, bool]] = []
    used: list[Run] = []
    said, beside, lost = [], [], []
    for game in paper.TABLE3:
        part = results.of("dqn", game)
        for bn, normal in _with_normal(part.figure4, "bn"):
            if bn.settings["batch_size"] == paper.DQN_MINIBATCH:
                share, has_learnt, words = _gains(bn, normal)
                shares.append((share, has_learnt))
                used += [bn, normal]
                lost += _lost_gains(bn, normal)
                said.append(words if has_learnt else f"{words}, normal has not learnt")
        for size, runs in part.others("batch_size").items():  # not judged
            normals = [run for run in part.figure4 if run.param == "normal"]
            for bn, normal in _with_normal([*normals, *(run for run in runs if run.param == "bn")], "bn"):
                beside.append(f"with minibatches of {size}, {_gains(bn, normal)[2]}")
    measured = _said("gain over random play, bn / normal", said, beside)
    none = f"no game and seed with bn and normal, minibatches of {paper.DQN_MINIBATCH}"
    return _found(verdicts.bn_at_64(shares), measured or none, used, lost)


def _lost_gains(bn: Run, normal: Run) -> list[str]:
    """The scores that a pair is judged by and that are not finite."""
    epochs = min(_reach(bn), _reach(normal))
    lost = [name for run in _undiverged((bn, normal)) for name in not_finite(run, "test_score", epochs)]
    games = [*random_scores([normal]), *(() if normal.diverged else normal.scores(epochs))]
    return lost if np.isfinite(games).all() else [*lost, f"scores of games of {normal.name}"]


def _gains(bn: Run, normal: Run) -> tuple[float, bool, str]:
    """bn's gain over normal's (−inf: diverged), whether normal has learnt, and the two gains in words."""
    epochs = min(_reach(bn), _reach(normal))
    random = random_scores([normal])
    chance = float(np.mean(random)) if random else math.nan
    ours, theirs = (_max_score(run, epochs) - chance for run in (bn, normal))
    gains = " / ".join(_or_diverged(gain, score) for gain in (ours, theirs)) if random else "–"
    words = f"{paper.game_name(bn.settings['game'])}, seed {bn.seed}: {gains} ({count(epochs, 'epoch')})"
    has_learnt = not normal.diverged and verdicts.learnt(normal.scores(epochs), random)
    return ours / theirs if has_learnt and theirs else math.nan, has_learnt, words


def _c13(results: Results) -> Finding:
    results = results.of("cifar")
    used = [run for run in results.standard if run.param in ("wn", "normal") and (run.done or run.diverged)]
    errors: dict[str, dict[float, float]] = {"wn": {}, "normal": {}}
    for param, by_rate in errors.items():
        for rate in sorted({run.lr for run in used if run.param == param}):
            runs = [run for run in used if run.param == param and run.lr == rate]
            diverged = any(run.diverged for run in runs)
            by_rate[rate] = math.inf if diverged else float(np.mean([run.final("train_error") for run in runs]))
    lost = [name for run in used if run.done for name in not_finite(run, "train_error")]
    shared = sorted(errors["wn"].keys() & errors["normal"].keys())
    verdict = verdicts.robust_rates(errors["wn"], errors["normal"])
    if len(shared) < paper.SWEEP_RATES:
        rates = ", ".join(f"{rate:g}" for rate in shared) or "none"
        return _found(verdict, f"learning rates that both have finished: {rates}", used, lost)
    said = []
    for param, by_rate in errors.items():
        works = verdicts.working_rates({rate: by_rate[rate] for rate in shared})
        numbers = ", ".join(
            f"{'diverged' if by_rate[rate] == math.inf else percent(by_rate[rate], 1)} at {rate:g}" for rate in shared
        )
        said.append(f"{param} works at {len(works)} of {len(shared)} ({numbers})")
    return _found(verdict, "final training error: " + "; ".join(said), used, lost)


def norms(run: Run) -> pd.DataFrame:
    """The layer mean of ‖v‖ over its start: one row an epoch (from 0), one column a layer."""
    table = run.layers.pivot(index="epoch", columns="layer", values="v_norm_mean")
    return table / table.loc[0]


def free_norm_runs(results: Results) -> list[Run]:
    """The standard runs of wn and wn+mobn, whose ‖v‖ is free, with at least one epoch and not diverged."""
    return [
        run
        for run in results.standard
        if run.param in ("wn", "wn+mobn") and not run.diverged and run.layers["epoch"].nunique() > 1
    ]


def _c14(results: Results) -> Finding:
    results = results.of("cifar")
    used = free_norm_runs(results)
    factors: list[float] = []
    early_late: list[tuple[float, float]] = []
    grown: dict[tuple[str, int], dict[float, float]] = {}
    lost = []
    for run in used:
        by_epoch = norms(run)
        log_norms = np.log(by_epoch)
        if not np.isfinite(log_norms).all(axis=None):
            lost.append(f"‖v‖ of {run.name}")
            continue
        factors += list(by_epoch.iloc[-1])
        log_growth = log_norms.mean(axis=1)
        half = min(int(log_growth.index[-1]), run.decay_from) // 2  # of the epochs at a constant learning rate
        if half >= 1:
            early_late.append((float(log_growth[half]), float(log_growth[2 * half] - log_growth[half])))
        if run.done:
            grown.setdefault((run.param, run.seed), {})[run.lr] = float(log_growth.iloc[-1])
    by_rate = [[by[rate] for rate in sorted(by)] for by in grown.values() if len(by) > 1]
    verdict = verdicts.growth(factors, early_late, by_rate)
    if not factors:
        return _found(verdict, "no ‖v‖ logged", used, lost)
    slower = sum(late < early for early, late in early_late)
    said = [
        f"grown in {sum(factor > 1 for factor in factors)} of {len(factors)} layers × runs, median factor "
        f"{np.median(factors):.2f}",
        f"growth slows at a constant rate in {slower} of {count(len(early_late), 'run')}",
    ]
    for (param, seed), by in grown.items():
        if len(by) > 1:
            rates = ", ".join(f"×{plain(np.exp(by[rate]))} at {rate:g}" for rate in sorted(by))
            said.append(f"{param}, seed {seed}: {rates}")
    if not by_rate:
        said.append("a single finished learning rate")
    return _found(verdict, "; ".join(said), used, lost)


# By variant: the difference in a number, the run, and the one that it is paired with.
Compared = dict[str, list[tuple[float, Run, Run]]]


def exponential_g(results: Results) -> Compared:
    """C15, of cifar: relative differences in final test error to direct g, by seed; of each parameterization and c."""
    ours = [run for run in results.in_precision if run.changed.keys() - {"precision"} == {"g_exp"}]
    pairs = [
        (run, direct)
        for run, direct in _pairs(ours, [run for run in results.figure1 if run.done])
        if 1 <= run.settings["g_exp"] <= 5 and (run.done or run.diverged)
    ]
    compared: Compared = {}
    for param in dict.fromkeys(run.param for run, _ in pairs):
        for difference, run, direct in _test_errors([pair for pair in pairs if pair[0].param == param]):
            label = f"{param}, c = {run.settings['g_exp']:g}"
            compared.setdefault(label, []).append((difference, run, direct))
    return compared


def bounded_errors(results: Results) -> Compared:
    """C16, of cifar: relative differences in final test error to free norms, by seed; averaged parameters apart."""
    finished = [run for run in results.figure1 if run.done or run.diverged]
    bounded = [run for run in _bounded(results.changing("v_norm_max", "polyak_epochs")) if run.done or run.diverged]
    pairs = _pairs(bounded, finished)
    return {
        label: _test_errors([pair for pair in pairs if _bounded_label(pair[0]) == label])
        for label in dict.fromkeys(_bounded_label(run) for run, _ in pairs)
    }


def bounded_bounds(results: Results) -> list[tuple[Run, Run, int]]:
    """C16, of a data set of cvae: the runs with the bound on ‖v‖, those without it, and the epochs that both have."""
    bounded, free_runs = _bounded(results.changing("epochs", "v_norm_max")), results.changing("epochs")
    pairs = [(run, free, min(_reach(run), _reach(free))) for run, free in _pairs(longest(bounded), longest(free_runs))]
    return [(run, free, epochs) for run, free, epochs in pairs if epochs and not (run.diverged and free.diverged)]


def _test_errors(pairs: Sequence[tuple[Run, Run]]) -> list[tuple[float, Run, Run]]:
    """Of each pair the difference in final test error over the others' mean; inf where one diverged, nan where an
    error is not finite, or that mean is 0.
    """
    mean = float(np.mean([other.final("test_error") for _, other in pairs])) if pairs else math.nan
    return [
        (
            math.inf
            if run.diverged or other.diverged
            else (run.final("test_error") - other.final("test_error")) / (mean or math.nan),
            run,
            other,
        )
        for run, other in pairs
    ]


def _mean_difference(values: Sequence[float], lost: str) -> str:
    """The mean of relative differences and its interval in words; `lost` where one is inf."""
    if math.inf in values:
        return lost
    low, high = verdicts.t_interval(values)
    interval = f" [{signed(low)}, {signed(high)}]" if math.isfinite(low) else ""
    return f"{signed(float(np.mean(values)))}{interval}"


def _c15(results: Results) -> Finding:
    compared = exponential_g(results.of("cifar"))
    differences = {label: [difference for difference, _, _ in entries] for label, entries in compared.items()}
    pairs = [pair for entries in compared.values() for _, *pair in entries]
    direct_error = float(np.max([direct.final("test_error") for _, direct in pairs], initial=0.0))
    said = "; ".join(
        f"{label}: {_mean_difference(values, 'diverged')} (n = {len(values)})" for label, values in differences.items()
    )
    measured = f"test error relative to direct g: {said}" if said else "no pair of exp(c·s) and direct g"
    used = {run.name: run for pair in pairs for run in pair}
    lost = [name for run in _undiverged(used.values()) for name in not_finite(run, "test_error")]
    return _found(verdicts.exponential_g(differences, direct_error), measured, used.values(), lost)


def _c16(results: Results) -> Finding:
    used: dict[str, Run] = {}
    said, lost = [], []
    bounds: list[tuple[float, float, int]] = []
    for dataset in paper.FIGURE2:
        for run, free, epochs in bounded_bounds(results.of("cvae", dataset)):
            bounds.append((_bound(run, epochs), _bound(free, epochs), epochs))
            used.update({run.name: run, free.name: free})
            lost += _lost_bounds([(run, free)], epochs)
            said.append(
                f"{dataset}, {run.param}, lr {run.lr:g}, seed {run.seed}: {_or_diverged(bounds[-1][0])} against "
                f"{_or_diverged(bounds[-1][1])} ({count(epochs, 'epoch')})"
            )
    if bounds:
        better = sum(bounded > free for bounded, free, _ in bounds)
        said = [f"test bound in nats better in {better} of {count(len(bounds), 'pair')}: " + "; ".join(said)]
    differences: list[tuple[list[float], int]] = []
    for label, entries in bounded_errors(results.of("cifar")).items():
        values = [difference for difference, _, _ in entries]
        epochs = min(_reach(run) for _, *pair in entries for run in pair)
        differences.append((values, epochs))
        compared = {run.name: run for _, *pair in entries for run in pair}
        used |= compared
        lost += [name for run in _undiverged(compared.values()) for name in not_finite(run, "test_error")]
        number = _mean_difference(values, "diverged in a seed")
        said.append(f"cifar, {label}: test error {number} (n = {len(values)}, {count(epochs, 'epoch')})")
    measured = "; ".join(said) or f"no pair with and without ‖v‖ ≤ {paper.V_NORM_MAX:g}"
    return _found(verdicts.bounded_norm(bounds, differences), measured, used.values(), lost)


def _bounded(runs: Iterable[Run]) -> list[Run]:
    """Those of wn and wn+mobn with the paper's bound on ‖v‖."""
    return [
        run for run in runs if run.param in ("wn", "wn+mobn") and run.settings.get("v_norm_max") == paper.V_NORM_MAX
    ]


def _pairs(runs: Iterable[Run], others: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Each run with the one of `others` that has its parameterization, learning rate and seed."""
    by_key = {(run.param, run.lr, run.seed): run for run in others}
    return [(run, by_key[key]) for run in runs if (key := (run.param, run.lr, run.seed)) in by_key]


def _bounded_label(run: Run) -> str:
    """The parameterization, and whether the run's parameters were averaged for evaluation."""
    return f"{run.param}, averaged" if "polyak_epochs" in run.changed else run.param


FINDERS: dict[str, Callable[[Results], Finding]] = {
    f"C{number}": np.errstate(all="ignore")(finder)  # sums may overflow, and files hold infinities
    for number, finder in enumerate(
        (_c1, _c2, _c3, _c4, _c5, _c6, _c7, _c8, _c9, _c10, _c11, _c12, _c13, _c14, _c15, _c16), start=1
    )
}
