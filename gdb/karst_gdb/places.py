"""Where karst's breakpoints stand, in each of GDB's processes.

GDB sets a breakpoint on an address in all its processes, and lets none of them run when one has nothing there: one that
was attached beside, or a child that executes another program. So the address is an expression that GDB works out
anew for each, whenever a process or its files change: in the others it is the program's entry, which they have passed
or pass once."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import gdb

_NAME = "_karst_place"
_AT_ENTRY = 9  # elf.h
_PAIR = struct.Struct("QQ")


class Place:
    """An address in the processes of some inferiors."""

    def __init__(self, address: int, inferior: int) -> None:
        self.address = address
        self.inferiors = {inferior}  # by number
        self._number = next(_numbers)
        _places[self._number] = self

    @property
    def location(self) -> str:
        return f"*${_NAME}({self._number})"

    def forget(self) -> None:
        _places.pop(self._number, None)


_numbers = itertools.count(1)
_places: dict[int, Place] = {}


def _entry_of(inferior: gdb.Inferior) -> int:
    """Of its program; 0: it has no process here."""
    connection = getattr(inferior, "connection", None)  # from GDB 12 on
    if connection is not None and connection.type != "native":
        return 0
    try:
        with open(f"/proc/{inferior.pid}/auxv", "rb") as file:
            data = file.read()
    except OSError:
        return 0
    whole = len(data) // _PAIR.size * _PAIR.size
    return next((value for kind, value in _PAIR.iter_unpack(data[:whole]) if kind == _AT_ENTRY), 0)


class _Function(gdb.Function):
    """Where a breakpoint of karst's stands in the selected inferior.
Usage: $_karst_place (NUMBER)
For karst itself."""

    def __init__(self) -> None:
        super().__init__(_NAME)

    def invoke(self, number: gdb.Value) -> int:
        place = _places.get(int(number))
        if place is None:
            raise gdb.GdbError("this is for karst itself")
        inferior = gdb.selected_inferior()
        if inferior.num in place.inferiors:
            return place.address
        return _entry_of(inferior) or place.address


@contextmanager
def in_c() -> Iterator[None]:
    """The expression is one of C, whatever the program is written in."""
    before = gdb.parameter("language")
    gdb.execute("set language c", to_string=True)
    try:
        yield
    finally:
        gdb.execute(f"set language {before}", to_string=True)


def register() -> None:
    _Function()
