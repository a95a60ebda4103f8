"""GDB's events, as far as they concern traps: stops, runs, files and breakpoints that come and go."""

from __future__ import annotations

import os
from typing import Any

import gdb
import karst_abi
from karst_abi import Why

from karst_gdb import afterwards, markers, stops, traps
from karst_gdb.live import Live, breakpoints_within
from karst_gdb.traps import Process


def on_stop(event: gdb.Event) -> None:
    known = traps.known_of(gdb.selected_inferior())
    points = [point for point in getattr(event, "breakpoints", ()) if isinstance(point, stops.StopPoint)]
    if not points and type(event) is gdb.StopEvent and _is_at_unknown_trap(known):
        _tell_of_library(traps.process())
    if known is None or not points:
        return
    if known.is_library(points[0].address):
        _tell_of_library(known)
    else:
        _tell_of_detour(known, points[0].address)


def _is_at_unknown_trap(known: Process | None) -> bool:
    """The trap instruction of a library that was not met before: its symbols are not read yet, or the process is
    one that was forked. GDB tells its SIGTRAP as a stop without a reason."""
    try:
        pc = gdb.newest_frame().pc()
    except gdb.error:
        return False
    name = gdb.solib_name(pc)
    return (name is not None and os.path.basename(name) == markers.LIBRARY
            and (known is None or not known.is_library(pc)) and stops.why_of_library() is not None)


def _tell_of_detour(known: Process, address: int) -> None:
    installed = known.detours.find(address)
    if installed is None:
        return
    number = installed.detour.stops[address]
    trap = known.traps[number]
    live = Live(to_change=False)
    known.count_skips(live)
    why = stops.why_at_detour(installed, trap.skipped + trap.fired)
    known.told[gdb.selected_thread().ptid] = known.calls[gdb.selected_thread().ptid] = why
    known.told_at.add(installed.detour.patch)
    stops.select_caller(traps.is_ours)
    stops.tell(number, why)
    if trap.is_spent and live.is_stopped:
        known.apply(live)
        stops.select_caller(traps.is_ours)


def _tell_of_library(known: Process) -> None:
    why = stops.why_of_library()
    if why is None:
        return
    marker = traps.find_marker(Live(to_change=False), known)
    number = 0
    if marker is not None and why.trap != karst_abi.NO_TRAP:
        slots = [trap for _, trap in marker.slots()]
        number = slots[why.trap].number if why.trap < len(slots) else 0
    traps.show_frames()
    known.told[gdb.selected_thread().ptid] = known.calls[gdb.selected_thread().ptid] = why
    stops.select_caller(traps.is_ours)
    stops.tell(number, why)


def on_cont(event: Any) -> None:
    """In non-stop mode one thread goes on, else all do."""
    thread = getattr(event, "inferior_thread", None) if gdb.parameter("non-stop") else None
    for known in traps.all_known():
        if thread is not None:
            known.told.pop(thread.ptid, None)
        else:
            known.told.clear()
        if not known.told:
            known.told_at.clear()


def on_new_file(event: gdb.Event) -> None:
    _look_at(event.new_objfile)


def _look_at(objfile: gdb.Objfile) -> None:
    """The library's traps are told of although no karst command was given."""
    if not objfile.filename or os.path.basename(objfile.filename) != markers.LIBRARY or not gdb.selected_inferior().pid:
        return
    try:
        stop = int(gdb.parse_and_eval("(unsigned long) &'karst_trap_stop'"))
    except (gdb.error, RuntimeError):
        return
    traps.process().meet_library(stop, stop + 1, stop)  # where it begins and ends is learned from the marker


def on_files_gone(event: gdb.Event) -> None:
    """Another program was executed: all that was known of the old text is void. (GDB says so, too, of a parent whose
    child it follows; its text is still there.)"""
    for known in traps.all_known():
        if known.inferior.is_valid() and known.inferior.progspace == event.progspace \
                and not afterwards.are_there(known.pid, known.began, known.detours):
            traps.forget(known.inferior)


def on_new_thread(event: Any) -> None:
    """The first of a process that GDB follows, as it was forked: before it runs, and before its parent is let go of."""
    traps.inherit(event.inferior_thread.inferior)


def on_exited(event: Any) -> None:
    inferior = getattr(event, "inferior", None)
    if inferior is None:
        return
    known = traps.known_of(inferior)
    if known is not None:  # GDB tells of an exit also when it only lets go
        afterwards.take_out(known.pid, known.began, known.detours)
    traps.forget(inferior)


def on_breakpoint(point: gdb.Breakpoint) -> None:
    """GDB's user sets a breakpoint within what a detour replaced: the detour makes room."""
    if isinstance(point, stops.StopPoint) or not point.enabled:
        return
    for known in traps.all_known():
        for installed in list(known.detours.installed.values()):
            low, high = installed.detour.patch + 1, installed.detour.patch + len(installed.detour.original)
            if str(point.number) in set(breakpoints_within(low, high)):
                _make_room(known, installed.entry.address, point)


def _make_room(known: Process, address: int, point: gdb.Breakpoint) -> None:
    number = point.number
    gone = [trap for trap in known.traps.values()
            if trap.enabled and any(entry.address == address for entry in trap.entries)]
    try:
        live = Live()
        for trap in gone:
            trap.enabled = False
        known.apply(live)
    except gdb.GdbError as error:
        for trap in gone:
            trap.enabled = True
        point.enabled = False  # it would be the end of the program: it destroys a jump
        gdb.write(f"karst: breakpoint {number} is off: it is within a detour, which can't be taken out now: {error}\n",
                  gdb.STDERR)
        return
    names = ", ".join(str(trap.number) for trap in gone)
    gdb.write(f"karst: trap {names} is off: breakpoint {number} is within the bytes that its detour replaces\n",
              gdb.STDERR)


def _call_of(known: Process, thread: gdb.InferiorThread) -> Why | None:
    """The call that the selected thread was stopped in and told of, if it is still at its beginning: another thread's
    stop may have come in between."""
    why = known.calls.get(thread.ptid)
    if why is None:
        return None
    frame = gdb.newest_frame()
    sp = stops.stack_pointer(frame)
    try:
        is_within = sp < why.stack and stops.word(why.stack - 8) == why.caller
    except gdb.error:  # its stack is gone
        is_within = False
    if not is_within:
        del known.calls[thread.ptid]
        return None
    return why if sp == why.stack - 8 or traps.is_ours(frame.pc()) else None


def return_to_caller() -> None:
    """Before `next` and the like at a stop: the thread gets to where the program called the allocator, as the frame
    that is selected has it. GDB could not step from within a detour, and would step through the library."""
    known = traps.known_of(gdb.selected_inferior())
    thread = gdb.selected_thread()
    why = _call_of(known, thread) if known is not None and thread is not None else None
    if why is None:
        return
    point = stops.BackPoint(why.caller, why.stack, thread)
    try:
        said = gdb.execute("continue", to_string=True)
    finally:
        if point.is_valid():
            point.delete()
    if not point.reached:  # another thread's stop, or the end: it is told as if by `continue`
        gdb.write(said.partition("Continuing.\n")[2] or said)
        raise gdb.GdbError("the step was not begun: the program stopped before the allocator returned")


class Return(gdb.Command):
    """What karst does before `next`, `step` and `until` at a trap."""

    name = "maintenance karst-return"

    def __init__(self) -> None:
        super().__init__(self.name, gdb.COMMAND_MAINTENANCE, gdb.COMPLETE_NONE)

    def invoke(self, argument: str, from_tty: bool) -> None:
        return_to_caller()


def _hook(command: str, call: str) -> None:
    """Has GDB do what `call` says before `command`; what its user hooked there stays."""
    try:
        text = gdb.execute(f"show user hook-{command}", to_string=True)
        body = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    except gdb.error:
        body = []
    gdb.execute("\n".join([f"define hook-{command}", call, *body, "end"]), to_string=True)


def register() -> None:
    handlers = {"stop": on_stop, "cont": on_cont, "exited": on_exited, "new_thread": on_new_thread, "new_objfile": on_new_file,
                "clear_objfiles": on_files_gone, "breakpoint_created": on_breakpoint,
                "breakpoint_modified": on_breakpoint, "gdb_exiting": lambda event: traps.take_out_all()}
    for name, handler in handlers.items():
        registry = getattr(gdb.events, name, None)
        if registry is not None:  # gdb_exiting: from GDB 12 on
            registry.connect(handler)
    for command, function in (("detach", traps.take_out_selected), ("quit", traps.take_out_all)):
        _hook(command, f"python __import__('karst_gdb.traps').traps.{function.__name__}()")
    Return()
    for command in ("next", "step", "until"):
        _hook(command, Return.name)
    for objfile in gdb.objfiles():
        _look_at(objfile)
