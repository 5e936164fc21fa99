import json
import shlex
import socket
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from wnrepro.tools import recording
from wnrepro.tools.recording import Cast

NAME = "{http://www.w3.org/2000/svg}"
OUTPUT = r"\033[32mgreen\033[0m \033[2mdim\033[0m\r\n 10 %%\r100 %%\nwrong\033[1A\n\033[2Kright ━━──\n"


class Drawn:
    """An SVG: its frames as lines of text, and the seconds at which each begins."""

    def __init__(self, path: Path) -> None:
        root = ElementTree.parse(path).getroot()
        self.size = int(root.attrib["width"]), int(root.attrib["height"])
        rows = {row.attrib["id"]: row for row in root.find(f"{NAME}defs") or ()}
        strip = root.find(".//*[@id='strip']")
        assert strip is not None
        move, *frames = strip
        self.seconds = float(move.attrib["dur"].removesuffix("s"))
        self.places = [float(place.split()[1]) for place in move.attrib["values"].split(";")]
        self.starts = [float(time) * self.seconds for time in move.attrib["keyTimes"].split(";")]
        self.colours = {text.text: text.attrib["fill"] for row in rows.values() for text in row.iter(f"{NAME}text")}
        self.lines, self.clocks = [], []
        for frame in frames:
            used = [rows[use.attrib["href"].removeprefix("#")] for use in frame.iter(f"{NAME}use")]
            self.lines.append([" ".join(text.text or "" for text in row.iter(f"{NAME}text")) for row in used])
            self.clocks.append(frame.findtext(f"{NAME}text"))


def test_a_command_is_recorded_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w")  # as under make
    monkeypatch.chdir(tmp_path)
    Path("script").write_text(f"printf {shlex.quote(OUTPUT)}; stty size; sleep 0.3; echo end$MAKEFLAGS")
    out = tmp_path / "out.svg"
    assert recording.main([str(out), "--command", "sh script"]) == 0
    drawn = Drawn(out)
    assert drawn.size == (830, 24 * 16 + 2 * (16 + 28))
    assert drawn.lines[0] == ["~/wnrepro $"]
    assert drawn.lines[-1][-6:] == ["green dim", "100 %", "right", "24 114", "end", "~/wnrepro $"]
    assert not any("wrong" in line for lines in drawn.lines for line in lines)
    assert drawn.colours["green"] == "#3fb950" and drawn.colours["dim"] == "#6e7681"
    assert len(drawn.lines) == len(drawn.places) == len(drawn.starts)
    assert drawn.places == [-at * 428.0 for at in range(len(drawn.places))]
    assert drawn.starts[0] == 0 and all(a < b for a, b in pairwise(drawn.starts))
    assert drawn.seconds - drawn.starts[-1] == pytest.approx(recording.LAST, abs=1e-2)
    for file in (out, tmp_path / "out.cast"):
        assert socket.gethostname() not in file.read_text() and str(tmp_path) not in file.read_text()


def test_a_recording_is_drawn_again(tmp_path: Path) -> None:
    assert recording.main([str(tmp_path / "one.svg"), "--command", "echo $((6 * 7))"]) == 0
    cast = tmp_path / "one.cast"
    head, *events = map(json.loads, cast.read_text().splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, 114, 24)
    assert "".join(text for _, _, text in events) == "42\r\n" and all(kind == "o" for _, kind, _ in events)
    assert recording.main([str(tmp_path / "two.svg"), "--cast", str(cast)]) == 0
    assert (tmp_path / "two.svg").read_bytes() == (tmp_path / "one.svg").read_bytes()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("echo text; exit 3", 3),
        ("kill -TERM $$", 143),
        (f"echo on {socket.gethostname()}.", 1),
        ("pwd", 1),
        (f"printf '{socket.gethostname()[:1]}\\033[1m{socket.gethostname()[1:]}'", 1),  # in two colours
        (f": {Path.cwd()}", 1),
    ],
)
def test_nothing_is_written_of_a_failure_or_of_private_words(command: str, code: int, tmp_path: Path) -> None:
    assert recording.main([str(tmp_path / "out.svg"), "--command", command]) == code
    assert not list(tmp_path.iterdir())


def test_a_long_recording_takes_25_seconds_at_a_constant_speed(tmp_path: Path) -> None:
    output = [(float(second), f"\r{second} s") for second in range(0, 760, 2)]
    cast = Cast("make reproduce-quick", 114, 24, 760.4, output)
    assert recording.speed_of(cast) == 45
    out = tmp_path / "out.svg"
    out.write_text(recording.draw(cast))
    drawn = Drawn(out)
    assert drawn.seconds <= recording.LENGTH + recording.FRAME
    assert drawn.lines[-1] == ["~/wnrepro $ make reproduce-quick", "758 s ~/wnrepro $"] and drawn.clocks[-1] == "12:40"
    body = [(start, clock) for start, clock in zip(drawn.starts, drawn.clocks, strict=True) if clock != "0:00"][:-1]
    first = body[0][0]
    for start, clock in body[:-1]:
        minutes, seconds = map(int, (clock or "").split(":"))
        assert 60 * minutes + seconds == pytest.approx(45 * (start - first + recording.FRAME), abs=1.1)
