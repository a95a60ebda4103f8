"""Calls of functions in a process, from where that is safe.

A thread that is stopped anywhere may be in the middle of the allocator: a call that allocates then ends in an
abort or waits for ever. It is safe where a thread is about to enter the allocator, or sleeps in the kernel for
something that no allocator or loader waits for, and is not in a signal handler, nor in the loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gdb
import karst_detour

from karst_gdb import stops
from karst_gdb.expressions import one_line
from karst_gdb.live import Live

_MASK = (1 << 64) - 1
_FRAMES_MAX = 200
_RED_ZONE = 128
_FINISHING_MAX = 10
_SYSCALL = b"\x0f\x05"
# Linux x86-64, arch/x86/entry/syscalls/syscall_64.tbl: poll select nanosleep pause accept recvfrom recvmsg wait4
# rt_sigtimedwait rt_sigsuspend clock_nanosleep epoll_wait waitid pselect6 ppoll epoll_pwait accept4 epoll_pwait2
_SLEEPS = frozenset((7, 23, 34, 35, 43, 45, 47, 61, 128, 130, 230, 232, 247, 270, 271, 281, 288, 441))


class _Entry(gdb.Breakpoint):
    """At the first instruction of an allocator's function."""

    def __init__(self, address: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self.silent = True

    def stop(self) -> bool:
        return True


def _loader_ranges(live: Live) -> list[tuple[int, int]]:
    """Of the module that the kernel started: the dynamic loader."""
    found = [mapping for mapping in live.mappings
             if mapping.name and mapping.name.rsplit("/", 1)[-1].startswith(("ld-linux", "ld-2.", "ld.so", "ld-musl"))]
    return [(mapping.start, mapping.end) for mapping in found]


def _is_within(address: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= address < high for low, high in ranges)


def frames_pcs() -> Iterator[int]:
    """Of the selected thread, the newest first."""
    frame: gdb.Frame | None = gdb.newest_frame()
    for _ in range(_FRAMES_MAX):
        if frame is None or not frame.is_valid():
            return
        yield frame.pc()
        try:
            frame = frame.older()
        except gdb.error:
            return


def _is_in_handler(live: Live) -> bool:
    sp = int(gdb.newest_frame().read_register("rsp")) & _MASK
    return next(karst_detour.interrupted(live.read, sp, live.stack_end, live.code_ranges()), None) is not None


def _may_call(live: Live) -> bool:
    """Of the selected thread, which is at an entry or asleep: whether nothing below it is in the way."""
    loader = _loader_ranges(live)
    return not _is_in_handler(live) and not any(_is_within(pc, loader) for pc in frames_pcs())


def _sleeps(live: Live) -> bool:
    """Whether the selected thread sleeps in the kernel, for something that has nothing to do with memory."""
    frame = gdb.newest_frame()
    try:
        number = int(frame.read_register("orig_rax"))
    except (ValueError, gdb.error):
        return False
    return number in _SLEEPS and live.read(frame.pc() - 2, 2) == _SYSCALL


def run_on(live: Live) -> Live:
    """Lets the process run to where a breakpoint of ours stands; returns it as it is then."""
    with passing_by():
        gdb.execute("continue", to_string=True)
    if not live.inferior.is_valid() or not live.inferior.pid:
        raise gdb.GdbError("the process ended before it got to where karst could go on")
    return Live()


def reach_safe_point(live: Live, entries: Sequence[int]) -> Live:
    """Selects a thread that a call can be made from, letting the process run up to one if need be. Ctrl-C ends the
    wait. Returns the process as it is then."""
    for thread in live.inferior.threads():
        thread.switch()
        if _sleeps(live) and _may_call(live):
            return live
    points = [_Entry(address) for address in entries]
    try:
        while True:
            live = run_on(live)
            if gdb.newest_frame().pc() not in entries:
                raise gdb.GdbError("the process stopped before a thread got to the allocator")
            if _may_call(live):
                return live
    finally:
        for point in points:
            if point.is_valid():
                point.delete()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No breakpoint of GDB's user stops a call, and all threads run: one may hold a lock that the call needs."""
    enabled = [point for point in gdb.breakpoints() or () if point.enabled]
    before = {name: str(gdb.parameter(name)) for name in ("scheduler-locking", "unwindonsignal")}
    before["unwindonsignal"] = "on" if gdb.parameter("unwindonsignal") else "off"
    for point in enabled:
        point.enabled = False
    gdb.execute("set scheduler-locking off")
    gdb.execute("set unwindonsignal on")
    try:
        yield
    finally:
        for name, value in before.items():
            gdb.execute(f"set {name} {value}")
        for point in enabled:
            if point.is_valid():
                point.enabled = True


# Ctrl-C and faults stop the process as they do else. SIGTRAP is the library's trap where GDB does not know it for a
# breakpoint; breakpoints are none of it.
_STOPPING = frozenset(("SIGINT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS"))


@contextmanager
def passing_by() -> Iterator[None]:
    """Neither a trap nor a signal that another thread comes to stops the process meanwhile: GDB would give a call up in
    the middle."""
    rows = [line.split() for line in gdb.execute("info signals", to_string=True).splitlines()]
    stopping = [row for row in rows if len(row) > 3 and row[0].startswith("SIG") and row[1] == "Yes"
                and row[0] not in _STOPPING]
    _handle([row[0] for row in stopping], "nostop noprint")
    try:
        with stops.passing_by():
            yield
    finally:
        for shown, words in (("Yes", "stop print"), ("No", "stop noprint")):
            _handle([row[0] for row in stopping if row[2] == shown], words)


def _handle(names: Sequence[str], words: str) -> None:
    asks = gdb.parameter("confirm")  # about SIGTRAP
    if names:
        gdb.execute("set confirm off")
        gdb.execute(f"handle {' '.join(names)} {words}", to_string=True)
        gdb.execute(f"set confirm {'on' if asks else 'off'}")


def call(live: Live, address: int, text: str | None, *numbers: int) -> int:
    """What the function at address returns, called by the selected thread with a string and numbers. The string is
    put on its stack, so that nothing has to be allocated."""
    gdb.newest_frame().select()
    sp = int(gdb.newest_frame().read_register("rsp")) & _MASK
    types, values = [], []
    room = sp
    if text is not None:
        data = text.encode("utf-8", "surrogateescape") + b"\0"
        room = (sp - _RED_ZONE - len(data)) & ~15
        live.write(room, data)
        types.append("const char *")
        values.append(f"(const char *) {room:#x}")
    types += ["long"] * len(numbers)
    values += [f"{number:#x}L" for number in numbers]
    thread, pc = gdb.selected_thread(), gdb.newest_frame().pc()
    gdb.execute(f"set var $rsp = {room:#x}", to_string=True)
    try:
        with _undisturbed(), passing_by():
            result = gdb.parse_and_eval(f"((long (*)({', '.join(types) or 'void'})) {address:#x})({', '.join(values)})")
    except gdb.error as error:
        _finish(thread, pc, room)
        raise gdb.GdbError(f"the call was cut short: {one_line(error)}") from None
    finally:
        if thread.is_valid():  # another one's stop may have selected that
            thread.switch()
            gdb.newest_frame().select()
            gdb.execute(f"set var $rsp = {sp:#x}", to_string=True)
    return int(result) & _MASK


def _finish(thread: gdb.InferiorThread, pc: int, sp: int) -> None:
    """Lets a call that GDB gave up go on to its end, where GDB takes the thread back to where it was."""
    for _ in range(_FINISHING_MAX):
        if not thread.is_valid():
            return
        thread.switch()
        frame = gdb.newest_frame()
        if frame.pc() == pc and int(frame.read_register("rsp")) & _MASK == sp:
            return
        with _undisturbed(), passing_by():
            gdb.execute("continue", to_string=True)
