"""Stops at traps: where GDB is then, what it says, and frames as the program knows them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gdb
import karst_abi
import karst_engine
from gdb.FrameDecorator import FrameDecorator
from karst_abi import FUNCTIONS, Why
from karst_detour import ARGUMENTS, RBP, RBX

from karst_gdb.detours import Installed
from karst_gdb.places import Place, in_c

_MASK = (1 << 64) - 1
_FRAMES_MAX = 64
_REGISTERS = {0: "rax", 1: "rcx", 2: "rdx", 3: "rbx", 5: "rbp", 6: "rsi", 7: "rdi", **{
    number: f"r{number}" for number in range(8, 16)}}
_CALLEE_SAVED = {RBX: "rbx", RBP: "rbp", 12: "r12", 13: "r13", 14: "r14", 15: "r15"}


class StopPoint(gdb.Breakpoint):
    """A breakpoint that GDB's user does not see: at a detour's `nop`, or at the library's trap instruction. A forked
    process has those of its parent."""

    def __init__(self, address: int, inferior: int, wants: Callable[[int], bool] | None) -> None:
        self.address = address
        self._place = Place(address, inferior)
        self._wants = wants  # asked with the address
        with in_c():
            super().__init__(self._place.location, internal=True)
        self.silent = True

    def stop(self) -> bool:
        if gdb.selected_inferior().num not in self._place.inferiors:
            return False
        wanted = self._wants is None or self._wants(self.address)
        if wanted and _passing_by:
            _tell_passed()
        return wanted and not _passing_by

    def share(self, inferior: int) -> None:
        """It is there in this one too."""
        self._place.inferiors.add(inferior)

    def drop(self, inferior: int) -> None:
        """It is no more in this one, and nowhere if it was the last."""
        self._place.inferiors.discard(inferior)
        if not self._place.inferiors:
            if self.is_valid():
                self.delete()
            self._place.forget()


_passing_by = False


@contextmanager
def passing_by() -> Iterator[None]:
    """Threads that come to a trap meanwhile are told of, and go on."""
    global _passing_by
    before, _passing_by = _passing_by, True
    try:
        yield
    finally:
        _passing_by = before


def _tell_passed() -> None:
    why = why_of_library()
    what = karst_engine.say_why(bytes(why)) if why is not None else f"a trap in thread {gdb.selected_thread().ptid[1]}"
    gdb.write(f"karst: {what}; it went on, as karst was at work in the process\n")


class BackPoint(gdb.Breakpoint):
    """Where a call returns to, for one thread, and one call of a recursion."""

    def __init__(self, address: int, stack: int, thread: gdb.InferiorThread) -> None:
        self.reached = False
        self._stack = stack
        super().__init__(f"*{address:#x}", internal=True)
        self.silent, self.thread = True, thread.global_num

    def stop(self) -> bool:
        self.reached = stack_pointer(gdb.newest_frame()) >= self._stack
        return self.reached


def _register(frame: gdb.Frame, number: int) -> int:
    return int(frame.read_register(_REGISTERS[number])) & _MASK


def why_at_detour(installed: Installed, hits: int) -> Why:
    """As the library tells it, from the registers of the selected thread, which is at a detour's stop."""
    frame = gdb.newest_frame()
    name = installed.entry.names[0]
    arguments = ARGUMENTS[name]
    size = 1
    for register in arguments.size:
        size = size * _register(frame, register) & _MASK
    stack = stack_pointer(frame)
    caller = word(stack)
    lwp = gdb.selected_thread().ptid[1]
    return Why(magic=karst_abi.WHY_MAGIC, size_of=ctypes.sizeof(Why), function=FUNCTIONS.index(name), before=1,
               thread=lwp, size=size if arguments.size else 0,
               old_address=_register(frame, arguments.pointer) if arguments.pointer is not None else 0,
               alignment=_register(frame, arguments.alignment) if arguments.alignment is not None else 0,
               caller=caller, stack=stack + 8, hits=hits)


def why_of_library() -> Why | None:
    """From the selected thread, which is at the library's trap instruction. None: the record is none."""
    address = _register(gdb.newest_frame(), 7)
    try:
        data = bytes(gdb.selected_inferior().read_memory(address, ctypes.sizeof(Why)))
    except gdb.error:
        return None
    why = Why.from_buffer_copy(data)
    return why if why.magic == karst_abi.WHY_MAGIC else None


def select_caller(is_ours: Callable[[int], bool]) -> None:
    """Selects the frame that called the allocator."""
    frame = gdb.newest_frame()
    for _ in range(_FRAMES_MAX):
        if not is_ours(frame.pc()):
            frame.select()
            return
        older = frame.older()
        if older is None:
            return
        frame = older


def tell(number: int, why: Why) -> None:
    """One line that says why GDB stopped, then the frame that is selected."""
    name = f"karst trap {number}" if number else "karst"
    gdb.write(f"\n{name}: {karst_engine.say_why(bytes(why))}\n")
    gdb.execute("frame")
    pointer = gdb.lookup_type("void").pointer()
    gdb.set_convenience_variable("_karst_trap", number)
    gdb.set_convenience_variable("_karst_trap_size", why.size)
    gdb.set_convenience_variable("_karst_trap_old", gdb.Value(why.old_address).cast(pointer))
    gdb.set_convenience_variable("_", gdb.Value(why.address or why.old_address).cast(pointer))


# ---- frames ------------------------------------------------------------------------------------------


class _FrameId:
    def __init__(self, sp: gdb.Value, pc: gdb.Value) -> None:
        self.sp, self.pc = sp, pc


class Unwinder:
    """Frames of threads that are in a detour. No file tells GDB of its code."""

    name = "karst"
    enabled = True

    def __init__(self, find: Callable[[int], Installed | None]) -> None:
        self._find = find

    def __call__(self, pending: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        try:
            pc_value = pending.read_register("rip")
            pc = int(pc_value) & _MASK
        except (ValueError, gdb.error):  # another machine
            return None
        installed = self._find(pc)
        place = installed.detour.place(pc) if installed is not None else None
        if installed is None or place is None:
            return None
        sp_value = pending.read_register("rsp")
        frame = (int(sp_value) & _MASK) + place.frame
        number_type, pointer_type = gdb.lookup_type("long"), pc_value.type
        info = pending.create_unwind_info(_FrameId(
            gdb.Value(frame).cast(sp_value.type), gdb.Value(installed.detour.start).cast(pointer_type)))
        info.add_saved_register("rip", gdb.Value(word(frame - 8)).cast(pointer_type))
        info.add_saved_register("rsp", gdb.Value(frame).cast(sp_value.type))
        for number, name in _CALLEE_SAVED.items():
            if number in place.saved:
                value = gdb.Value(word(frame - place.saved[number])).cast(number_type)
            else:
                value = pending.read_register(name)
            info.add_saved_register(name, value)
        return info


def stack_pointer(frame: gdb.Frame) -> int:
    return int(frame.read_register("rsp")) & _MASK


def word(address: int) -> int:
    return int.from_bytes(bytes(gdb.selected_inferior().read_memory(address, 8)), "little")


class _Named(FrameDecorator):
    """A frame as GDB shows it without filters: what has no name is `??`."""

    def function(self) -> object:
        name = super().function()
        return name if isinstance(name, str) and name else self.inferior_frame().name() or "??"


class FrameFilter:
    """Leaves the frames of detours and of the library out of backtraces."""

    name = "karst"
    enabled = True
    priority = 1000

    def __init__(self, is_ours: Callable[[int], bool]) -> None:
        self._is_ours = is_ours

    def filter(self, frames: Iterator) -> Iterator:
        return (_Named(frame) for frame in frames if not self._is_ours(frame.inferior_frame().pc()))


def show_frames_as_known(find: Callable[[int], Installed | None], is_ours: Callable[[int], bool]) -> None:
    """From now on; until hide_no_more()."""
    if not any(getattr(unwinder, "name", "") == Unwinder.name for unwinder in gdb.frame_unwinders):
        gdb.frame_unwinders.insert(0, Unwinder(find))
        gdb.invalidate_cached_frames()
    gdb.frame_filters.setdefault(FrameFilter.name, FrameFilter(is_ours))


def show_frames_as_they_are() -> None:
    gdb.frame_unwinders[:] = [unwinder for unwinder in gdb.frame_unwinders
                              if getattr(unwinder, "name", "") != Unwinder.name]
    gdb.frame_filters.pop(FrameFilter.name, None)
    gdb.invalidate_cached_frames()


