"""Docstrings for a terminal: formulas as Unicode text, names without their roles."""

from __future__ import annotations

import re
import unicodedata

SYMBOLS = {
    "ell": "ℓ", "ne": "≠", "le": "≤", "ge": "≥", "cdot": "·", "odot": "⊙", "in": "∈", "notin": "∉",
    "cup": "∪", "sim": "~", "infty": "∞", "dots": "…", "top": "T", "lfloor": "⌊", "rfloor": "⌋",
    "lVert": "‖", "rVert": "‖", "lambda": "λ", "sum": "Σ", "|": "‖", "{": "{", "}": "}",
    ",": " ", ";": " ", " ": " ", "quad": "\t", "qquad": "\n", "\\": "\n",
}  # fmt: skip
SILENT = {"bigl", "bigr", "Bigl", "Bigr", "textstyle"}
WORDS = {"mathrm", "text", "operatorname"}  # their argument is text as it stands
ACCENTS = {"hat": "\u0302", "bar": "\u0304"}  # marks that combine with the letter before
FUNCTIONS = {"log", "exp", "cos", "sin", "tanh", "max", "min", "Pr"}
RAISED = str.maketrans("0123456789+-T", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀ")
LOWERED = str.maketrans("0123456789+-", "₀₁₂₃₄₅₆₇₈₉₊₋")
TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\s+|.", re.DOTALL)
BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|\|[^|]*\|")
LONG = 88  # characters of a line
# Beside these characters, or at an end, a fraction needs no parentheses.
BEFORE, AFTER = "=+-,;:([{|\n\t", "=+-,;:)]}|\n\t"


def readable(docstring: str) -> str:
    """The text with formulas as Unicode, and without roles and double backticks."""
    block = re.compile(r"^( *)\.\. math::\s+(.*?)(?=\n\n(?!\1 )|\Z)", re.MULTILINE | re.DOTALL)
    text = block.sub(lambda found: _indented(as_unicode(found[2]), f"{found[1]}    "), docstring)
    text = re.sub(r":math:`([^`]*)`", lambda found: as_unicode(found[1]), text)
    text = re.sub(r":[a-z]+:`~[\w.]*?(\w+)`", r"`\1`", text)
    return re.sub(r":[a-z]+:(`[^`]*`)", r"\1", text).replace("``", "`")


def as_unicode(formula: str) -> str:
    """A formula of LaTeX as text; each part after a wide space has its own line."""
    formula = re.sub(r"\\begin\{cases\}(.*?)\\end\{cases\}", _cases, formula, flags=re.DOTALL)
    formula = re.sub(r"\\(begin|end)\{aligned\}|&", "", formula)
    lines = _Reader(formula).group().split("\n")
    lines = (re.sub(" +", " ", line).strip().removesuffix(",") for line in lines)
    return "\n".join(_apart(line) for line in lines if line)


def _apart(line: str) -> str:
    """Return a line with its parts apart, or below each other if they are long."""
    return re.sub(",? ?\t ?", "\n", line) if len(line) > LONG else re.sub(" ?\t ?", "   ", line)


def _indented(text: str, margin: str) -> str:
    return "\n".join(margin + line for line in text.splitlines())


def _cases(found: re.Match[str]) -> str:
    """Write cases as ``{ value if condition; value else }``."""
    cases = [case.replace("&", "if").strip() for case in found[1].split(r"\\") if case.strip()]
    return r"\{ " + "; ".join(cases).replace(r"if \text{else}", "else") + r" \}"


class _Reader:
    """Reads a formula from left to right."""

    def __init__(self, formula: str) -> None:
        self.tokens, self.place = TOKEN.findall(formula), 0

    def group(self) -> str:
        """Read up to the end of a group, or of the formula."""
        parts: list[tuple[str, bool]] = []  # text, and whether it is a fraction
        while self.place < len(self.tokens):
            token = self._next()
            if token == "}":
                break
            if token == "_":
                parts.append((_lowered(self._argument()), False))
            elif token == "^":
                self._raise(parts)
            else:
                parts.append(self._part(token))
        return _joined([part for part in parts if part[0]])

    def _next(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def _argument(self) -> str:
        """Read a group in braces, or one token."""
        while self.tokens[self.place].isspace():
            self.place += 1
        return self._part(self._next())[0]

    def _part(self, token: str) -> tuple[str, bool]:
        name = token[1:]
        if token == "{":
            return self.group(), False
        if token[0] != "\\":
            return (" " if token.isspace() else token), False
        if name.endswith("frac"):
            return _fraction(self._argument(), self._argument())
        return self._named(name), False

    def _named(self, name: str) -> str:
        """Read what a command stands for, with its argument."""
        if name in WORDS:
            end = self.tokens.index("}", self.place)
            words = "".join(self.tokens[self.place + 1 : end])
            self.place = end + 1
            return words
        if name in ACCENTS:
            return unicodedata.normalize("NFC", self._argument() + ACCENTS[name])
        if name == "overline":
            return f"({self._argument()})ᶜ"
        if name in FUNCTIONS:
            following = self.tokens[self.place] if self.place < len(self.tokens) else ""
            touches = following[:1] == "\\" and following[1:] not in SILENT
            return f"{name} " if touches else name
        return "" if name in SILENT else SYMBOLS.get(name) or _greek(name)

    def _raise(self, parts: list[tuple[str, bool]]) -> None:
        """Read an exponent, or the upper limit of the sum before it."""
        raised, before = self._argument(), parts[-1][0]
        if before == "e":
            parts[-1] = f"exp({raised})", False
        elif len(parts) > 1 and parts[-2][0] == "Σ":
            parts[-1] = f"{before.removesuffix('}')}..{raised}}}", False
        else:
            parts.append((_raised(raised), False))


def _lowered(text: str) -> str:
    if all(ord(c) in LOWERED for c in text):
        return text.translate(LOWERED)
    return f"_{text}" if re.fullmatch(r"[^\W_]+|\(\w+\)", text) else f"_{{{text}}}"


def _raised(text: str) -> str:
    if all(ord(c) in RAISED for c in text):
        return text.translate(RAISED)
    return f"^{text}" if re.fullmatch(r"\w+", text) else f"^({text})"


def _fraction(above: str, below: str) -> tuple[str, bool]:
    if (above, below) == ("1", "2"):
        return "½", False
    bar = " / " if " " in above + below else "/"
    if re.search(r" [+-] |/", _without_brackets(above)):
        above = f"({above})"
    if re.search(r"[ /]", _without_brackets(below)):
        below = f"({below})"
    return above + bar + below, True


def _without_brackets(text: str) -> str:
    """Return text with a mark for each bracket."""
    while BRACKETS.search(text):
        text = BRACKETS.sub("@", text)
    return text


def _joined(parts: list[tuple[str, bool]]) -> str:
    """Join parts, with parentheses about fractions that are a factor or an argument."""
    text = ""
    for k, (part, is_fraction) in enumerate(parts):
        after = "".join(other for other, _ in parts[k + 1 :]).lstrip(" ")
        alone = text.rstrip(" ")[-1:] in BEFORE and after[:1] in AFTER
        text += f"({part})" if is_fraction and not alone else part
    return text


def _greek(name: str) -> str:
    size = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {name.upper()}")
    except KeyError:
        return f"\\{name}"
