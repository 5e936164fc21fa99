"""Records a command in a terminal, and draws the recording as an animated SVG for the README.

    python -m wnrepro.tools.recording OUT.svg [--command "make reproduce-quick"]
    python -m wnrepro.tools.recording OUT.svg --cast OUT.cast

The first form runs the command, best in a fresh clone after `make install`. It also writes OUT.cast, an asciicast of
version 2, and the second form draws that again. If the command fails, nothing is written, and its exit code is passed
on. Nothing is written either if the command or its output names this machine, its user or its folders.
"""

import argparse
import codecs
import getpass
import itertools
import json
import math
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import pyte
from pyte.screens import Char

PROMPT = "\x1b[1;34m~/wnrepro\x1b[0m $ "
COLUMNS, ROWS = 114, 24
UNSET = ("COLUMNS", "LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")

# Seconds of the animation: all, a frame, the prompt alone, a typed character, the typed command, the last frame.
LENGTH, FRAME, EMPTY, KEY, TYPED, LAST = 25.0, 0.125, 0.8, 0.06, 0.6, 5.0

# Pixels. 114 columns make the image as wide as a README on GitHub: 830.
CELL, LINE, PAD, BAR, SIZE = 7, 16, 16, 28, 11.6
RULES = {"━": "2", "─": "1"}  # characters drawn as lines of this width: some fonts leave gaps between them
FONT = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace'
BACK, CHROME, BORDER, MUTED = "#0d1117", "#161b22", "#6e7681", "#8b949e"
COLOURS = {
    "default": "#e6edf3", "white": "#e6edf3", "black": "#6e7681", "red": "#ff7b72", "green": "#3fb950",
    "brown": "#d29922", "blue": "#58a6ff", "magenta": "#bc8cff", "cyan": "#39c5cf",
}  # fmt: skip

Row = tuple[Char, ...]


class Cast(NamedTuple):
    """A recorded command: the size of its terminal, its seconds, and its output with times."""

    command: str
    columns: int
    rows: int
    seconds: float
    output: list[tuple[float, str]]

    def write(self, path: Path) -> None:
        """Write an asciicast."""
        head = {"version": 2, "width": self.columns, "height": self.rows, "duration": self.seconds}
        lines = [head | {"command": self.command}, *([at, "o", text] for at, text in self.output)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> "Cast":
        """Read an asciicast from `write`."""
        head, *events = map(json.loads, path.read_text().splitlines())
        output = [(at, text) for at, _, text in events]
        return cls(head["command"], head["width"], head["height"], head["duration"], output)


def record(command: str) -> tuple[int, Cast]:
    """Run a command in a pseudo-terminal, print its output, and return its exit code and the recording."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (ROWS, COLUMNS))
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | {"TERM": "xterm-256color"}
    output: list[tuple[float, str]] = []
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    began = time.monotonic()
    process = subprocess.Popen(
        ["sh", "-c", command], stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    )
    os.close(its)
    try:
        while data := read(ours):
            output.append((round(time.monotonic() - began, 3), decode(data)))
            print(output[-1][1], end="", flush=True)
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        os.close(ours)
    return code if code >= 0 else 128 - code, Cast(command, COLUMNS, ROWS, round(time.monotonic() - began, 3), output)


def read(terminal: int) -> bytes:
    """Return the next output, or nothing at its end, where Linux raises an error."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def private(cast: Cast) -> list[str]:
    """Return the words in a recording that name this machine, its user or its folders."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join([cast.command, "\n", *(part for _, part in cast.output)]))
    folders = map(str, (Path.cwd(), Path.home(), tempfile.gettempdir(), sys.prefix))
    words = sorted({socket.gethostname(), getpass.getuser(), *folders})
    return [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]


class Terminal(pyte.Screen):
    """A terminal's screen, which shows dim text as grey. Pyte's ignores that it is dim."""

    def select_graphic_rendition(self, *attrs: int) -> None:
        if not {38, 48} & set(attrs):  # else a 2 may be part of a colour
            attrs = tuple(90 if attr == 2 else attr for attr in attrs)
        super().select_graphic_rendition(*attrs)

    def picture(self) -> tuple[Row, ...]:
        """Return the rows of characters. A visible cursor is a character with its colours reversed."""
        rows = [[self.buffer[y][x] for x in range(self.columns)] for y in range(self.lines)]
        y, x = self.cursor.y, min(self.cursor.x, self.columns - 1)
        if not self.cursor.hidden:
            rows[y][x] = rows[y][x]._replace(reverse=not rows[y][x].reverse)
        return tuple(map(tuple, rows))


def speed_of(cast: Cast) -> int:
    """Return how many times as fast a recording is shown: a whole number, and above 10 a multiple of 5."""
    speed = max(1, math.ceil(cast.seconds / (LENGTH - EMPTY - KEY * len(cast.command) - TYPED - LAST)))
    return speed if speed <= 10 else 5 * math.ceil(speed / 5)


def shots(cast: Cast) -> Iterator[tuple[tuple[Row, ...], int, float]]:
    """Yield the terminal's rows, the command's seconds so far, and the seconds for which to show them."""
    terminal = Terminal(cast.columns, cast.rows)
    feed = pyte.Stream(terminal).feed
    feed(PROMPT)
    yield terminal.picture(), 0, EMPTY
    for char in cast.command:
        feed(char)
        yield terminal.picture(), 0, KEY
    yield terminal.picture(), 0, TYPED
    feed("\r\n")
    step, done = FRAME * speed_of(cast), 0
    for number in range(1, math.ceil(cast.seconds / step) + 1):
        while done < len(cast.output) and cast.output[done][0] <= number * step:
            feed(cast.output[done][1])
            done += 1
        yield terminal.picture(), int(min(number * step, cast.seconds)), FRAME
    feed(PROMPT)
    yield terminal.picture(), int(cast.seconds), LAST


def rgb(colour: str) -> str:
    """Return a colour of pyte's, a name or six hexadecimal digits, as `#3fb950`."""
    return COLOURS.get(colour.removeprefix("bright"), f"#{colour}")


def write(column: float, y: float, text: str, colour: str, more: str = "") -> str:
    """Draw a text, with the columns' width in any font."""
    size = f'x="{column * CELL:g}" y="{y:g}" textLength="{len(text) * CELL}"'
    kept = escape(text, quote=False).replace("  ", " \N{NO-BREAK SPACE}")  # two spaces would be drawn as one
    return f'<text {size} fill="{colour}"{more}>{kept}</text>'


def draw_row(row: Row) -> str:
    """Draw a row of the terminal, or nothing if it is blank."""
    parts, column = [], 0
    for style, group in itertools.groupby(row, key=lambda char: char._replace(data=RULES.get(char.data, ""))):
        text = "".join(char.data for char in group)
        colours = rgb(style.fg), BACK if style.bg == "default" else rgb(style.bg)
        colour, back = reversed(colours) if style.reverse else colours
        across = f"h{len(text) * CELL}"
        if back != BACK:
            parts.append(f'<path d="M{column * CELL} 0{across}v{LINE}H{column * CELL}z" fill="{back}"/>')
        if style.data:
            line = f'stroke="{colour}" stroke-width="{style.data}"'
            parts.append(f'<path d="M{column * CELL} {LINE / 2:g}{across}" {line}/>')
        elif text.strip():
            left = len(text) - len(text.lstrip())
            bold = ' font-weight="bold"' if style.bold else ""
            parts.append(write(column + left, 0.75 * LINE, text.strip(), colour, bold))
        column += len(text)
    return "".join(parts)


def draw(cast: Cast) -> str:
    """Return an SVG that moves a strip of frames behind a window. Without animation it shows the last frame.

    A frame refers to its rows, so that equal rows are drawn once. Equal consecutive frames are one.
    """
    width, height = cast.columns * CELL, cast.rows * LINE
    wide, high = width + 2 * PAD, height + 2 * (PAD + BAR)  # of the image
    step, clock_y = height + PAD + BAR, height + PAD + BAR / 2 + 4  # from frame to frame; of the clock within one
    names: dict[str, str] = {}  # of the rows, as drawn
    frames: list[str] = []
    places: list[str] = []
    times: list[float] = []
    now = 0.0
    for (rows, seconds), group in itertools.groupby(shots(cast), key=lambda shot: shot[:2]):
        drawn = [(y * LINE, row) for y, row in enumerate(map(draw_row, rows)) if row]
        used = [f'<use href="#{names.setdefault(row, f"r{len(names)}")}" y="{y}"/>' for y, row in drawn]
        clock = f"{seconds // 60}:{seconds % 60:02}"
        used.append(write(cast.columns - len(clock), clock_y, clock, MUTED))
        places.append(f"0 {-len(frames) * step}")
        frames.append(f'<g transform="translate(0 {len(frames) * step})">{"".join(used)}</g>')
        times.append(now)
        now += sum(shown for *_, shown in group)
    minutes, seconds = divmod(int(cast.seconds), 60)
    took, speed = f"{minutes} min {seconds} s" if minutes else f"{seconds} s", speed_of(cast)
    caption = f"{took}, shown {speed} times as fast" if speed > 1 else f"{took}, shown in real time"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}">',
        f"<title>{escape(cast.command)}: {caption}</title>",
        f"<style>text {{ font-family: {FONT}; font-size: {SIZE}px }}",
        "#still { display: none }",
        "@media (prefers-reduced-motion: reduce) { #strip { display: none } #still { display: inline } }</style>",
        *("<defs>", *(f'<g id="{name}">{row}</g>' for row, name in names.items()), "</defs>"),
        f'<rect x="0.5" y="0.5" width="{wide - 1}" height="{high - 1}" rx="8" fill="{CHROME}" stroke="{BORDER}"/>',
        f'<path d="M1 {BAR}H{wide - 1}V{high - BAR}H1z" fill="{BACK}"/>',
        *(f'<circle cx="{PAD + 5 + 16 * x}" cy="{BAR / 2}" r="5" fill="{BORDER}"/>' for x in range(3)),
        f'<svg x="{PAD}" y="{BAR + PAD}" width="{width}" height="{step}">',
        write(0, clock_y, caption, MUTED),
        f'<g id="strip" transform="translate({places[-1]})">',
        f'<animateTransform attributeName="transform" type="translate" dur="{now:.2f}s" repeatCount="indefinite"',
        f'calcMode="discrete" values="{";".join(places)}" keyTimes="{";".join(f"{at / now:.5f}" for at in times)}"/>',
        *(*frames, "</g>", f'<g id="still" transform="translate({places[-1]})">{frames[-1]}</g>', "</svg>", "</svg>"),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Record or draw, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wnrepro.tools.recording", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the SVG")
    parser.add_argument("--command", default="make reproduce-quick", help="the command to record")
    parser.add_argument("--cast", type=Path, help="a recording to draw again")
    options = parser.parse_args(arguments)
    if options.cast:
        cast = Cast.read(options.cast)
    else:
        code, cast = record(options.command)
        if code:
            print(f"nothing written: exit code {code}", file=sys.stderr)
            return code
        if names := private(cast):
            print(f"nothing written: the recording names {', '.join(names)}", file=sys.stderr)
            return 1
        cast.write(options.out.with_suffix(".cast"))
    options.out.write_text(draw(cast))
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
