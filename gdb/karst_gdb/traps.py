"""Traps of each inferior: in the library's control block where the library is, else by detours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import gdb
import karst_abi
import karst_engine
from karst_abi import Condition as If, Trap, TrapState, Why
from karst_detour import Condition, Refused
from karst_engine import KarstError

from karst_gdb import afterwards, markers, stops
from karst_gdb.detours import Detours, Entry, condition_of, entries_of
from karst_gdb.expressions import evaluate_address, one_line
from karst_gdb.live import Live

_NO_LIMIT = (1 << 64) - 1


@dataclass
class DetourTrap:
    """A trap that detours make."""

    number: int
    trap: Trap
    entries: list[Entry]
    condition: Condition  # by what is looked for in the process, as it was there when the trap was set
    enabled: bool = True
    fired: int = 0
    skipped: int = 0  # matches passed over, as far as they were counted
    skip_here: bool = False  # GDB counts them: the process has no room for a counter

    @property
    def is_spent(self) -> bool:
        return bool(self.trap.count) and self.fired >= self.trap.count

    @property
    def is_armed(self) -> bool:
        return self.enabled and not self.is_spent


@dataclass
class Row:
    """A trap as `karst trap list` shows it."""

    number: int
    text: str
    state: str
    by: str
    hits: int
    fired: int


@dataclass
class Process:
    """What karst put into one process."""

    inferior: gdb.Inferior
    pid: int
    began: str = ""  # when, as the kernel counts; "": the process is on another machine
    detours: Detours = field(default_factory=Detours)
    traps: dict[int, DetourTrap] = field(default_factory=dict)
    points: dict[int, stops.StopPoint] = field(default_factory=dict)  # by address
    library: tuple[int, int] | None = None  # where the preload library is mapped
    told: dict[tuple[int, int, int], Why] = field(default_factory=dict)  # by ptid: stops that threads are at
    calls: dict[tuple[int, int, int], Why] = field(default_factory=dict)  # by ptid: those that were told of last
    told_at: set[int] = field(default_factory=set)  # entries where such threads go on when their detour is gone
    last_number: int = 0
    looked: bool = False  # for what a debugger before left

    # ---- detours -------------------------------------------------------------------------------------

    def apply(self, live: Live) -> None:
        """Brings detours and breakpoints in line with the traps."""
        self.count_skips(live)
        skips = {}
        by_entry: dict[int, Entry] = {}
        for trap in self.traps.values():
            if not trap.is_armed:
                continue
            if trap.trap.skip > trap.skipped:
                skips[trap.number] = trap.trap.skip - trap.skipped
            for entry in trap.entries:
                shared = by_entry.setdefault(entry.address,
                                             Entry(list(entry.names), entry.symbol, entry.address, entry.size))
                shared.conditions.append(trap.condition)
        self.detours.change(live, list(by_entry.values()), skips, set(self.told))
        for trap in self.traps.values():
            trap.skip_here = self.detours.skips_left(live, trap.number) is None
        self._set_points()

    def count_skips(self, live: Live) -> None:
        for trap in self.traps.values():
            left = self.detours.skips_left(live, trap.number)
            if left is not None:
                trap.skipped = trap.trap.skip - max(left, 0)

    def _set_points(self) -> None:
        wanted: dict[int, int] = {}
        for installed in self.detours.installed.values():
            wanted.update(installed.detour.stops)
        for address in [address for address in self.points if address not in wanted and not self.is_library(address)]:
            self.points.pop(address).drop(self.inferior.num)
        for address in wanted:
            if address not in self.points:
                self.points[address] = stops.StopPoint(address, self.inferior.num, _wants)

    def wants(self, address: int) -> bool:
        """The selected thread met a trap's conditions: whether GDB stops."""
        installed = self.detours.find(address)
        trap = self.traps.get(installed.detour.stops[address]) if installed is not None else None
        if trap is None or not trap.is_armed:
            return False
        if trap.trap.conditions & If.THREAD and trap.trap.thread not in gdb.selected_thread().ptid[1:]:
            return False  # another one has that thread's memory: it ended, or the process was forked
        if trap.skip_here and trap.skipped < trap.trap.skip:
            trap.skipped += 1
            return False
        trap.fired += 1
        return True

    def forget_detours(self) -> None:
        """The process, or its text, is gone."""
        self.detours = Detours()
        self.traps.clear()
        for address in [address for address in self.points if not self.is_library(address)]:
            self.points.pop(address).drop(self.inferior.num)

    def forked(self, inferior: gdb.Inferior, began: str) -> Process:
        """A forked process has its parent's text and counters, and so its detours: from now on these are its own."""
        child = Process(inferior, inferior.pid, began, self.detours.copy(), last_number=self.last_number, looked=True)
        child.traps = {number: replace(trap) for number, trap in self.traps.items()}
        child.library, child.points = self.library, dict(self.points)
        for point in child.points.values():
            point.share(inferior.num)
        return child

    # ---- the library ---------------------------------------------------------------------------------

    def is_library(self, address: int) -> bool:
        return self.library is not None and self.library[0] <= address < self.library[1]

    def meet_library(self, start: int, end: int, trap_stop: int) -> None:
        """Stops at its traps are told from now on."""
        self.library = (start, end)
        if trap_stop not in self.points:
            self.points[trap_stop] = stops.StopPoint(trap_stop, self.inferior.num, None)

    def forget_library(self) -> None:
        for address in [address for address in self.points if self.is_library(address)]:
            self.points.pop(address).drop(self.inferior.num)
        self.library = None

    def is_ours(self, pc: int) -> bool:
        return self.is_library(pc) or pc in self.told_at or self.detours.find(pc) is not None


_processes: dict[int, Process] = {}  # by inferior


def process() -> Process:
    """The selected inferior's."""
    inferior = gdb.selected_inferior()
    known = _processes.get(inferior.num)
    if known is None or known.pid != inferior.pid:
        if known is not None:
            forget(inferior)
        known = _processes[inferior.num] = Process(inferior, inferior.pid)
    return known


def _wants(address: int) -> bool:
    known = known_of(gdb.selected_inferior())
    return known is not None and known.wants(address)


def inherit(inferior: gdb.Inferior) -> None:
    """A new process of GDB's: if it was forked by one that has traps, these are there too."""
    known = _processes.get(inferior.num)
    if known is not None and known.pid == inferior.pid:
        return
    for parent in all_known():
        if parent.inferior == inferior:
            continue
        began = afterwards.forked_at(inferior.pid, parent.pid, parent.detours)
        if began or (parent.library is not None and afterwards.is_mapped(inferior.pid, parent.library[0], markers.LIBRARY)):
            if known is not None:
                forget(inferior)
            _processes[inferior.num] = parent.forked(inferior, began)
            return


def known_of(inferior: gdb.Inferior) -> Process | None:
    """What karst knows of an inferior's process; None: it has put nothing into it."""
    return _processes.get(inferior.num)


def all_known() -> list[Process]:
    return list(_processes.values())


def forget(inferior: gdb.Inferior) -> None:
    known = _processes.pop(inferior.num, None)
    if known is not None:
        known.forget_detours()
        known.forget_library()
    show_frames()


def _find_installed(pc: int) -> Any:
    known = _processes.get(gdb.selected_inferior().num)
    return known.detours.find(pc) if known is not None else None


def is_ours(pc: int) -> bool:
    known = _processes.get(gdb.selected_inferior().num)
    return known is not None and known.is_ours(pc)


def show_frames() -> None:
    if any(known.detours.installed or known.library or known.told_at for known in _processes.values()):
        stops.show_frames_as_known(_find_installed, is_ours)
    else:
        stops.show_frames_as_they_are()


# ---- add, remove, list --------------------------------------------------------------------------------


def _word(text: str) -> str:
    """A word of a trap with GDB's expressions in it as numbers: `$size`, `freed=request.buffer`."""
    key, equals, value = text.partition("=")
    if equals and key in ("freed", "returned", "address", "size") and not value[:1].isdigit() and value[:1] != ":":
        return f"{key}={evaluate_address(value):#x}"
    return f"{evaluate_address(text):#x}" if text[:1] in "$(&*" else text


def read(text: str) -> Trap:
    words = " ".join(_word(word) for word in text.split())
    try:
        return Trap.from_buffer_copy(karst_engine.read_trap(words, karst_abi.ctypes.sizeof(Trap)))
    except KarstError as error:
        raise gdb.GdbError(one_line(error)) from None


def _begin(to_change: bool = True) -> tuple[Live, Process]:
    live, known = Live(to_change), process()
    if not known.looked and live.is_stopped:
        known.looked = True
        count = known.detours.take_out_leftovers(live)
        if count:
            gdb.write(f"karst: took out {count} detour{'s' if count > 1 else ''} that a debugger before left here\n")
    return live, known


def find_marker(live: Live, known: Process) -> markers.Marker | None:
    marker = markers.find(live)
    if marker is not None:
        control = marker.control
        known.meet_library(control.library_start, control.library_end, control.trap_stop)
    return marker


def add(text: str, number: int = 0) -> str:
    """Sets a trap, as number if that is given; returns what was done in one line."""
    trap = read(text)
    live, known = _begin()
    marker = find_marker(live, known)
    numbers = [*known.traps, known.last_number, *(marker.traps() if marker is not None else ())]
    trap.number = number or max(numbers) + 1
    if marker is not None:
        marker.add(trap)
        known.last_number = max(trap.number, *numbers)
        show_frames()
        return f"trap {trap.number}: {text} (by {markers.LIBRARY})"
    known.began = afterwards.started_at(known.pid) if live.is_here else ""
    made = DetourTrap(trap.number, trap, entries_of(live, trap), condition_of(live, trap.number, trap))
    known.traps[made.number] = made
    try:
        known.apply(live)
    except (gdb.GdbError, gdb.error, Refused) as error:
        del known.traps[made.number]
        raise gdb.GdbError(one_line(error)) from None
    known.last_number = max(trap.number, *numbers)
    show_frames()
    where = ", ".join(f"{entry.names[0]} at {entry.address:#x}" for entry in made.entries)
    return f"trap {made.number}: {text} (detour of {where})"


def change(numbers: list[int] | None, wanted: str) -> None:
    """wanted: "remove", "enable" or "disable"; numbers None: all traps."""
    live, known = _begin()
    marker = find_marker(live, known)
    in_library = marker.traps() if marker is not None else {}
    chosen = numbers if numbers is not None else [*known.traps, *in_library]
    for number in chosen:
        if number not in known.traps and number not in in_library:
            raise gdb.GdbError(f"there is no trap {number}: `karst trap list` shows all")
    for number in chosen:
        if number in in_library and marker is not None:
            _change_in_library(marker, *in_library[number], wanted)
        elif wanted == "remove":
            del known.traps[number]
        else:
            known.traps[number].enabled = wanted == "enable"
            known.traps[number].fired = 0 if wanted == "enable" else known.traps[number].fired
    try:
        known.apply(live)
    except Refused as error:
        raise gdb.GdbError(one_line(error)) from None
    show_frames()


def _change_in_library(marker: markers.Marker, place: int, trap: Trap, wanted: str) -> None:
    if wanted == "remove":
        marker.remove(place)
    elif wanted == "disable":
        marker.set_state(place, TrapState.DISABLED)
    else:
        if trap.state == TrapState.SPENT:  # counts anew
            marker.set_fired(place, 0)
        marker.set_state(place, TrapState.ARMED)


def rows() -> list[Row]:
    live, known = _begin(to_change=False)
    marker = find_marker(live, known)
    known.count_skips(live)
    found = []
    for number, trap in sorted(known.traps.items()):
        state = "spent" if trap.is_spent else "on" if trap.enabled else "off"
        found.append(Row(number, _text(trap.trap), state, "detour", trap.skipped + trap.fired, trap.fired))
    for number, (_, raw) in sorted(marker.traps().items() if marker is not None else ()):
        state = {TrapState.ARMED: "on", TrapState.DISABLED: "off"}.get(raw.state, "spent")
        found.append(Row(number, _text(raw), state, "library", raw.hits, raw.fired))
    return found


def _text(trap: Trap) -> str:
    return trap.text.decode("utf-8", "replace")


def armed_detours() -> dict[int, str]:
    """Traps that detours make, as they were typed, by number."""
    return {number: _text(trap.trap) for number, trap in process().traps.items() if trap.is_armed}


def meet(live: Live) -> None:
    """The library is in the process: stops at its traps are told from now on."""
    find_marker(live, process())
    show_frames()


def leave_library() -> None:
    process().forget_library()
    show_frames()


def take_out_selected() -> None:
    """Before GDB lets go of the selected inferior's process: its text is what it was."""
    known = _processes.get(gdb.selected_inferior().num)
    if known is None or not known.detours.installed or known.inferior.pid != known.pid:
        return
    try:
        if known.began and not Live(to_change=False).is_stopped:
            return  # afterwards, as soon as GDB has let go of the threads that run
        known.traps.clear()
        known.apply(Live())
    except (gdb.GdbError, gdb.error) as error:
        gdb.write(f"karst: traps stay in process {known.pid}, harmless, as GDB can't take them out: {error}\n", gdb.STDERR)


def take_out_all() -> None:
    """Before GDB lets go of all processes."""
    selected = gdb.selected_inferior()
    for known in all_known():
        if known.inferior.is_valid() and known.detours.installed:
            if gdb.selected_inferior() != known.inferior:
                gdb.execute(f"inferior {known.inferior.num}", to_string=True)
            take_out_selected()
    if selected.is_valid() and gdb.selected_inferior() != selected:
        gdb.execute(f"inferior {selected.num}", to_string=True)
