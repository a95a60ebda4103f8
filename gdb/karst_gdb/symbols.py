"""Symbols and layouts that GDB knows, lent to the engine: debuginfod, add-symbol-file, symbol-file ..."""

from __future__ import annotations

import os
import re

import gdb
from karst_engine import Symbol

_HEXADECIMAL = re.compile(r"0x[0-9a-f]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*")


def _size(symbol: gdb.Symbol | None) -> int:
    try:
        return symbol.type.sizeof if symbol is not None and symbol.type is not None else 0
    except gdb.error:  # an incomplete type
        return 0


def _objfiles(path: str) -> list[gdb.Objfile]:
    """GDB's files for a module: itself, and its separate debug files."""
    found = []
    for objfile in gdb.selected_inferior().progspace.objfiles():
        owner = objfile.owner or objfile
        for name in (objfile.filename, owner.filename):
            if name and (name == path or os.path.basename(name) == os.path.basename(path)):
                found.append(objfile)
                break
    return found


def _in_debug_information(path: str, name: str) -> gdb.Symbol | None:
    if not path:
        return gdb.lookup_static_symbol(name) or gdb.lookup_global_symbol(name)
    for objfile in _objfiles(path):
        symbol = objfile.lookup_static_symbol(name) or objfile.lookup_global_symbol(name)
        if symbol is not None:
            return symbol
    return None


class Symbols:
    """What one program's files say, each question asked once until GDB loads or drops a file."""

    def __init__(self) -> None:
        self._symbols: dict[tuple[str, str], Symbol | None] = {}
        self._members: dict[tuple[str, str, str], tuple[int, int] | None] = {}

    def symbol(self, path: str, name: str, ranges: list[tuple[int, int]]) -> Symbol | None:
        """name in the module mapped from path ("": any), whose memory is in ranges (none: not known)."""
        key = (path, name)
        if key not in self._symbols:
            self._symbols[key] = self._look_up(path, name, ranges) if _NAME.fullmatch(name) else None
        return self._symbols[key]

    def member(self, path: str, type_name: str, member: str) -> tuple[int, int] | None:
        """Offset and size of a member of a struct, in bytes."""
        key = (path, type_name, member)
        if key not in self._members:
            self._members[key] = _find_member(type_name, member)
        return self._members[key]

    def _look_up(self, path: str, name: str, ranges: list[tuple[int, int]]) -> Symbol | None:
        found = _in_debug_information(path, name)
        try:
            # `info address` knows ELF symbols too, and thread-local ones without a thread.
            text = gdb.execute(f"info address {name}", to_string=True)
        except gdb.error:
            return None
        numbers = [int(number, 16) for number in _HEXADECIMAL.findall(text)]
        if not numbers:
            return None
        if any(start <= numbers[0] < end for start, end in ranges):
            return Symbol(numbers[0], _size(found), False)
        # An offset is smaller than any address of a module; an address elsewhere is another module's.
        smallest = min((start for start, _ in ranges), default=0x10000)
        return Symbol(numbers[0], _size(found), True) if numbers[0] < smallest else None


def _find_member(type_name: str, member: str) -> tuple[int, int] | None:
    for name in (f"struct {type_name}", type_name):
        try:
            fields = gdb.lookup_type(name).strip_typedefs().fields()
        except (gdb.error, TypeError):
            continue
        for field in fields:
            if field.name == member and hasattr(field, "bitpos"):
                return field.bitpos // 8, field.type.strip_typedefs().sizeof
    return None
