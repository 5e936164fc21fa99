"""Converts any text to LaTeX that shows the same text. The LaTeX is ASCII, for all engines and font encodings."""

import re
import unicodedata

from wnrepro.report.layout import marked
from wnrepro.text import printable

BREAK = "\u200b"  # allows a line break; `printable` removes it from all texts
WORDS = r"\ textbackslash ^ textasciicircum ~ textasciitilde ` textasciigrave < textless > textgreater | textbar"
WORDS += " – textendash — textemdash … ldots “ textquotedblleft ” textquotedblright ‘ textquoteleft § S"
WORDS += f" æ ae Æ AE ø o Ø O ß ss ł l Ł L {BREAK} allowbreak"
MATHS = r"− - ± \pm ≤ \le ≥ \ge × \times · \cdot ‖ \| ∇ \nabla √ \surd ≈ \approx ≡ \equiv → \to ← \leftarrow ∞ \infty"
MATHS += r" α \alpha β \beta γ \gamma δ \delta ε \epsilon λ \lambda μ \mu σ \sigma Δ \Delta Λ \Lambda Σ \Sigma"
MATHS += " ⁰ ^0 ¹ ^1 ² ^2 ³ ^3 ⁴ ^4 ⁵ ^5 ⁶ ^6 ⁷ ^7 ⁸ ^8 ⁹ ^9 ⁻ ^- ᵀ ^T"
SIGNS = {'"': r"{\char34}", "’": "'", "½": "1/2"} | {sign: f"\\{sign}" for sign in "{}$&#_%"}
SIGNS |= {sign: f"{{{sign}}}" for sign in "[]*"}  # else part of the command before
for words, form in (WORDS, "\\{}{{}}"), (MATHS, r"\ensuremath{{{}}}"):
    pairs = iter(words.split(" "))
    SIGNS |= {sign: form.format(command) for sign, command in zip(pairs, pairs, strict=True)}
MARKS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
ACCENTS = dict(zip(MARKS, "`'^~=u.\"rHvc", strict=True))


def tex(text: str, most: int | None = None) -> str:
    """Convert a text, cut to `most` characters, to one line. A letter that some fonts lack becomes `U+1F600`."""
    text = re.sub(r"\S{24}(?=\S)", rf"\g<0>{BREAK}", printable(unicodedata.normalize("NFC", text), most))
    text = re.sub(r"\b([np]) = ", r"\1~=~", "".join(map(_letter, text)).replace(r" \%", r"~\%"))
    return re.sub(r"([-,'])(?=\1)", r"\1\\kern0pt{}", text)  # no ligature


def prose(text: str) -> str:
    """Convert the program's own text, in which backticks mark `code`."""
    return "".join(rf"\texttt{{{tex(piece)}}}" if code else tex(piece) for code, piece in marked(text))


def _letter(letter: str) -> str:
    if letter in SIGNS or letter.isascii():
        return SIGNS.get(letter, letter)
    parts = unicodedata.normalize("NFD", letter)
    accented = len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS
    return f"\\{ACCENTS[parts[1]]}{{{parts[0]}}}" if accented else f"U+{ord(letter):04X}"
