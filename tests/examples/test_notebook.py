"""The notebook for Colab: its commands parse, and its cells run in a clone, at scale quick on a CPU."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
from factories import parse_command

TOP = Path(__file__).parents[2]
NOTEBOOK = TOP / "examples/colab.ipynb"
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=None, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[1])
"""


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def test_the_notebook_is_valid_and_has_no_outputs() -> None:
    cells = [cell for cell in read(NOTEBOOK).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


def test_the_commands_of_the_notebook_parse() -> None:
    text = "\n".join(cell.source for cell in read(NOTEBOOK).cells)
    given = dict(re.findall(r'^(\w+) = os\.environ\.get\("\w+", "(.*)"\)', text, re.MULTILINE)) | {"SCALE": "paper"}
    lines = [line.strip() for line in re.findall(r"!(wnrepro[^\n`]+)", text)]
    named = {parse_command(re.sub(r"{(\w+)}", lambda name: given[name[1]], line))[0][0] for line in lines}
    assert {"doctor", "reproduce", "bench", "data", "cvae", "cifar", "report"} == named


def test_without_a_clone_and_an_address_the_notebook_stops_with_a_sentence(tmp_path: Path) -> None:
    first, second = [cell.source for cell in read(NOTEBOOK).cells if cell.cell_type == "code"][:2]
    code = first + "\n" + second.partition("%cd")[0]
    environment = {name: value for name, value in os.environ.items() if name != "WNREPRO_REPOSITORY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "REPOSITORY" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(
    not (TOP / ".git").exists(), reason="the notebook clones this repository, and there is no .git here"
)
def test_the_cells_run(tmp_path: Path) -> None:
    """In a new clone, with an environment that the notebook may install into; its packages are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv/bin/python")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    there = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    paths = [path for path in sys.path if path.endswith("-packages")] or [sysconfig.get_path("purelib")]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in paths]
    Path(there, "rest.pth").write_text("".join(lines))
    shutil.copy(NOTEBOOK, tmp_path / "colab.ipynb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WNREPRO_"))}
    environment |= {
        "WNREPRO_REPOSITORY": f"file://{TOP}",
        "WNREPRO_RESULTS": str(tmp_path / "kept"),
        "WNREPRO_SMALL": "draw --param wn",
        "WNREPRO_EXPERIMENT": "cvae --dataset mnist --param wn --epochs 1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as: no isolation, hatchling is here
        "JUPYTER_PATH": str(Path(sys.prefix, "share/jupyter")),
    }
    command = [python, "-c", EXECUTE, str(tmp_path / "colab.ipynb"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [cell for cell in read(tmp_path / "colab.ipynb").cells if cell.cell_type == "code"]
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert (tmp_path / "wnrepro/Makefile").exists() and Path(there, "_wnrepro.pth").read_text().strip() == str(
        tmp_path / "wnrepro"
    )
    runs = {path.parent.parent.name for path in (tmp_path / "kept/quick").glob("*/*/*/run.json")}
    assert runs == {"wn_lr0.001", "wn_lr0.001_g_start-1.0", "mnist_wn_lr0.002_epochs-1"}
    shown = [kind for output in cells[-1].outputs for kind in output.get("data", {})]
    assert shown.count("image/png") == 2 and "text/html" in shown
