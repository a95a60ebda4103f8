"""A stopped process that is about to be changed: its memory, modules and threads."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gdb
import karst_elf
from karst_elf import Definition, Module, NotThere, Segment
from karst_engine import Mapping, Permission

from karst_gdb import memory, target
from karst_gdb.registers import selection_kept

_MASK = (1 << 64) - 1
_MACHINE = "i386:x86-64"
_AUXV = re.compile(r"\s(AT_PHDR|AT_PHNUM)\s.*?(0x[0-9a-f]+|[0-9]+)\s*$", re.MULTILINE)


@dataclass
class LiveThread:
    thread: gdb.InferiorThread
    pc: int
    sp: int


class Live:
    """The selected inferior. Fails with one line unless it is a process; to be changed, all its threads have to be
    stopped."""

    def __init__(self, to_change: bool = True) -> None:
        chosen = target.selected()
        if chosen.kind == target.CORE:
            raise gdb.GdbError("a core does not run: traps and the like need a process")
        self.inferior = gdb.selected_inferior()
        self.is_stopped = not (chosen.partly_running or chosen.passing)
        if to_change and not self.is_stopped:
            raise gdb.GdbError(self._say_running(chosen.passing))
        self.is_here = chosen.kind == target.PROCESS
        machine = gdb.newest_frame().architecture().name()
        if machine != _MACHINE:
            raise gdb.GdbError(f"this is done for x86-64 programs only so far; this one is {machine}")
        self._mappings: list[Mapping] | None = None
        self._modules: list[Module] | None = None

    def _say_running(self, passing: bool) -> str:
        if passing:
            return "the process runs on from here: this can't be done in a breakpoint's condition"
        threads = self.inferior.threads()
        running = sum(thread.is_running() for thread in threads)
        return (f"{running} of {len(threads)} threads run{'s' if running == 1 else ''} on, as in non-stop mode; all have to be "
                "stopped: `interrupt -a`, then this, then `continue -a`")

    # ---- memory --------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """All of it or nothing. What breakpoints replaced is as it was."""
        try:
            return bytes(self.inferior.read_memory(address, size))
        except (gdb.error, OverflowError, ValueError):
            return b""

    def write(self, address: int, data: bytes) -> None:
        try:
            self.inferior.write_memory(address, data)
        except gdb.error as error:
            raise gdb.GdbError(f"GDB can't write at {address:#x}: {error}") from None

    @property
    def mappings(self) -> list[Mapping]:
        if self._mappings is None:
            self._mappings = self._own_mappings() or memory.mappings()
            self._starts = [mapping.start for mapping in self._mappings]
        return self._mappings

    def _own_mappings(self) -> list[Mapping]:
        if not self.is_here:
            return []
        try:
            with open(f"/proc/{self.inferior.pid}/maps", "rb") as file:
                return memory.parse_maps(os.fsdecode(file.read()))
        except OSError:
            return []

    def mapping(self, address: int) -> Mapping | None:
        mappings = self.mappings
        index = bisect_right(self._starts, address) - 1
        return mappings[index] if index >= 0 and address < mappings[index].end else None

    def stack_end(self, address: int) -> int:
        """Where the mapping that holds address ends; 0: there is none."""
        mapping = self.mapping(address)
        return mapping.end if mapping is not None else 0

    def code_ranges(self) -> list[tuple[int, int]]:
        return [(mapping.start, mapping.end) for mapping in self.mappings
                if mapping.permissions & Permission.EXECUTE]

    # ---- modules -------------------------------------------------------------------------------------

    def _program_headers(self) -> tuple[int, int]:
        found = dict(_AUXV.findall(gdb.execute("info auxv", to_string=True)))
        try:
            return int(found["AT_PHDR"], 0), int(found["AT_PHNUM"], 0)
        except KeyError:
            raise gdb.GdbError("GDB can't tell where the program's headers are (info auxv)") from None

    @property
    def modules(self) -> Sequence[Module]:
        """In the order that names are looked up in; of a static program none."""
        if self._modules is None:
            try:
                self._modules = karst_elf.modules(self.read, *self._program_headers())
            except NotThere as reason:
                raise gdb.GdbError(f"the program's modules can't be listed: {reason}; it may not have got to main "
                                   "yet (start)") from None
        return self._modules

    @property
    def is_static(self) -> bool:
        return not self.modules

    def definitions(self, name: str) -> list[Definition]:
        """The function that a call of `name` gets to: of the first module that has it, in all its versions."""
        if self.is_static:
            return self._static_definition(name)
        for module in self.modules:
            found = module.definitions(name)
            if found:
                return found
        return []

    def _static_definition(self, name: str) -> list[Definition]:
        try:
            address = int(gdb.parse_and_eval(f"(unsigned long) &'{name}'")) & _MASK
        except (gdb.error, RuntimeError):
            return []
        return [Definition(Module(self.read, "", 0, 0), name, address, 0)]

    def module_segments(self, address: int) -> list[Segment]:
        """Of the module that is mapped at address, as its file asks for them."""
        inside = self.mapping(address)
        if inside is None or not inside.name:
            raise NotThere(f"{address:#x} is in no file's mapping")
        headers = [mapping.start for mapping in self.mappings
                   if mapping.name == inside.name and mapping.file_offset == 0 and mapping.start <= address]
        if not headers:
            raise NotThere(f"the start of {inside.name} is not mapped")
        return karst_elf.segments(self.read, max(headers))

    # ---- threads -------------------------------------------------------------------------------------

    def threads(self) -> list[LiveThread]:
        found = []
        with selection_kept():
            for thread in self.inferior.threads():
                thread.switch()
                frame = gdb.newest_frame()
                found.append(LiveThread(thread, frame.pc(), int(frame.read_register("rsp")) & _MASK))
        return found

    def set_pcs(self, wanted: Sequence[tuple[gdb.InferiorThread, int]]) -> None:
        if not wanted:
            return
        with selection_kept():
            for thread, pc in wanted:
                thread.switch()
                gdb.newest_frame().select()
                gdb.execute(f"set var $pc = {pc:#x}", to_string=True)

    def thread_pointer(self, lwp: int) -> int | None:
        """Of the thread with that id, as the kernel counts; None: there is no such thread."""
        with selection_kept():
            for thread in self.inferior.threads():
                if lwp in thread.ptid[1:]:
                    thread.switch()
                    return int(gdb.newest_frame().read_register("fs_base")) & _MASK
        return None


def breakpoints_within(low: int, high: int) -> Iterator[str]:
    """Numbers of GDB's breakpoints, its own too (negative), that stand at low <= address < high."""
    number = ""
    for line in gdb.execute("maint info breakpoints", to_string=True).splitlines():
        begin = re.match(r"(-?[0-9]+)\s", line)
        number = begin.group(1) if begin else number
        if not re.match(r"\s*-?[0-9]+(\.[0-9]+)?\s", line):
            continue
        if any(low <= int(address, 16) < high for address in re.findall(r"0x[0-9a-f]{8,16}", line)):
            yield number
