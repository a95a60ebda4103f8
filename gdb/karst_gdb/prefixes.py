"""Commands that only begin others: `karst`, `karst trap`, `set karst`. What follows and is none of them is told in one
line, with what may have been meant."""

from __future__ import annotations

import re

import gdb
import karst_engine


class Prefix(gdb.Command):
    """kind: what the commands behind it are, "verb"."""

    def __init__(self, name: str, kind: str, command_class: int = gdb.COMMAND_DATA) -> None:
        super().__init__(name, command_class, gdb.COMPLETE_NONE, True)
        self._name, self._kind = name, kind

    def _behind(self) -> list[str]:
        """The commands that begin with it, of which GDB itself has the list."""
        listed = gdb.execute(f"help {self._name}", to_string=True)
        return re.findall(rf"^{self._name} ([^\s,]+).* -- ", listed, re.MULTILINE)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        if not argument.strip():
            gdb.execute(f"help {self._name}")
            return
        typed = argument.split()[0]
        meant = karst_engine.did_you_mean(typed, self._behind())
        raise gdb.GdbError(f"no {self._kind} '{typed}'{meant or f'; `help {self._name}` lists all'}")
