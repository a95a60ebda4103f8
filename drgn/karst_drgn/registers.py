"""The registers that a thread has in its program, on x86-64: from its kernel stack, or from the dump's notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from drgn import FaultError, Object
from karst_engine import Thread

from karst_drgn import tasks

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


def _words_of_processor(task: Object) -> Optional[list[int]]:
    """What the processor had when the dump was taken, if it ran the thread, and in its program."""
    try:
        known = task.prog_.stack_trace(task)[0].registers()
        words = [int(known[name]) for name in ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax",
                                               "rcx", "rdx", "rsi", "rdi")]
        words += [0, int(known["rip"]), int(known["cs"]), int(known["rflags"]), int(known["rsp"]), int(known["ss"])]
    except Exception:  # drgn raises that for code of the kernel that it can't unwind: the thread was in the kernel
        return None
    return words if words[17] == _USER_CS else None


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
    words = (_words_of_processor(task) if _runs(task) else None) or _words_on_stack(task)
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
