"""examples/Dockerfile: its pins, what it copies, and, where a Docker engine works, its image."""

import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
DOCKERFILE = TOP / "examples/Dockerfile"


def pins(path: Path) -> dict[str, str]:
    """All of a file of requirements, with version, marker and hashes, by name."""
    lines = path.read_text().replace("\\\n", "").splitlines()
    return {line.partition("==")[0]: line for line in lines if line and line.strip()[0] != "#"}


def test_without_cuda_it_installs_the_same_pins_except_nvidias(tmp_path: Path) -> None:
    """By the Dockerfile's own commands, which select the pins."""
    shell = re.findall(r"((?:awk|grep) .* requirements\.txt > /tmp/\w+\.txt)", DOCKERFILE.read_text())
    assert len(shell) == 2
    for line in shell:
        subprocess.run(line.replace("/tmp", str(tmp_path)), cwd=TOP, shell=True, check=True)
    every, here = pins(TOP / "requirements.txt"), pins(tmp_path / "pins.txt")
    left_out = every.keys() - here.keys()
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} < left_out
    assert all(re.match("torch|triton|cuda-|nvidia-", name) for name in left_out)
    assert here == {name: every[name] for name in here} and all("--hash=sha256:" in line for line in here.values())
    torch = [line.split()[0] for name, line in every.items() if name in {"torch", "torchvision"}]
    assert (tmp_path / "torch.txt").read_text().split() == torch


def test_what_it_copies_is_there_and_not_ignored() -> None:
    sources = [
        one for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE) for one in line.split()
    ]
    first, *kept = (TOP / "examples/Dockerfile.dockerignore").read_text().split()
    assert first == "*" and {*kept} == {*(f"!{one}" for one in sources), "**/__pycache__"}
    assert all((TOP / one).exists() for one in sources)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], cwd=TOP, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_image_trains_without_a_network() -> None:
    try:
        docker("info")
    except (OSError, AssertionError):
        pytest.skip("no Docker engine answers: `docker info` fails")
    commit = "0123456789abcdef"
    docker("build", "-f", "examples/Dockerfile", "-t", "wnrepro-test", "--build-arg", f"WNREPRO_COMMIT={commit}", ".")
    run = ("run", "--rm", "--network", "none", "wnrepro-test")
    try:
        assert commit[:9] in docker(*run, "--version") and "+cpu" in docker(*run, "--version")
        assert "wnrepro reproduce" in docker(*run)
        assert "epoch 1/1" in docker(*run, "cvae", "--param", "wn", "--scale", "quick", "--epochs", "1")
    finally:
        docker("rmi", "--force", "wnrepro-test")
