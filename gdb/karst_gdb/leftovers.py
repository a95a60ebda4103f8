"""Breakpoints that a debugger left in the dynamic loader when it was killed. GDB has one there to learn of libraries: the
process ends at its next dlopen, or goes astray where another GDB takes the breakpoint for the program's own."""

from __future__ import annotations

import os
import re

import gdb

from karst_gdb.live import Live

_LOADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-x\S ([0-9a-f]+) \S+ \d+ +(/.*/ld[-.][^/]*)$", re.MULTILINE)
_BREAKPOINT = 0xcc


def _find(pid: int) -> dict[int, int]:
    """By address, the byte that the loader's file has where its text in memory has a breakpoint. GDB has none of its own in
    the process while that is stopped."""
    found: dict[int, int] = {}
    with open(f"/proc/{pid}/maps", "rb") as file:
        maps = os.fsdecode(file.read())
    for start, end, offset, path in _LOADER.findall(maps):
        low, size = int(start, 16), int(end, 16) - int(start, 16)
        with open(f"/proc/{pid}/root{path}", "rb") as file:
            file.seek(int(offset, 16))
            wanted = file.read(size)
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            text = os.pread(memory.fileno(), size, low)
        changed = [at for at in range(min(len(wanted), len(text))) if text[at] != wanted[at]] if text != wanted else []
        if all(text[at] == _BREAKPOINT for at in changed):
            found.update((low + at, wanted[at]) for at in changed)
    return found


def take_out_of_loader(live: Live) -> None:
    """Fails, when it did so, as this GDB has to begin anew: it takes such a breakpoint for an instruction of the program's,
    and keeps to that."""
    if not live.is_here:
        return
    pid = live.inferior.pid
    try:
        found = _find(pid)
        with open(f"/proc/{pid}/mem", "wb", buffering=0) as memory:
            for address, byte in found.items():
                os.pwrite(memory.fileno(), bytes([byte]), address)
    except OSError:  # the file was replaced, or is out of reach
        return
    if found:
        raise gdb.GdbError("a debugger that was killed left a breakpoint in the loader, which is taken out now; GDB knows of "
                           f"that when it begins anew: `detach`, `attach {pid}`, and then again")
