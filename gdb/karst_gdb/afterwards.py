"""Detours are taken out of a process that GDB has let go of already, where it did not say so before: GDB 10 and 11
at the end of a batch, `detach inferiors`, a hook that was redefined."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import gdb
from karst_engine import Mapping, Permission
from karst_ptrace import Seized

from karst_gdb import memory
from karst_gdb.detours import Detours

_SYS_KCMP, _KCMP_VM = 312, 1  # Linux x86-64, arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/linux/kcmp.h


@dataclass
class _Tid:
    ptid: tuple[int, int, int]


@dataclass
class _Thread:
    thread: _Tid
    pc: int
    sp: int


class _Live:
    """As much of live.Live as taking out needs."""

    def __init__(self, seized: Seized) -> None:
        self._seized = seized
        self.read, self.write = seized.read, seized.write
        with open(f"/proc/{seized.pid}/maps", "rb") as file:
            self.mappings: list[Mapping] = memory.parse_maps(os.fsdecode(file.read()))

    def stack_end(self, address: int) -> int:
        return next((mapping.end for mapping in self.mappings if mapping.start <= address < mapping.end), 0)

    def code_ranges(self) -> list[tuple[int, int]]:
        return [(mapping.start, mapping.end) for mapping in self.mappings
                if mapping.permissions & Permission.EXECUTE]

    def threads(self) -> list[_Thread]:
        return [_Thread(_Tid((self._seized.pid, tid, 0)), *self._seized.pc_and_sp(tid)) for tid in self._seized.tids]

    def set_pcs(self, wanted: list[tuple[_Tid, int]]) -> None:
        for thread, pc in wanted:
            self._seized.set_pc(thread.ptid[1], pc)


def started_at(pid: int) -> str:
    """When a process began, in the kernel's words; "": there is none, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


def are_there(pid: int, began: str, detours: Detours) -> bool:
    """Whether the process is the one that the detours were put into, and still has them in its text."""
    if not detours.installed or not began or started_at(pid) != began:
        return False
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            return all(os.pread(memory.fileno(), len(one.detour.jump), one.detour.patch) == one.detour.jump
                       for one in detours.installed.values())
    except OSError:
        return False


def _share_memory(pid: int, other: int) -> bool:
    """As after vfork. Where the kernel does not tell (it has no kcmp), a process is taken for one of its own."""
    return ctypes.CDLL(None).syscall(_SYS_KCMP, pid, other, _KCMP_VM, 0, 0) == 0


def forked_at(pid: int, parent: int, detours: Detours) -> str:
    """When a process began that has detours of another one in memory of its own; "": it has not."""
    began = started_at(pid)
    return began if are_there(pid, began, detours) and not _share_memory(pid, parent) else ""


def is_mapped(pid: int, address: int, name: str) -> bool:
    """Whether a process has a file of that name mapped at address."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            mappings = memory.parse_maps(os.fsdecode(file.read()))
    except OSError:
        return False
    return any(mapping.start <= address < mapping.end and os.path.basename(mapping.name or "") == name
               for mapping in mappings)


def take_out(pid: int, began: str, detours: Detours) -> None:
    """If they are still there."""
    if not are_there(pid, began, detours):
        return
    try:
        with Seized(pid) as seized:
            detours.change(_Live(seized), [], {}, set())  # type: ignore[arg-type]
    except OSError as error:
        gdb.write(f"karst: detours stay in process {pid}, where they do no harm: {error}\n", gdb.STDERR)
