"""The registers that a thread has in its program, on x86-64: from its kernel stack, or from the dump's notes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Optional

from drgn import FaultError, Object, Program
from drgn.helpers.linux.sched import task_cpu
from karst_engine import Thread

from karst_drgn import programs, tasks

_CACHE_KEY = "karst processors"
_NT_PRSTATUS = 1

# struct pt_regs, in its order, which is the order of the kernel's user_regs_struct up to ss.
NAMES = ("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di", "orig_ax", "ip",
         "cs", "flags", "sp", "ss")
FS_BASE = len(NAMES)
COUNT = len(NAMES) + 6
_USER_CS = 0x33
_USER_SS = 0x2B
# Sizes of kernel stacks (THREAD_SIZE; the second one with KASAN), which debug information does not tell on all kernels,
# and the bytes between struct pt_regs and a stack's end: 16 where the kernel is built for FRED (Linux 6.9 and newer).
_STACK_SIZES = (16 << 10, 32 << 10)
_PADDINGS = (0, 16)


class UserRegisters(NamedTuple):
    """``values``: as in ``user_regs_struct``: those of NAMES, then fs_base, gs_base, ds, es, fs, gs."""

    values: Sequence[int]

    @property
    def stack_pointer(self) -> int:
        return self.values[19]

    @property
    def program_counter(self) -> int:
        return self.values[16]


def _words_on_stack(task: Object) -> Optional[list[int]]:
    """What the kernel saved when the thread entered it: at the end of its kernel stack."""
    size = 8 * len(NAMES)
    for stack in _STACK_SIZES:
        for padding in _PADDINGS:
            try:
                data = task.prog_.read(int(task.stack) + stack - padding - size, size)
            except FaultError:
                continue
            words = memoryview(data).cast("Q").tolist()
            if (words[17] & 0xFFFF, words[20] & 0xFFFF) == (_USER_CS, _USER_SS):  # FRED keeps more in the upper halves
                words[17], words[20] = _USER_CS, _USER_SS
                return words
    return None


def _processors(prog: Program) -> list[tuple[int, ...]]:
    """The registers of each processor when the dump was taken, by its number: struct elf_prstatus of its notes."""
    if _CACHE_KEY not in prog.cache:
        path = None if programs.is_live(prog) else programs.core_path(prog)
        notes = programs.notes(path, b"CORE", _NT_PRSTATUS) if path else []
        prog.cache[_CACHE_KEY] = [struct.unpack_from("<21Q", note, 112) for note in notes if len(note) >= 112 + 8 * 27]
    return prog.cache[_CACHE_KEY]


def _words_of_running(task: Object) -> Optional[list[int]]:
    """Of a thread that a processor ran: the processor's registers if it was in the program, else what it entered the
    kernel with; None where the dump has no processor's."""
    processors, number = _processors(task.prog_), int(task_cpu(task))
    if number >= len(processors):
        return None
    words = list(processors[number])
    if (words[17], words[20]) != (_USER_CS, _USER_SS):
        return _words_on_stack(task)
    if any(vma.start <= words[16] < vma.end and vma.flags & tasks.VM_EXEC for vma in tasks.task_vmas(task.mm)):
        return words
    return None  # of another thread: the dump's notes are not in the order of the processors


def _runs(task: Object) -> bool:
    """Whether a processor ran the thread when the dump was taken."""
    try:
        return bool(task.on_cpu)
    except AttributeError:  # a kernel for one processor has no such member
        return False


def user_registers(task: Object) -> Optional[UserRegisters]:
    """
    The registers of a thread in its program; None if they can't be had.

    :param task: ``struct task_struct *``
    """
    words = _words_of_running(task) if _runs(task) else _words_on_stack(task)
    if words is None:
        return None
    thread = task.thread
    segments = [int(thread.fsbase), int(thread.gsbase), int(thread.ds), int(thread.es), int(thread.fsindex),
                int(thread.gsindex)]
    return UserRegisters(words + segments)


def engine_thread(task: Object) -> Thread:
    """A thread as the engine takes it. Where its registers can't be had, its thread pointer still can."""
    found = user_registers(task)
    pointer = int(task.thread.fsbase)
    if found is None:
        return Thread(int(task.pid), pointer, name=tasks.command(task))
    return Thread(int(task.pid), pointer, found.stack_pointer, found.program_counter, 0, found.values,
                  tasks.command(task))
