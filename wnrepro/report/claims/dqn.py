"""C11 and C12: DQN on four games."""

import math

import numpy as np

from wnrepro import paper
from wnrepro.report.claims.claim import claim
from wnrepro.report.claims.evidence import Evidence, at_look, by_seed, select, shared_epochs
from wnrepro.report.claims.units import SHARE
from wnrepro.report.stats import t_test, welch_t
from wnrepro.results import Results, Run, random_scores
from wnrepro.text import count, listed, score

RATES = (0.0001, 0.0003, 0.001, 0.003)  # C12: searched in §5.4
TWO_GAMES = ("breakout", "space_invaders")  # C12
SWEPT = ", ".join(f"{rate:g}" for rate in RATES)
BN_FAILS = 0.5  # C12: share of normal's gain below which bn fails
LEARNT = 2.0  # C12: normal's last test lies this many standard errors above random play
GAMES = [f"{paper.game_name(game)} {scores['wn']} / {scores['normal']}" for game, scores in paper.TABLE3.items()]
RATIO = f"{paper.TABLE3_LOG_RATIO:+.2f} (×{math.exp(paper.TABLE3_LOG_RATIO):.2f})"
PRINTED = f"maximum test score, wn / normal: {'; '.join(GAMES)}. One run each; their mean log ratio: {RATIO}"


def max_score(run: Run, epochs: int) -> float:
    """Return the largest mean test score of the first epochs, or nan if one is not finite or there is none."""
    scores = run.metrics["test_score"].to_numpy(float)[:epochs]
    return float(scores.max()) if len(scores) and np.isfinite(scores).all() else math.nan


def log_score(*pair: Run) -> float:
    """Return the log ratio of the maximum test scores over the epochs that both have."""
    scores = [max_score(run, shared_epochs(*pair)) for run in pair]
    return math.log(scores[0]) - math.log(scores[1]) if min(scores) > 0 else math.nan


@claim(
    *("C11", "table 3; figure 4; §5.4", PRINTED, "figure4"),
    judge=lambda values: [t_test("mean log ratio over the games", *(values[game] for game in paper.TABLE3))],
    none="no game has both wn and normal at one seed",
)
def improved(evidence: Evidence, results: Results) -> None:
    """DQN: wn improves on normal on average over the four games

    log ratio of the largest mean test scores over the epochs, wn over normal, paired by seed, at table 3's learning
    rates; its mean over the four games with a 95 % t-interval (seeds within games, Satterthwaite): reproduced if wholly
    above 0, not reproduced if wholly below, else inconclusive; so without all four games, or where a score is not above
    0 (any difference counts). {LOST}
    """
    for game in paper.TABLE3:
        pair, name = select(results.of("dqn", game).at_rate(), "wn", "normal"), paper.game_name(game)
        evidence.collect(game, log_score, *pair, name=f"{name}: wn")
        used = [[run for run in runs if run.name in evidence.used and not run.diverged] for runs in pair]
        if any(used):
            epochs = shared_epochs(*used[0], *used[1])
            scores = ([max_score(run, epochs) for run in runs] for runs in used)
            ours, theirs = (score(float(np.mean(some or [math.nan]))) for some in scores)
            evidence.remarks.append(f"{name}: best test score of {count(epochs, 'epoch')} wn {ours}, normal {theirs}")
    if missing := [paper.game_name(game) for game in paper.TABLE3 if not evidence.values.get(game)]:
        evidence.remarks.append(f"no pair of runs on {listed(missing)}")


def gained(run: Run, chance: float) -> float:
    """Return the maximum test score less random play's mean, or 0 if the run diverged."""
    return 0.0 if run.diverged else max_score(run, run.epoch) - chance


@claim(
    *("C12", "§5.4", "not able to get bn to work without an impractically large minibatch", "figure4"),
    judge=lambda values: [t_test("share of normal's gain", *(values[g] for g in TWO_GAMES), margin=BN_FAILS, sign=-1)],
    unit=SHARE,
    none="no game in which normal has learnt and bn has run at every learning rate",
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
        done = [run for run in select(part.at_rate(), "normal")[0] if run.done]
        swept = [[run for run in select(part.standard, "bn", lr=rate)[0] if run.over] for rate in RATES]
        every = at_look(by_seed(done, *swept))
        seeds = [(own, *bn) for own, *bn in every if welch_t(own.scores(own.epoch), own.scores(0)) > LEARNT]
        evidence.remarks += (
            [f"{name}: normal has learnt in {len(seeds)} of {count(len(every), 'seed')}"] if every else []
        )
        if not seeds:
            continue
        normals, *swept = map(list, zip(*seeds, strict=True))
        chance = float(np.mean(random_scores(normals)))
        theirs, *gains = ([gained(run, chance) for run in runs] for runs in (normals, *swept))
        best = max(range(len(RATES)), key=lambda at: np.mean(gains[at]))
        evidence.use(*normals, *swept[best])
        for run, bn, normal in zip(normals, gains[best], theirs, strict=True):
            share = BN_FAILS + float(np.divide(bn - BN_FAILS * normal, np.mean(theirs)))
            evidence.values[game].append(evidence.finite(share, run))
        evidence.remarks.append(f"bn's best learning rate is {RATES[best]:g}")
        for size, runs in part.others("batch_size").items():  # not judged
            large = [score(gained(run, chance)) for run in select(runs, "bn")[0][:10]]
            evidence.remarks += [f"with minibatches of {size} bn gains {', '.join(large)}"] if large else []
