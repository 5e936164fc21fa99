"""The whole report on made-up runs: its files, tables, claims and warnings, escaping."""

import csv
import html
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from factories import (
    add_work,
    edit,
    made_up_scale,  # noqa: F401
    make_all,
    make_bench,
    make_dqn,
    make_dqns,
    make_draw,
    make_draws,
    make_run,
    make_vae,
    make_vaes,
    report_text,
    report_twice,
    snapshot,
)

from wnrepro.errors import UserError
from wnrepro.report import check, figures, scales_with_runs, tables, write_report
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.claim import Claim, Fixed
from wnrepro.report.layout import literal
from wnrepro.results import load

CHECKS = "### 3 implementation checks"
EMPIRICAL = f"### {len(CLAIMS) - 3} empirical claims"
SECTIONS = {
    "cifar": "## CIFAR-10 classifier",
    "cvae": "## Convolutional VAEs",
    "draw": "## DRAW",
    "dqn": "## DQN",
    "times": "## Step time",
    "checks": "## Checks of the implementation",
    "beyond": "## Beyond the paper",
    "runs": "## Settings and runs",
}


def headings(text: str) -> list[str]:
    """Of report.md, after its title."""
    return [line for line in text.splitlines() if line.startswith("#")][1:]


def sections(**names: list[str]) -> list[str]:
    """The headings of a report with these tables by section; a section that has claims is always there."""
    found = ["## Claims", CHECKS, EMPIRICAL]
    for name, title in SECTIONS.items():
        found += [title] * (name != "beyond" or name in names) + [f"### {table}" for table in names.get(name, [])]
    return found


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, for the tests that read report.md only."""
    monkeypatch.setattr(figures, "draw", lambda *given: {})


def test_report_has_everything_and_is_the_same_twice(tmp_path: Path) -> None:
    make_all(tmp_path)
    paths = write_report(tmp_path, "short")
    first = snapshot(tmp_path)
    assert paths == [tmp_path / "short" / name for name in ("report.md", "report.html")]
    assert write_report(tmp_path, "short") == paths
    assert snapshot(tmp_path) == first
    text = paths[0].read_text()
    page = paths[1].read_text()
    names = ("overview", "figure1", "test_error", "learning_rates", "norm_growth", "noise_kurtosis", "init", "variants")
    for name in (*names, "step_time"):
        assert f"](figures/{name}.png)\n\n*" in text and f"* ([PDF](figures/{name}.pdf))\n" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
        assert first[f"short/figures/{name}.pdf"].startswith(b"%PDF-")
        assert max(len(first[f"short/figures/{name}.{suffix}"]) for suffix in ("png", "pdf")) < 200_000
        assert f'<figure id="figure-{name}"' in page
    drawn = [re.findall(r"!\[.*\]\(figures/(.*)\.png\)", text), re.findall(r'<figure id="figure-(.*?)"', page)]
    assert sorted(drawn[0]) == sorted(drawn[1]) == sorted((*names, "step_time"))
    assert {path.suffix for path in (tmp_path / "short" / "figures").iterdir()} == {".png", ".pdf"}
    assert headings(text) == sections(
        cifar=["Table 2: test error on CIFAR-10 (%)", "Every variant of the classifier"],
        times=["Step times"],
        runs=["Settings: cifar", "Runs"],
    )
    tables = {path.name for path in (tmp_path / "short" / "tables").iterdir()}
    assert tables == {f"{n}.csv" for n in ("claims", "table2", "variants", "step_time", "settings", "runs")}
    for claim in CLAIMS:
        assert f"| {claim.id} |" in text
    assert "not comparable with the paper's" in text
    assert "not the paper's setting" in text
    assert "diverged, epoch 2 of 8" in text
    assert "| weight norm. + mean-only b.n. | 7.26 | – | 1 | 7.31 | 0.003 | seed 1: 7.26 |" in text
    assert "Maxout" in text
    assert "0123456" in text and "AMD EPYC, 2 threads" in text
    assert "Adam's learning rate" in text
    assert text.count("do not trust") == 0


def test_report_of_what_is_there_so_far(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", status="running", logged=3)
    fresh = make_run(tmp_path, "bn", status="running", logged=0)
    (fresh / "metrics.csv").unlink()
    (fresh / "run.json").unlink()
    text = report_text(tmp_path)
    assert "seed 1: 37.24 (epoch 3 of 8)" in text
    assert "seed 1: – (epoch 0 of 8)" in text
    assert "2 runs, 0 done, 0 diverged, 2 incomplete" in text
    assert check(tmp_path, "short") == []
    assert not (tmp_path / "short" / "figures" / "step_time.png").exists()


def test_a_figure_of_an_earlier_report_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    files = [tmp_path / "short" / "figures" / f"step_time.{suffix}" for suffix in ("png", "pdf")]
    old = tmp_path / "short" / "figures" / "figure1.svg"  # of an earlier version
    drawn = {"step_time": Drawn("A caption.", {"png": b"1", "pdf": b"2"}, [], [], False)}
    monkeypatch.setattr(figures, "draw", lambda *given: drawn)
    write_report(tmp_path, "short")
    assert [file.read_bytes() for file in files] == [b"1", b"2"]
    old.write_text("<svg></svg>")
    other = old.with_name("mine.svg")
    other.write_text("<svg></svg>")
    monkeypatch.setattr(figures, "draw", lambda *given: {})
    write_report(tmp_path, "short")
    assert not any(file.exists() for file in (*files, old)) and other.exists()


def test_report_of_the_vaes_alone_is_the_same_twice(tmp_path: Path) -> None:
    make_vaes(tmp_path)
    text, first = report_twice(tmp_path)
    assert {file.stem for file in (tmp_path / "short" / "figures").iterdir()} == {
        *("overview", "figure2", "bound_raw", "init"),
    }
    for name in ("figure2", "bound_raw"):
        assert f"](figures/{name}.png)\n\n*" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
    tables = {file.name for file in (tmp_path / "short" / "tables").iterdir()}
    assert tables == {"claims.csv", "bounds.csv", "settings.csv", "runs.csv"}
    assert headings(text) == sections(
        cvae=["Final test bounds of the VAEs"], runs=["Settings: cvae mnist", "Settings: cvae cifar10", "Runs"]
    )
    figures_at = [text.index(f"](figures/{name}.png)\n\n*") for name in ("overview", "figure2", "bound_raw", "init")]
    sections_at = [text.index(f"\n{title}\n") for title in ("## Claims", *SECTIONS.values()) if title in text]
    assert [sum(at > start for start in sections_at) - 1 for at in figures_at] == [0, 2, 2, 6]
    assert "Here: cvae mnist, 8 runs, 6 finished; cvae cifar10, " in text
    assert "Scale `short` differs from the paper's for cvae mnist: epochs 120 (paper: 100)." in text
    assert "fp32 (cvae mnist), fp32 (cvae cifar10)" in text
    # −84 ± 4.3027 · 0.1 / √3
    assert "| mnist | mnist_wn_lr0.002 |  | 120 | 3 | −84.00 | \\[−84.25, −83.75\\] | 25.00 | −59.00 | – | – |" in text
    assert "| mnist | mnist_bn_lr0.002 |  | 120 | 0 | – | – | – | – | – | – | seed 1: epoch 3 of 120 |" in text
    diverged = "| – | – | – | – | – | – | seed 1: diverged, epoch 4 of 120 |"
    assert f"| mnist | mnist_wn+mobn_lr0.002 |  | 120 | 0 {diverged}" in text
    assert "| −9000.00 | \\[−9000.25, −8999.75\\] | 25.00 | −8975.00 | 4.227 |" in text
    assert "| mnist | IAF paper: diagonal Gaussian |  |  |  | −84.08 ± 0.10 |" in text
    assert "| cifar10 | IAF paper: its best model |  |  |  |  |  |  |  | 3.11 |" in text
    assert "Our posterior of MNIST is IAF of depth 2, width 320. At scale `short` ours cannot be" in text
    assert "| cvae cifar10_wn_lr0.002 seed-1 | done | 6 of 6 | test bound −9000.00 nats, 4.227 bits per dim. |" in text
    assert "nan" not in text and "inf " not in text
    assert check(tmp_path, "short") == []


def test_report_of_draw_alone_is_the_same_twice(tmp_path: Path) -> None:
    make_draws(tmp_path)
    make_draw(tmp_path, epochs=3, seed=4, status="running", logged=2)
    make_bench(tmp_path)
    text, first = report_twice(tmp_path)
    assert {file.stem for file in (tmp_path / "short" / "figures").iterdir()} == {
        *("overview", "figure3", "kl_steps", "step_time"),
    }
    for name in ("figure3", "kl_steps"):
        assert f"](figures/{name}.png)\n\n*DRAW's " in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
    tables = {file.name for file in (tmp_path / "short" / "tables").iterdir()}
    assert tables == {"claims.csv", "draw_bounds.csv", "step_time.csv", "settings.csv", "runs.csv"}
    assert headings(text) == sections(
        draw=["Final test bounds of DRAW"], times=["Step times"], runs=["Settings: draw", "Runs"]
    )
    # −89.6 ± 4.3027 · 0.1 / √3
    assert "| wn_lr0.0003 |  | 10 | 3 | −89.60 | \\[−89.85, −89.35\\] | 20.00 | −69.60 |  | binarized by Lar" in text
    assert "| bn_lr0.0003 |  | 10 | 2 | −212.00 | \\[−212.00, −212.00\\] | 20.00 | −192.00 |  |" in text
    assert "| wn+mobn_lr0.0003 |  | 10 | 0 | – | – | – | – | seed 1: diverged, epoch 4 of 10 |" in text
    assert "| wn_lr0.0003_epochs-3 | epochs = 3 | 3 | 0 | – | – | – | – | seed 4: epoch 2 of 3 |" in text
    assert "| jbornschein/draw, a user's run |  | 100 |  | −90.5 |" in text
    assert "| Gregor et al. (2015) |  |  |  | −80.97 |" in text
    assert "At scale `short` ours cannot be compared with the others." in text
    assert "| draw wn_lr0.0003 seed-1 | done | 10 of 10 | test bound −89.60 nats |" in text
    assert "| draw | AMD EPYC (cpu) | bn / normal | 1.080 | \\[1.070, 1.090\\] | 20 |" in text
    assert "| time_steps | 64 | 4 |" in text
    assert "nan" not in text and "inf " not in text
    assert check(tmp_path, "short") == []


def test_report_of_dqn_alone_is_the_same_twice(tmp_path: Path) -> None:
    make_dqns(tmp_path, ("breakout", "space_invaders"))
    make_dqn(tmp_path, "wn", best=90.0, actors=8)
    make_dqn(tmp_path, "wn", seed=4, status="running", logged=1, best=500.0, checkpoint_replay=True)
    make_bench(tmp_path)
    text, first = report_twice(tmp_path)
    drawn = {file.stem for file in (tmp_path / "short" / "figures").iterdir()}
    assert drawn == {"overview", "figure4", "mean_q", "init", "step_time"}
    for name in ("figure4", "mean_q"):
        assert f"](figures/{name}.png)\n\n*" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
    tables = {file.name for file in (tmp_path / "short" / "tables").iterdir()}
    names = ("claims", "table3", "interquartile_means", "step_time", "settings", "runs")
    assert tables == {f"{name}.csv" for name in names}
    assert headings(text) == sections(
        dqn=["Table 3: maximum test score", "Interquartile means over the games"],
        times=["Step times"],
        runs=["Settings: dqn breakout", "Settings: dqn space_invaders", "Runs"],
    )
    assert "The paper's runs have 50 million agent steps." in text
    # 50 ± 4.3027 · 1 / √3; 20 / √(7² + 7²) · √149 but for the seeds' spread
    start = "| Breakout | wn | 50.0 | \\[47.5, 52.5\\] | 3 | 410 / 403 / 401 | 0.0003 |  | 4 | 4 000 | 0.008 |"
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    assert row == f"{start} 30.0 ± 0.6 (150 games) | 10.0 ± 0.5 (200 games) | 26.3 | seed 4: epoch 1 of 4 |"
    assert "| Breakout | wn | 90.0 | – | 1 | 410 / 403 / 401 | 0.0003 | actors = 8 | 4 |" in text
    running = "| Space Invaders | bn | 11.3 | – | 1 | 1779 / 2179 / 1975 | 0.0003 |  | 2 | 2 000 | 0.004 |"
    assert f"{running} 11.3 ± 1.0 (50 games) | 10.0 ± 1.0 (50 games) | 0.9 | seed 1: epoch 2 of 4 |" in text
    lost = "| 0.0003 |  | 0 | 0 | 0 | – | 10.0 ± 1.0 (50 games) | – | seed 1: diverged, epoch 3 of 4 |"
    assert f"| Space Invaders | wn+mobn | – | – | 0 | 1779 / 2179 / 1975 {lost}" in text
    # Three seeds of both games: 40/391, 41/391, 39/391, 40/1965, … without the highest and the lowest
    middle = (39 / 391 + 40 / 391 + 41 / 1965 + 40 / 1965) / 4
    assert f"| wn | {middle:.3f} |" in text and "| Breakout, Space Invaders | 6 | 4 |" in text
    assert "| bn | 0." not in text[: text.index("## Step time")].rpartition("### Interquartile means")[2]
    assert "At scale `short` ours cannot be compared with the others." in text
    assert "| dqn breakout_wn_lr0.0003 seed-1 | done | 4 of 4 | test score 30.0 |" in text
    assert "| game | breakout | breakout |" in text and "| game | space_invaders | space_invaders |" in text
    assert "nan" not in text and "inf " not in text
    assert check(tmp_path, "short") == []


@pytest.mark.usefixtures("text_only")
def test_report_of_both_experiments(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_vae(tmp_path)
    make_bench(tmp_path)
    text = report_text(tmp_path)
    assert headings(text) == sections(
        cifar=["Table 2: test error on CIFAR-10 (%)", "Every variant of the classifier"],
        cvae=["Final test bounds of the VAEs"],
        times=["Step times"],
        runs=["Settings: cifar", "Settings: cvae mnist", "Runs"],
    )
    assert text.count("\nHere: ") == 2 and "\nHere: cvae mnist, 1 run, 1 finished." in text
    assert "| cvae | AMD EPYC (cpu) | bn / normal | 1.080 | \\[1.070, 1.090\\] | 20 |" in text
    assert "IAF paper: its best model" not in text  # no CIFAR-10 runs
    assert "| dataset | mnist | mnist |" in text
    # A data set is no setting of its own: nothing has changed.
    assert all(not run.changed for run in load(tmp_path, "short").runs)
    # Tables of what is gone go with it.
    (tmp_path / "short" / "cvae").rename(tmp_path / "moved")
    text = report_text(tmp_path)
    assert "Final test bounds of the VAEs" not in text and "Here: cvae" not in text
    assert not (tmp_path / "short" / "tables" / "bounds.csv").exists()


@pytest.mark.usefixtures("text_only")
def test_quick_is_marked_and_paper_is_not(tmp_path: Path) -> None:
    make_run(tmp_path, scale="quick")
    make_run(tmp_path, scale="paper")
    assert scales_with_runs(tmp_path) == ["paper", "quick"]
    assert "mean nothing beside the paper's" in report_text(tmp_path, "quick")
    text = report_text(tmp_path, "paper")
    assert "mean nothing" not in text and "(the paper's setting)" in text


@pytest.mark.usefixtures("text_only")
def test_table2_gives_mean_interval_and_every_seed(tmp_path: Path) -> None:
    for seed, error in ((1, 0.08), (2, 0.09), (3, 0.10)):
        make_run(tmp_path, "bn", seed=seed, scale="paper", test_error=error)
    make_run(tmp_path, "bn", seed=4, scale="paper", status="running", logged=3)
    text = report_text(tmp_path, "paper")
    # 9 ± 4.3027 · 1 / √3
    assert "| 9.00 | \\[6.51, 11.49\\] | 3 | 8.05 | 0.003 | seed 1: 8.00; seed 2: 9.00; seed 3: 10.00; seed 4:" in text
    assert "(epoch 3 of 200)" in text


@pytest.mark.usefixtures("text_only")
def test_runs_with_other_settings_stay_out_of_the_claims(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", width=8, test_error=0.5)
    make_run(tmp_path, "wn", test_error=0.25)
    text = report_text(tmp_path)
    assert "| 25.00 | – | 1 | 8.46 | 0.003 | seed 1: 25.00 |" in text
    assert "| wn_lr0.003_width-8 | 0.003 | width = 8 | 1 |" in text


@pytest.mark.usefixtures("text_only")
def test_text_of_run_files_is_escaped(tmp_path: Path) -> None:
    message = "a|b\nc<img src=x>\\|`d`\ud7ff"
    make_run(tmp_path, status="failed", logged=1, record={"message": message, "device_name": "<b>|x"})
    text = report_text(tmp_path)
    with (tmp_path / "short" / "tables" / "runs.csv").open(newline="") as file:
        (run,) = csv.DictReader(file)
    where = [run[name] for name in ("experiment", "variant", "param", "seed")]
    assert where == ["cifar", "wn_lr0.003", "wn", "1"]
    row = next(line for line in text.splitlines() if line.startswith("| cifar wn_lr0.003 seed-1 | failed"))
    assert r"a\|b c&lt;img src=x&gt;\\\|\`d\`" in row
    assert "<img" not in text and "<b>" not in text
    header = next(line for line in text.splitlines() if line.startswith("| Run | Status | Epoch |"))
    assert row.replace(r"\|", "").count("|") == header.count("|")


@pytest.mark.usefixtures("text_only")
def test_text_of_a_vaes_files_is_escaped(tmp_path: Path) -> None:
    make_vae(tmp_path, facts={"data": "<img src=x>|`d`", "log_likelihood_nats": -80.25, "importance_samples": 128})
    make_vae(tmp_path, seed=2, facts={"log_likelihood_nats": -70.0, "importance_samples": 5})
    text = report_text(tmp_path)
    assert "<img" not in text
    assert (
        r"| 25.00 | −59.00 | – | −80.25 (K = 128, n = 1) |  | &lt;img src=x&gt;\|\`d\`; binarized by Larochelle |"
        in text
    )


def test_literal() -> None:
    assert literal("a*b [x](y) & \t z") == r"a\*b \[x\](y) &amp; z"


def test_no_torch() -> None:
    code = "import sys, wnrepro.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


@pytest.mark.usefixtures("text_only")
def test_the_distance_from_the_floor_of_benches_that_tell_it(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path)
    make_bench(tmp_path, name="old")
    old = json.loads((tmp_path / "bench" / "old.json").read_text())
    old["dqn"] = {"ratios": {}, "memory": {"replay_steps": 10, "peak_bytes": 9}}
    (tmp_path / "bench" / "old.json").write_text(json.dumps(old))
    assert "Distance from the floor" not in report_text(tmp_path)
    path = add_work(tmp_path)
    text = report_text(tmp_path)
    section = text[text.index("### Distance from the floor") : text.index("## Checks")]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    whose = "| cifar | AMD EPYC (cpu) |"
    assert rows == [
        f"{whose} wn | 2000 | 239 | 2 | 1250 | 1.60 | 62.5 | 9.1 | 1.54 |",
        f"{whose} plain wn | 2500 | 239 | 2 | 1250 | 2.00 | 62.5 | 9.1 | 2.00 |",
        "| dqn | AMD EPYC (cpu) | wn, learning | 2000 | 239 | 2 | 1250 | 1.60 | 62.5 | 9.1 | 0.50 |",
    ]
    page = (tmp_path / "short" / "report.html").read_text()
    assert "Distance from the floor" in page and "<td>wn, learning</td>" in page
    whole = path.read_text()
    for old, new in (('"floor_seconds"', '"floor"'), ('"wn": 1540000000', '"wn": null')):
        edit(path, old, new)
        with pytest.raises(UserError, match=r"cpu\.json"):
            load(tmp_path, "short")
        path.write_text(whole)


def claims_csv(results: Path, scale: str = "short") -> dict[str, dict[str, str]]:
    with (results / scale / "tables" / "claims.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.mark.usefixtures("text_only")
def test_checks_stand_apart_from_empirical_claims(tmp_path: Path) -> None:
    make_all(tmp_path)
    text = report_text(tmp_path)
    found = findings(load(tmp_path, "short"))
    checks, empirical = ([claim for claim in CLAIMS if claim.check == check] for check in (True, False))
    assert [claim.id for claim in checks] == ["C1", "C2", "C3"]
    assert "3 implementation checks: 3 reproduced." in text
    (counts,) = [line for line in text.splitlines() if line.startswith(f"{len(empirical)} empirical claims: ")]
    assert " not testable at this scale" in counts and " 0 " not in counts and "inconclusive" not in counts
    assert "No empirical claim has a verdict at this scale" in text
    for some, start, end in ((checks, CHECKS, EMPIRICAL), (empirical, EMPIRICAL, "## CIFAR-10 classifier")):
        group = text[text.index(start) : text.index(end)]
        assert [line[2:].split(" |")[0] for line in group.splitlines() if line.startswith("| C")] == [
            claim.id for claim in some
        ]
    rows = claims_csv(tmp_path)
    assert list(rows) == [claim.id for claim in CLAIMS]
    for claim in CLAIMS:
        rule = f"hash {claim.hash}"
        assert rule in text and (rows[claim.id]["rule_hash"], rows[claim.id]["rule"]) == (claim.hash, claim.rule)
        finding = found[claim.id]
        assert rows[claim.id]["p"] == (str(finding.p_holds) if finding.estimates else "")


@pytest.mark.usefixtures("text_only")
def test_a_finding_shows_its_rule_power_warnings_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    found, claim = findings(load(tmp_path, "short")), CLAIMS[5]
    found[claim.id] = replace(
        found[claim.id], power="Sees 3 % <b>.", warnings=("Mixed a|b.", "Mixed c."), after_the_fact=True
    )
    monkeypatch.setattr("wnrepro.report.findings", lambda results: found)
    fixed = Fixed("2", "abc1234", "2026-11-29")
    monkeypatch.setattr(Claim, "fixed", property(lambda of: fixed if of is claim else Fixed("", "", "")))
    text = report_text(tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {claim.id} |")]
    assert f"(Rule version 2, commit abc1234 of 2026-11-29, hash {claim.hash}.)" in line
    assert ", rule after the fact |" in line and text.count("rule after the fact") == 2  # that, and what it means
    assert r"| Sees 3 % &lt;b&gt;. | Mixed a\|b. Mixed c. |" in line
    page = (tmp_path / "short" / "report.html").read_text()
    assert page.count('<span class="badge rule-after-the-fact">') == 1  # in the summary, which stays when it opens
    assert "<dd>Sees 3 % &lt;b&gt;.</dd>" in page and '<dd class="warning">Mixed a|b. Mixed c.</dd>' in page
    row = claims_csv(tmp_path)[claim.id]
    assert [row[name] for name in ("power", "warnings", "after_the_fact", "rule_version")] == [
        "Sees 3 % <b>.",
        "Mixed a|b. Mixed c.",
        "True",
        "2",
    ]


@pytest.mark.usefixtures("text_only")
def test_notes_are_shown_as_warnings(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, precision="bf16")
    (note,) = load(tmp_path, "short").notes
    assert "bf16" in note
    text = report_text(tmp_path)
    assert text.index(f"**{literal(note)}**") < text.index("## Claims")
    page = (tmp_path / "short" / "report.html").read_text()
    assert page.index(f"<p>{html.escape(note)}</p>\n</div>") < page.index('<dl class="counts">')
    assert "precision fp32 (cifar)" in text
    text = write_report(tmp_path, "short", precision="bf16")[0].read_text()
    assert "precision bf16 (cifar)" in text


@pytest.mark.usefixtures("text_only")
def test_published_rows_stand_beside_ours(tmp_path: Path) -> None:
    shown = "published in this repository"
    for seed in (1, 2):
        make_run(tmp_path / "published", seed=seed, test_error=0.1)
        make_draw(tmp_path / "published", seed=seed, bound=-90.0)
        make_vae(tmp_path / "published", seed=seed, bound=-85.0)
        make_dqn(tmp_path / "published", seed=seed, best=40.0)
    make_draw(tmp_path / "published", "bn")  # nothing of ours to stand beside
    for make in (make_run, make_draw, make_vae, make_dqn):
        make(tmp_path)
    text = report_text(tmp_path)
    rows = [line for line in text.splitlines() if shown in line]
    assert len(rows) == 4
    assert (
        f"| weight normalization, {shown} | 10.00 | \\[10.00, 10.00\\] | 2 | 8.46 | 0.003 | seed 1: 10.00; seed 2"
        in text
    )
    assert f"| mnist | mnist_wn_lr0.002, {shown} |  | 120 | 2 | −85.00 | \\[−85.00, −85.00\\] |" in text
    assert f"| wn_lr0.0003, {shown} |  | 10 | 2 | −102.00 |" in text
    assert f"| Breakout | wn, {shown} | 40.0 | \\[40.0, 40.0\\] | 2 | 410 / 403 / 401 | 0.0003 |  |" in text
    lines = text.splitlines()
    assert all(not row.startswith("| ---") and shown not in lines[lines.index(row) - 1] for row in rows)
    for table in (tmp_path / "short" / "tables").iterdir():
        assert shown not in table.read_text()
    assert shown not in report_text(tmp_path / "published")


@pytest.mark.usefixtures("text_only")
def test_a_thousand_runs_make_no_endless_cell(tmp_path: Path) -> None:
    for seed in range(1, 601):
        make_run(tmp_path, seed=seed, epochs=2, decay_from=2, noise_epochs=(), logged=1, status="failed")
    for seed in range(1, 401):
        make_run(tmp_path, "normal", seed=seed, logged=0, status="running")
    start = time.process_time()
    text = report_text(tmp_path)
    assert time.process_time() - start < 60
    assert "; seed 20: – (epoch 0 of 8); and 380 more |" in text
    assert "; seed 20: failed, epoch 1 of 2; and 580 more |" in text
    assert ", 20, and 580 more |" in text  # the seeds in the table of settings
    page = tmp_path / "short" / "report.html"
    assert page.stat().st_size < 2**21
    cells = re.findall(r"<td[^>]*>([^<]*)<", page.read_text())
    assert len(cells) > 10_000 and max(map(len, cells)) < 1000


def test_intervals_are_rounded_outward() -> None:
    low, high, words = tables.limits("error_", 0.08421, 0.09379, 2, 100)
    assert (low.name, low.value, high.name, high.value) == ("error_low", 0.08421, "error_high", 0.09379)
    assert words.value == "[8.42, 9.38]" and not words.name
    assert tables.limits("", 1.07, 1.09, 3)[-1].value == "[1.070, 1.090]"
    assert tables.limits("", -1.2345, 1.2345, 2)[-1].value == "[−1.24, 1.24]"
    assert tables.limits("", float("nan"), float("nan"), 2)[-1].value == "–"
    assert tables.limits("", 1e306, 1e306, 2, 100)[-1].value == "–"  # beyond what a number can hold


def test_the_published_reports_show_what_is_there() -> None:
    published = list((Path(__file__).parents[1] / "results" / "published").glob("*/report.md"))
    assert published
    for path in published:
        linked = set(re.findall(r"\]\((figures/[^)]+)\)", path.read_text()))
        assert len(linked) > 10 and linked == {f"figures/{one.name}" for one in (path.parent / "figures").iterdir()}
