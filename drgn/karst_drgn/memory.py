"""A task of a kernel program as a target for the engine: its memory through its page tables, its mappings and threads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

from drgn import FaultError, Object, Program
from karst_engine import ErrorCode, KarstError, Mapping, Target, Thread

from karst_drgn import registers, tasks
from karst_drgn.output import size_text
from karst_drgn.physical import physical
from karst_drgn.tables import PageKind, PageMap, PageTables, Run
from karst_drgn.tasks import Vma

try:
    # drgn's own walk through page tables, in C. Of its helpers that take a task this is what is below.
    from _drgn import _linux_helper_read_vm
except ImportError:  # pragma: no cover: a drgn that has moved it
    _linux_helper_read_vm = None

_ZEROS = bytes(1 << 20)
_KEPT = 1 << 16


class Absent(NamedTuple):
    """Bytes of a task that a dump does not have."""

    swapped: int
    excluded: int
    """Left out by the dump's filter."""
    other: int

    def text(self, exact: bool = False) -> str:
        """One line; "" where nothing is absent."""
        parts = [f"{size_text(size, exact)} {what}" for size, what in
                 ((self.swapped, "swapped out"), (self.excluded, "left out of the dump"),
                  (self.other, "being migrated, or poisoned")) if size]
        return ", ".join(parts)


class TaskMemory:
    """Reads the memory of a task, and never a byte that is not there: what is swapped out, or was left out of the dump,
    ends a read. Anonymous memory that was never touched reads as zeros, as it would in the program."""

    def __init__(self, mm: Object, vmas: Sequence[Vma]) -> None:
        self._prog: Program = mm.prog_
        self._pgd = int(mm.pgd)
        self._tables = PageTables(mm)
        self._physical = physical(self._prog)
        self._vmas = vmas
        self._starts = [vma.start for vma in vmas]
        self._maps: dict[int, PageMap] = {}
        self._kept: tuple[int, bytes] = (0, b"")
        self._fills: dict[int, bool] = {}
        self._vdso = int(mm.context.vdso)
        image = mm.context.vdso_image
        self._vdso_image = int(image.data) if image else 0

    def vma_at(self, address: int) -> Optional[int]:
        """Its index; None: nothing is mapped there."""
        index = bisect_right(self._starts, address) - 1
        return index if index >= 0 and address < self._vmas[index].end else None

    def page_map(self, index: int) -> PageMap:
        """Where the pages of mapping number index are; the tables are walked at the first question."""
        found = self._maps.get(index)
        if found is None:
            vma = self._vmas[index]
            try:
                runs = self._tables.walk(vma.start, vma.end)
            except FaultError as error:
                raise KarstError(ErrorCode.FORMAT, f"the task's page tables are not in the dump: {error}") from None
            found = self._maps[index] = PageMap(runs, self._in_dump)
        return found

    def _in_dump(self, run: Run) -> bool:
        return not self._physical.missing(run.physical, run.end - run.start)

    def fills(self, vma: Vma) -> bool:
        """Whether pages that were never touched can be told all the same: anonymous ones read as zeros, the kernel's
        [vdso] is in the kernel's own data."""
        known = self._fills.get(vma.start)
        if known is None:
            known = (not vma.has_file and not vma.object.vm_ops) or self.is_vdso(vma.start)
            self._fills[vma.start] = known
        return known

    def is_vdso(self, address: int) -> bool:
        """Whether the code that the kernel lends to all begins at address."""
        return address == self._vdso

    def _filling(self, vma: Vma, address: int, size: int) -> bytes:
        if not self.is_vdso(vma.start):
            return _ZEROS[:size] if size <= len(_ZEROS) else bytes(size)
        try:
            return self._prog.read(self._vdso_image + address - vma.start, size)
        except FaultError:
            return b""

    def read(self, address: int, size: int) -> bytes:
        """Up to size bytes at address: as many as are there from the start on."""
        start, kept = self._kept
        if start <= address and address + size <= start + len(kept):
            return kept[address - start:address - start + size]
        index = self.vma_at(address)
        if index is None:
            return b""
        vma = self._vmas[index]
        if size >= _KEPT or address + size > vma.end:
            return self._read_through(index, address, size)
        # Small reads come in flocks: around them is read, too.
        start = max(vma.start, address & -_KEPT)
        kept = self._read(index, start, min(vma.end, start + 2 * _KEPT) - start)
        if address + size <= start + len(kept):
            self._kept = start, kept
            return kept[address - start:address - start + size]
        return self._read(index, address, size)

    def _read_through(self, index: int, address: int, size: int) -> bytes:
        """Also where another mapping follows without a gap: a heap may be in several."""
        pieces, end = [], address + size
        while index < len(self._vmas) and self._vmas[index].start <= address < end:
            wanted = min(end, self._vmas[index].end) - address
            pieces.append(self._read(index, address, wanted))
            if len(pieces[-1]) < wanted:
                break
            address += wanted
            index += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, index: int, address: int, size: int) -> bytes:
        """Inside one mapping."""
        vma, pages = self._vmas[index], self.page_map(index)
        pieces: list[bytes] = []
        place, end = address, address + size
        while place < end:
            data = self._read_plain(place, min(pages.plain_until(place), end) - place)
            if not data:
                run, until = pages.at(place)
                wanted = min(until, end) - place
                if run is not None:
                    data = self.read_run(run, place - run.start, wanted)
                elif self.fills(vma):
                    data = self._filling(vma, place, wanted)
                if len(data) < wanted:
                    pieces.append(data)
                    break
            pieces.append(data)
            place += len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_plain(self, address: int, size: int) -> bytes:
        """All of it by drgn's own walk, which is quick; it does not see pages without access, and reads as zeros what a
        dump left out, so only what has neither is asked for. Nothing if it can't."""
        if size <= 0 or _linux_helper_read_vm is None:
            return b""
        try:
            return _linux_helper_read_vm(self._prog, self._pgd, address, size)
        except FaultError:
            return b""

    def parts(self, run: Run) -> Iterator[tuple[int, int, bool]]:
        """The parts of a run, by addresses, that are in the dump (true) or were left out."""
        place = run.start
        while place < run.end:
            offset = place - run.start
            there = self._physical.available(run.physical + offset, run.end - place)
            gone = 0 if there else self._physical.gap(run.physical + offset, run.end - place)
            yield place, place + (there or gone), bool(there)
            place += there or gone

    def read_run(self, run: Run, offset: int, size: int) -> bytes:
        """Up to size bytes of a run, from offset on."""
        if run.kind in (PageKind.SWAPPED, PageKind.SPECIAL):
            return b""
        return self._physical.read(run.physical + offset, size)

    def resident(self, start: int, end: int) -> int:
        """Bytes in pages that are in memory."""
        total = 0
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._vmas) and self._vmas[index].start < end:
            total += self.page_map(index).resident(start, end)
            index += 1
        return total

    def absent_note(self) -> str:
        """For a reader of any answer; "" if all is there."""
        text = self.absent().text()
        return f"{text}: that memory is missing in what is told" if text else ""

    def absent(self) -> Absent:
        """What of all mappings can't be had."""
        swapped = excluded = other = 0
        for index in range(len(self._vmas)):
            for run in self.page_map(index).runs:
                size = run.end - run.start
                if run.kind is PageKind.SWAPPED:
                    swapped += size
                elif run.kind is PageKind.SPECIAL:
                    other += size
                elif not run.device:
                    excluded += self._physical.missing(run.physical, size)
        return Absent(swapped, excluded, other)


def _mapping(vma: Vma) -> Mapping:
    permissions = vma.flags & 15  # VM_READ, VM_WRITE, VM_EXEC, VM_SHARED are the engine's bits
    return Mapping(vma.start, vma.end, permissions, vma.name, vma.offset, vma.inode)


class TaskTarget(Target):
    """What the engine is lent of a task."""

    def __init__(self, task: Object) -> None:
        self.task = task
        self.pid = int(task.tgid)
        self.vmas = tasks.task_vmas(task.mm)
        self.memory = TaskMemory(task.mm, self.vmas)
        self._mappings = [_mapping(vma) for vma in self.vmas]
        self._threads = [registers.engine_thread(thread) for thread in tasks.threads_of(task) if thread.mm]

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size)

    def mappings(self) -> Sequence[Mapping]:
        return self._mappings

    def threads(self) -> Sequence[Thread]:
        return self._threads

    def resident(self, start: int, end: int) -> int:
        return self.memory.resident(start, end)

    def executable(self) -> Optional[str]:
        """Path of the program, as the mappings have it."""
        file = self.task.mm.exe_file
        return tasks.file_name(file) if file else None
