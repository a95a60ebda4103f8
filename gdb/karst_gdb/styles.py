"""The engine's styles as GDB's own: `set style address foreground ...` and so on decide how they look."""

from __future__ import annotations

import os

import gdb

# enum karst_style, in its order: which of GDB's styles shows it. GDB has none for good and bad; `highlight`
# is its loudest. What they mean is always in the words too.
_GDB_STYLES = (None, "title", "address", "function", "filename", None, "highlight", "highlight", "metadata")
_BAD = 7
_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_INTENSITIES = {"bold": "1", "dim": "2"}


def _colour(style: str, ground: str, base: int) -> str:
    """The number of a colour for a terminal, "" for none or one that has no name."""
    try:
        name = str(gdb.parameter(f"style {style} {ground}"))
    except RuntimeError:  # a GDB that has no such style
        return ""
    return str(base + _COLOURS.index(name)) if name in _COLOURS else ""


def _intensity(style: str) -> str:
    try:
        return _INTENSITIES.get(str(gdb.parameter(f"style {style} intensity")), "")
    except RuntimeError:
        return ""


def _sequence(index: int, style: str | None) -> str:
    if style is None:
        return ""
    intensity = _intensity(style) or ("1" if index == _BAD else "")
    codes = [code for code in (_colour(style, "foreground", 30), _colour(style, "background", 40), intensity) if code]
    return f"\x1b[{';'.join(codes)}m" if codes else ""


def is_redirected() -> bool:
    """Whether GDB's output goes to a string or a pipe now: it then has neither width nor height."""
    return not gdb.parameter("width") and not gdb.parameter("height")


def sequences(setting: str) -> tuple[str, ...]:
    """What to write before text of each style, "" for as it is; by karst's `color` setting."""
    enabled = setting == "on"
    if setting == "auto":
        enabled = (bool(gdb.parameter("style enabled")) and not is_redirected() and os.isatty(1)
                   and os.environ.get("TERM", "dumb") != "dumb")
    if not enabled:
        return ("",) * len(_GDB_STYLES)
    return tuple(_sequence(index, style) for index, style in enumerate(_GDB_STYLES))
