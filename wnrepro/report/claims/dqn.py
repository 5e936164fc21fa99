"""C11 and C12: DQN on four games."""

import math

import numpy as np

from wnrepro import paper
from wnrepro.report.claims.claim import Unit, claim
from wnrepro.report.claims.evidence import Evidence, at_look, by_seed, of, shared
from wnrepro.report.stats import above, stratified
from wnrepro.results import Results, Run, random_scores
from wnrepro.text import count, listed, score

RATES = (0.0001, 0.0003, 0.001, 0.003)  # C12: those searched (§5.4)
TWO_GAMES = ("breakout", "space_invaders")  # C12
SWEPT = ", ".join(f"{rate:g}" for rate in RATES)
BN_FAILS = 0.5  # C12: of normal's gain
LEARNT = 2.0  # C12: normal's last test lies this many standard errors above random play
GAMES = [f"{paper.game_name(game)} {scores['wn']} / {scores['normal']}" for game, scores in paper.TABLE3.items()]
LOGS = {game: math.log(scores["wn"] / scores["normal"]) for game, scores in paper.TABLE3.items()}
RATIO = f"{paper.TABLE3_LOG_RATIO:+.2f} (×{math.exp(paper.TABLE3_LOG_RATIO):.2f})"
PRINTED = f"maximum test score, wn / normal: {'; '.join(GAMES)}. One run each; their mean log ratio: {RATIO}"


def max_score(run: Run, epochs: int) -> float:
    """The largest mean test score of the first epochs; nan where one is not finite, or there is none."""
    scores = run.metrics["test_score"].to_numpy(float)[:epochs]
    return float(scores.max()) if len(scores) and np.isfinite(scores).all() else math.nan


def log_score(*pair: Run) -> float:
    """log of the ratio of the maximum test scores over the epochs that both have."""
    scores = [max_score(run, shared(*pair)) for run in pair]
    return math.log(scores[0]) - math.log(scores[1]) if min(scores) > 0 else math.nan


@claim(
    *("C11", "table 3; figure 4; §5.4", PRINTED, "figure4"),
    judge=lambda values: [stratified("mean log ratio over the games", [values[game] for game in LOGS])],
    none="no game and seed with wn and normal",
    world=lambda rng, n, true: {game: rng.normal(log if true else 0, 0.25, n) for game, log in LOGS.items()},
    worlds=("table 3's ratios, standard deviation over seeds of their logarithms 0.25", "ratios of 1"),
)
def improved(evidence: Evidence, results: Results) -> None:
    """DQN: wn improves on normal on average over the four games

    log ratio of the largest mean test scores over the epochs, wn over normal, paired by seed, at table 3's learning
    rates; its mean over the four games with a 95 % t-interval (seeds within games, Satterthwaite): reproduced if wholly
    above 0, not reproduced if wholly below, else inconclusive; so without all four games, or where a score is not above
    0 (any difference counts). {LOST}
    """
    for game in paper.TABLE3:
        runs, name = results.of("dqn", game).at_rate(), paper.game_name(game)
        evidence.collect(game, log_score, of(runs, "wn"), of(runs, "normal"), named=f"{name}: wn")
        if used := [run for run in runs if run.name in evidence.used and not run.diverged]:
            epochs = shared(*used)
            scores = ([max_score(run, epochs) for run in of(used, param)] for param in ("wn", "normal"))
            words = " / ".join(score(float(np.mean(some or [math.nan]))) for some in scores)
            evidence.said.append(f"{name} {words} ({count(epochs, 'epoch')})")
    if missing := [paper.game_name(game) for game in paper.TABLE3 if not evidence.values.get(game)]:
        evidence.said.append(f"no pair of {listed(missing)}")


def gained(run: Run, chance: float) -> float:
    """The maximum test score less random play's mean; nothing where the run diverged."""
    return 0.0 if run.diverged else max_score(run, run.epoch) - chance


@claim(
    *("C12", "§5.4", "not able to get bn to work without an impractically large minibatch", "figure4"),
    judge=lambda values: [stratified("share of normal's gain", [values[game] for game in TWO_GAMES], BN_FAILS, -1)],
    unit=Unit(0, " %", 100, sign=False),
    none="no game in which normal has learnt and bn's learning rates were swept",
    world=lambda rng, n, true: {game: rng.normal(0.05 if true else 0.9, 0.2, n) for game in TWO_GAMES},
    worlds=("two games; bn gains 5 % of normal's gain, standard deviation over seeds 20 %", "bn gains 90 %"),
)
def bn_at_64(evidence: Evidence, results: Results) -> None:
    """DQN: bn does not work with minibatches of {paper.DQN_MINIBATCH}

    Share of normal's gain over random play that bn gains, each the largest mean test score of the whole schedule, bn at
    the best of the learning rates {SWEPT} (all run), on Breakout and Space Invaders by seed, where normal has learnt
    (its last test > {LEARNT:g} standard errors above random play); a diverged bn gains nothing. 95 % t-interval (seeds
    within games): reproduced if wholly below half, not reproduced if wholly above, else inconclusive. bn with larger
    minibatches is named, not judged.
    """
    for game in TWO_GAMES:
        part, name = results.of("dqn", game), paper.game_name(game)
        normals = [run for run in of(part.at_rate(), "normal") if run.done]
        swept = [[run for run in of(part.standard, "bn", lr=rate) if run.over] for rate in RATES]
        every = at_look(by_seed(normals, *swept))
        seeds = [(own, *bn) for own, *bn in every if above(own.scores(own.epoch), own.scores(0)) > LEARNT]
        evidence.said += [f"{name}: normal has learnt in {len(seeds)} of {count(len(every), 'seed')}"] if every else []
        if seeds:
            normals, *swept = map(list, zip(*seeds, strict=True))
            chance = float(np.mean(random_scores(normals)))
            theirs, *gains = ([gained(run, chance) for run in runs] for runs in (normals, *swept))
            best = max(range(len(RATES)), key=lambda at: np.mean(gains[at]))
            evidence.use(*normals, *swept[best])
            for run, bn, normal in zip(normals, gains[best], theirs, strict=True):
                share = BN_FAILS + float(np.divide(bn - BN_FAILS * normal, np.mean(theirs)))
                evidence.values[game].append(evidence.finite(share, run))
            evidence.said.append(f"bn's best lr {RATES[best]:g}")
            for size, runs in part.others("batch_size").items():  # not judged
                large = [score(gained(run, chance)) for run in of(runs, "bn")[:10]]
                evidence.said += [f"with minibatches of {size} bn gains {', '.join(large)}"] if large else []
