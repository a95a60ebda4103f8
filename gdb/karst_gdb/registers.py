"""Threads as GDB knows them, for the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gdb
from karst_engine import Thread

_MASK = (1 << 64) - 1

# The kernel's user_regs_struct, by GDB's names.
_X86_64 = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base"
           " ds es fs gs").split()
_AARCH64 = [f"x{number}" for number in range(31)] + ["sp", "pc", "cpsr"]


@dataclass(frozen=True)
class _Machine:
    registers: list[str]
    stack_pointer: str
    program_counter: str
    thread_pointer: str


_MACHINES = {"i386:x86-64": _Machine(_X86_64, "rsp", "rip", "fs_base"),
             "aarch64": _Machine(_AARCH64, "sp", "pc", "tpidr")}


@contextmanager
def selection_kept() -> Iterator[None]:
    """Threads and frames may be selected inside; afterwards GDB is where it was."""
    thread = gdb.selected_thread()
    try:
        frame = gdb.selected_frame()
    except gdb.error:
        frame = None
    try:
        yield
    finally:
        if thread is not None and thread.is_valid():
            thread.switch()
            if frame is not None and frame.is_valid():
                frame.select()


def _register(frame: gdb.Frame, name: str) -> int | None:
    try:
        return int(frame.read_register(name)) & _MASK
    except (ValueError, gdb.error, TypeError):  # not on this target, or not available
        return None


def _thread_id(thread: gdb.InferiorThread) -> int:
    pid, lwp, tid = thread.ptid
    return lwp or tid or pid


def _read(thread: gdb.InferiorThread) -> Thread:
    name = thread.name or ""
    try:
        thread.switch()
        frame = gdb.newest_frame()
    except gdb.error:  # it runs (non-stop mode), or is gone
        return Thread(_thread_id(thread), name=name)
    machine = _MACHINES.get(frame.architecture().name())
    if machine is None:
        return Thread(_thread_id(thread), stack_pointer=int(frame.read_register("sp")) & _MASK,
                      program_counter=frame.pc(), name=name)
    values = [_register(frame, register) for register in machine.registers]
    known = {register: value or 0 for register, value in zip(machine.registers, values)}
    thread_pointer = known.get(machine.thread_pointer) or _register(frame, machine.thread_pointer) or 0
    whole = all(value is not None or register == "orig_rax" for register, value in zip(machine.registers, values))
    return Thread(_thread_id(thread), thread_pointer, known[machine.stack_pointer], known[machine.program_counter],
                  registers=tuple(value or 0 for value in values) if whole else (), name=name)


def threads() -> list[Thread]:
    """The selected inferior's threads, the oldest first."""
    with selection_kept():
        found = sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num)
        return [_read(thread) for thread in found]
