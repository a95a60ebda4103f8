"""Symbols and layouts that GDB knows, lent to the engine: debuginfod, add-symbol-file, symbol-file ..."""

from __future__ import annotations

import os
import re

import gdb
from karst_engine import Symbol

_HEXADECIMAL = re.compile(r"0x[0-9a-f]+")
# The kernel maps nothing below (vm.mmap_min_addr): a smaller number is an offset in a TLS block.
_LOWEST_ADDRESS = 0x10000
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


def _in_debug_information(path: str | None, name: str) -> gdb.Symbol | None:
    for objfile in _objfiles(path) if path else ():
        symbol = objfile.lookup_static_symbol(name) or objfile.lookup_global_symbol(name)
        if symbol is not None:
            return symbol
    return gdb.lookup_static_symbol(name) or gdb.lookup_global_symbol(name)


class Symbols:
    """What one program's files say, each question asked once until GDB loads or drops a file."""

    def __init__(self) -> None:
        self._symbols: dict[tuple[str | None, str], Symbol | None] = {}
        self._members: dict[tuple[str, str], tuple[int, int] | None] = {}

    def symbol(self, path: str | None, name: str) -> Symbol | None:
        """name in the module mapped from path (None: any). It may be another module's; the engine looks."""
        key = (path, name)
        if key not in self._symbols:
            self._symbols[key] = _find_symbol(path, name) if _NAME.fullmatch(name) else None
        return self._symbols[key]

    def member(self, path: str | None, type_name: str, member: str) -> tuple[int, int] | None:
        """Offset and size of a member of a struct, in bytes."""
        key = (type_name, member)
        if key not in self._members:
            self._members[key] = _find_member(type_name, member)
        return self._members[key]


def _find_symbol(path: str | None, name: str) -> Symbol | None:
    found = _in_debug_information(path, name)
    if found is not None and not found.needs_frame and found.addr_class == gdb.SYMBOL_LOC_STATIC:
        return Symbol(int(found.value().address), _size(found), False)
    try:
        # `info address` knows ELF symbols too, and thread-local ones without a thread.
        text = gdb.execute(f"info address {name}", to_string=True)
    except gdb.error:
        return None
    numbers = _HEXADECIMAL.findall(text)
    if not numbers:
        return None
    number = int(numbers[0], 16)
    return Symbol(number, _size(found), number < _LOWEST_ADDRESS)


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
