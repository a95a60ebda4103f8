"""Traps in a process without the preload library: detours written into it, and taken out again.

helper/python/karst_detour.py makes the code; here it is put in place. All threads are stopped meanwhile, and
those that are in what changes, or will come back there from a signal handler, go on at the same instruction
where it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import gdb
import karst_detour
from karst_abi import FUNCTIONS, Condition as If, Trap as Conditions
from karst_detour import ARGUMENTS, Condition, Detour, Refused
from karst_elf import NotThere, Segment

from karst_gdb.live import Live, breakpoints_within

_LIBRARY = "start the program by `karst run`, or see `help karst inject`"
_ONLY_LIBRARY = {If.EVENT: "event=", If.RETURNED: "returned=", If.GROWTH: "growth", If.FAULT: "faults"}
_REACH = (1 << 31) - (1 << 26)  # of a 32-bit jump, with room
_COUNTER_BYTES = 8


@dataclass
class Entry:
    """A function's entry that is, or is to be, detoured."""

    names: list[str]  # what people call it, "malloc"; memalign and aligned_alloc may be one
    symbol: str
    address: int
    size: int
    conditions: list[Condition] = field(default_factory=list)


@dataclass
class Installed:
    entry: Entry
    detour: Detour


# ---- what a trap means for an entry ----------------------------------------------------------------


def _function_names(trap: Conditions) -> list[str]:
    """The functions to stop in. Those that only call another one of them on the same call are left out."""
    names = [name for bit, name in enumerate(FUNCTIONS) if trap.functions >> bit & 1]
    if "realloc" in names:
        names = [name for name in names if name != "reallocarray"]
    return names


def _calls_other(live: Live, name: str, names: Sequence[str]) -> bool:
    """Whether an operator of C++ only hands on to malloc or free, which are trapped too."""
    below = {"new": "malloc", "new[]": "malloc", "delete": "free", "delete[]": "free"}.get(name)
    if below is None or below not in names:
        return False
    operator, function = live.definitions(ARGUMENTS[name].symbols[0]), live.definitions(below)
    return bool(operator and function) and operator[0].module is not function[0].module


def entries_of(live: Live, trap: Conditions) -> list[Entry]:
    found: dict[int, Entry] = {}
    names = _function_names(trap)
    for name in names:
        if len(names) > 1 and _calls_other(live, name, names):
            continue
        for symbol in ARGUMENTS[name].symbols:
            for definition in live.definitions(symbol):
                entry = found.setdefault(definition.address,
                                         Entry([], symbol, definition.address, definition.size))
                if name not in entry.names:
                    entry.names.append(name)
    if not found:
        where = "no symbol of that name" if live.is_static else "no module defines it"
        raise gdb.GdbError(f"{', '.join(names)}: {where}")
    return list(found.values())


def _caller(live: Live, trap: Conditions) -> tuple[int, int]:
    if not trap.caller:
        return trap.caller_low, trap.caller_high - 1
    name = trap.caller.decode("utf-8", "surrogateescape")
    found = [mapping for mapping in live.mappings if mapping.name and mapping.name.endswith(name)]
    if not found:
        raise gdb.GdbError(f"caller={name}: no such module is loaded; `info sharedlibrary` lists them")
    return min(mapping.start for mapping in found), max(mapping.end for mapping in found) - 1


def condition_of(live: Live, number: int, trap: Conditions) -> Condition:
    for condition, word in _ONLY_LIBRARY.items():
        if trap.conditions & condition:
            raise gdb.GdbError(f"{word} needs libkarst-preload.so in the process: {_LIBRARY}")
    if trap.action:
        raise gdb.GdbError(f"action= is for when no debugger is there, which needs the library: {_LIBRARY}")
    thread_pointer = None
    if trap.conditions & If.THREAD:
        thread_pointer = live.thread_pointer(trap.thread)
        if thread_pointer is None:
            raise gdb.GdbError(f"thread={trap.thread}: there is no such thread; `info threads` lists them as LWP")
    return Condition(
        number,
        size=(trap.size_low, trap.size_high) if trap.conditions & If.SIZE else None,
        sizes=tuple(trap.sizes[:trap.size_count]) if trap.conditions & If.SIZES else (),
        freed=(trap.address_low, trap.address_high) if trap.conditions & If.FREED else None,
        caller=_caller(live, trap) if trap.conditions & If.CALLER else None,
        thread_pointer=thread_pointer)


# ---- unused memory ---------------------------------------------------------------------------------


def tails_of(segments: Sequence[Segment], executable: bool) -> list[tuple[int, int]]:
    """Start and size of what is behind a module's last executable, or writable, segment, up to the page's end."""
    wanted = [segment for segment in segments
              if segment.executable == executable and (executable or segment.writable)]
    return [karst_detour.tail(segment) for segment in wanted[-1:]]


class _Space:
    """Memory behind the ends of modules' segments, where detours and their counters go."""

    def __init__(self, live: Live, taken: Sequence[tuple[int, int]]) -> None:
        self._live = live
        self._taken = list(taken)  # (start, end) of what is there already, and stays

    def _free_in(self, start: int, size: int, needed: int, alignment: int) -> int:
        """Where `needed` zero bytes are; 0: nowhere."""
        place = -(-start // alignment) * alignment
        for low, high in sorted(self._taken):
            if start <= low < start + size and place < high:
                place = -(-high // alignment) * alignment
        if place + needed > start + size or self._live.read(place, needed) != bytes(needed):
            return 0
        self._taken.append((place, place + needed))
        return place

    def code(self, entry: int, needed: int) -> int:
        """Zeros behind the text of the module of entry, or else of another that a jump reaches."""
        reasons = []
        for address in self._homes(entry):
            try:
                tails = tails_of(self._live.module_segments(address), True)
            except NotThere as reason:
                reasons.append(str(reason))
                continue
            for start, size in tails:
                place = self._free_in(start, size, needed, 16)
                if place:
                    return place
        said = f" ({reasons[0]})" if reasons else ""
        raise Refused(f"no module has {needed} zero bytes behind its text within reach{said}")

    def _homes(self, entry: int) -> list[int]:
        """An address in each module's text, the entry's own first."""
        texts = {mapping.name: mapping.start for mapping in self._live.mappings
                 if mapping.name and mapping.name.startswith("/") and mapping.permissions & 4
                 and abs(mapping.start - entry) < _REACH}
        return [entry, *texts.values()]

    def counter(self, entry: int) -> int:
        """8 zero bytes behind the data of a library; 0: there are none. What is behind the program's own data may
        be the heap's first page."""
        if self._live.is_static or not self._live.modules:
            return 0
        home = self._live.mapping(entry)
        if home is None or home.name == self._program() or "/ld-" in (home.name or ""):
            return 0
        try:
            tails = tails_of(self._live.module_segments(entry), False)
        except NotThere:
            return 0
        return next((place for start, size in tails
                     if (place := self._free_in(start, size, _COUNTER_BYTES, _COUNTER_BYTES))), 0)

    def _program(self) -> str | None:
        mapping = self._live.mapping(self._live.modules[0].dynamic_address)
        return mapping.name if mapping is not None else None


# ---- in and out --------------------------------------------------------------------------------------


class Detours:
    """Those of one process."""

    def __init__(self) -> None:
        self.installed: dict[int, Installed] = {}  # by the function's entry
        self._counters: dict[int, int] = {}  # by trap: where its matches to pass over are counted down

    def copy(self) -> Detours:
        """As a forked process has them."""
        copied = Detours()
        copied.installed, copied._counters = dict(self.installed), dict(self._counters)
        return copied

    def find(self, pc: int) -> Installed | None:
        return next((one for one in self.installed.values() if one.detour.place(pc) is not None), None)

    def skips_left(self, live: Live, key: int) -> int | None:
        """How many matches of a trap are still to be passed over; below 0: so many came after those. None: the
        process does not count them."""
        counter = self._counters.get(key)
        return None if counter is None else int.from_bytes(live.read(counter, 8), "little", signed=True)

    def change(self, live: Live, wanted: Sequence[Entry], skips: dict[int, int], stopped: set[tuple[int, int, int]]) -> None:
        """Makes the detours of the process those that are wanted. skips: by trap, how many matches to pass over,
        for traps that don't count yet. stopped: ptids of threads that stopped at a match and were
        told of. Fails, with nothing changed, if one can't be."""
        space = self._space(live)
        counters = self._plan_counters(space, wanted, skips)
        counted = [replace(entry, conditions=[replace(condition, counter=counters.get(condition.key, 0))
                                              for condition in entry.conditions])
                   for entry in wanted if entry.conditions]
        still = {entry.address: entry for entry in counted}
        changed = [one for address, one in self.installed.items()
                   if address not in still or still[address].conditions != one.entry.conditions]
        staying = self.installed.keys() - {one.entry.address for one in changed}
        new = self._plan(live, space, [entry for entry in counted if entry.address not in staying])
        moves, saved = self._moves(live, changed, new, stopped)
        for one in changed:
            _take_out(live, one)
            del self.installed[one.entry.address]
        self._set_counters(live, counters, skips)
        for one in new:
            live.write(one.detour.start, one.detour.code)
            live.write(one.detour.patch, one.detour.jump)
            self.installed[one.entry.address] = one
        for address, pc in saved:
            live.write(address, pc.to_bytes(8, "little"))
        live.set_pcs(moves)

    def take_out_leftovers(self, live: Live) -> int:
        """Takes out detours that the debugger before left, as it was killed; returns how many there were."""
        found = []
        for home in {mapping.name: mapping.start for mapping in live.mappings
                     if mapping.name and mapping.name.startswith("/") and mapping.permissions & 4}.values():
            try:
                tails = tails_of(live.module_segments(home), True)
            except NotThere:
                continue
            for start, size in tails:
                found += [detour for detour in karst_detour.leftovers(live.read(start, size), start)
                          if live.read(detour.patch, len(detour.jump)) == detour.jump]
        known = {one.detour.start for one in self.installed.values()}
        lost = [Installed(Entry([], "", detour.patch, 0), detour) for detour in found if detour.start not in known]
        if not lost:
            return 0
        moves, saved = self._moves(live, lost, [], set())
        for one in lost:
            _take_out(live, one)
            for counter in karst_detour.counters_of(one.detour):
                live.write(counter, bytes(_COUNTER_BYTES))
        for address, pc in saved:
            live.write(address, pc.to_bytes(8, "little"))
        live.set_pcs(moves)
        return len(lost)

    # ---- planning ------------------------------------------------------------------------------------

    def _space(self, live: Live) -> _Space:
        taken = [(one.detour.start, one.detour.end) for one in self.installed.values()]
        taken += [(counter, counter + _COUNTER_BYTES) for counter in self._counters.values()]
        return _Space(live, taken)

    def _plan_counters(self, space: _Space, wanted: Sequence[Entry], skips: dict[int, int]) -> dict[int, int]:
        """Counters by trap. Traps that have none any more but are wanted keep theirs."""
        counters: dict[int, int] = {}
        for entry in wanted:
            for condition in entry.conditions:
                key = condition.key
                place = counters.get(key) or self._counters.get(key)
                if not place and skips.get(key):
                    place = space.counter(entry.address)
                if place:
                    counters[key] = place
        return counters

    def _set_counters(self, live: Live, counters: dict[int, int], skips: dict[int, int]) -> None:
        for key, place in self._counters.items():
            if key not in counters:
                live.write(place, bytes(_COUNTER_BYTES))
        for key, place in counters.items():
            if key not in self._counters:
                live.write(place, skips[key].to_bytes(_COUNTER_BYTES, "little"))
        self._counters = counters

    def _plan(self, live: Live, space: _Space, entries: Sequence[Entry]) -> list[Installed]:
        planned = []
        for entry in entries:
            try:
                planned.append(self._plan_one(live, space, entry))
            except Refused as reason:
                raise gdb.GdbError(f"{entry.names[0]} can't be trapped in this process: {reason}") from None
        try:
            self._check_ways_in(live, planned)
        except Refused as reason:
            raise gdb.GdbError(f"{planned[0].entry.names[0]} can't be trapped in this process: {reason}") from None
        return planned

    def _plan_one(self, live: Live, space: _Space, entry: Entry) -> Installed:
        text = self._original_text(live, entry)
        arguments = ARGUMENTS[entry.names[0]]
        trial = karst_detour.build(text, entry.address, entry.size, arguments, entry.conditions,
                                   entry.address & ~15)
        start = space.code(entry.address, len(trial.code))
        detour = karst_detour.build(text, entry.address, entry.size, arguments, entry.conditions, start)
        end = detour.patch + len(detour.original)
        for number in breakpoints_within(detour.patch + 1, end):
            raise Refused(f"breakpoint {number} is within the {len(detour.original)} bytes that would be replaced; "
                          f"delete it, or set it by `break *{entry.symbol}`")
        return Installed(entry, detour)

    def _original_text(self, live: Live, entry: Entry) -> bytes:
        mapping = live.mapping(entry.address)
        if mapping is None or not mapping.permissions & 4:
            raise Refused(f"{entry.address:#x} is not in executable memory")
        size = min(max(entry.size, 4096) + 16, mapping.end - entry.address)
        return self._without_detours(live.read(entry.address, size), entry.address)

    def _without_detours(self, text: bytes, address: int) -> bytes:
        restored = bytearray(text)
        for one in self.installed.values():
            at = one.detour.patch - address
            if 0 <= at <= len(text) - len(one.detour.original):
                restored[at:at + len(one.detour.original)] = one.detour.original
        return bytes(restored)

    def _check_ways_in(self, live: Live, planned: Sequence[Installed]) -> None:
        """Nothing in the modules concerned may jump into the middle of what is replaced."""
        by_text: dict[tuple[int, int], list[Installed]] = {}
        for one in planned:
            mapping = live.mapping(one.entry.address)
            if mapping is not None:
                by_text.setdefault((mapping.start, mapping.end), []).append(one)
        for (start, end), ones in by_text.items():
            text = self._without_detours(live.read(start, end - start), start)
            karst_detour.check_no_far_way_in(text, start, [(one.detour.patch, len(one.detour.original))
                                                           for one in ones])

    # ---- threads -------------------------------------------------------------------------------------

    def _moves(self, live: Live, old: Sequence[Installed], new: Sequence[Installed], stopped: set[tuple[int, int, int]]
               ) -> tuple[list[tuple[gdb.InferiorThread, int]], list[tuple[int, int]]]:
        """Threads, and words that hold a program counter a handler returns to, with where they go on."""
        moves, saved = [], []
        code = live.code_ranges()
        for thread in live.threads():
            pc = _moved(thread.pc, old, new, thread.thread.ptid in stopped)
            if pc != thread.pc:
                moves.append((thread.thread, pc))
            for address, before in karst_detour.interrupted(live.read, thread.sp, live.stack_end, code):
                after = _moved(before, old, new, False)
                if after != before:
                    saved.append((address, after))
        return moves, saved


def _moved(pc: int, old: Sequence[Installed], new: Sequence[Installed], is_past_tests: bool) -> int:
    """Where a thread at pc goes on when the old detours are gone and the new ones are there."""
    for one in old:
        place = one.detour.place(pc)
        if place is None:
            continue
        begun = pc in one.detour.displaced.values()
        pc = place.original
        if (begun or is_past_tests) and pc == one.detour.patch:
            return next((other.detour.displaced[pc] for other in new if other.detour.patch == pc), pc)
    for other in new:
        inside = other.detour.inside(pc)
        if inside is not None:
            return inside
    return pc


def _take_out(live: Live, one: Installed) -> None:
    """The text is what it was, and the unused memory zeros."""
    detour = one.detour
    live.write(detour.patch, detour.original)
    live.write(detour.start, bytes(len(detour.code)))
