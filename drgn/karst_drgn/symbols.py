"""Symbols and layouts that drgn knows, lent to the engine for what the files of a module don't say."""

from __future__ import annotations

from typing import Optional

import drgn
import karst_engine
from drgn import Program


class Lent(karst_engine.Target):
    """Asked only for symbols and members."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog

    def symbol(self, module: Optional[str], name: str) -> Optional[karst_engine.Symbol]:
        try:
            found = self._prog.symbols(name)
        except (LookupError, drgn.MissingDebugInfoError):
            return None
        for symbol in found:
            # drgn adds the place where a module lies to the offsets of thread-local ones too: of no use.
            if symbol.kind in (drgn.SymbolKind.OBJECT, drgn.SymbolKind.FUNC):
                return karst_engine.Symbol(symbol.address, symbol.size)
        return None

    def member(self, module: Optional[str], type_name: str, member: str) -> Optional[tuple[int, int]]:
        for name in (f"struct {type_name}", type_name):
            try:
                found = self._prog.type(name).member(member)
                return found.bit_offset // 8, drgn.sizeof(found.type)
            except (LookupError, TypeError, drgn.MissingDebugInfoError):
                continue
        return None
