"""Enter continues a long list: which part of it comes next."""

from __future__ import annotations

import re
from dataclasses import dataclass

import gdb

_HISTORY_LINE = re.compile(r"^\s*([0-9]+)\s", re.MULTILINE)


@dataclass
class _Last:
    line: str = ""
    history: int = -1  # number of the command in GDB's history, -1: not typed
    skip: int = 0  # where the next page begins


_last: dict[str, _Last] = {}


def _history_number(from_tty: bool) -> int:
    """The number of the command typed last. Enter adds none, so that a repeated command finds the number
    that its first run saw. -1 where commands are not typed."""
    if not from_tty:
        return -1
    numbers = _HISTORY_LINE.findall(gdb.execute("show commands", to_string=True))
    return int(numbers[-1]) if numbers else -1


def begin(verb: str, line: str, from_tty: bool) -> int:
    """Rows to skip: those that were shown, if this is the same command repeated by Enter, else 0."""
    number = _history_number(from_tty)
    last = _last.get(verb)
    if last is not None and number >= 0 and (last.history, last.line) == (number, line):
        return last.skip
    _last[verb] = _Last(line, number)
    return 0


def shown(verb: str, upto: int) -> None:
    """Notes that rows were shown up to this one; Enter goes on from there."""
    if verb in _last:
        _last[verb].skip = upto


def forget() -> None:
    """The heap changed: lists begin anew."""
    _last.clear()


def number(text: str | None, default: int) -> int:
    """A count as the engine takes it, "1,000"; what is none the engine itself refuses."""
    digits = (text or "").replace(",", "")
    return int(digits) if digits.isdigit() else default
