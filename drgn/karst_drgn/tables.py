"""A task's page tables on x86-64: where its pages are in physical memory, and which are elsewhere.

Mirrors ``arch/x86/include/asm/pgtable*.h``. drgn can read through page tables, but does not say what an entry is."""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from drgn import FaultError, Object, Program

from karst_drgn import programs
from karst_drgn.physical import physical

PAGE = 4096
_PRESENT, _PSE, _PROTNONE, _SPECIAL = 1, 1 << 7, 1 << 8, 1 << 9
_FRAME = (1 << 52) - PAGE
_ENTRIES = 512


class PageKind(enum.Enum):
    PRESENT = "present"
    NO_ACCESS = "no access"
    """In memory, but the processor may not look: ``PROT_NONE``, and pages that automatic NUMA balancing watches."""
    SWAPPED = "swapped"
    SPECIAL = "special"
    """No page of the program's own: migration entries, markers, poisoned memory."""


class Run(NamedTuple):
    """Neighbouring pages of one kind; of present ones also neighbours in physical memory."""

    start: int
    end: int
    kind: PageKind
    physical: int
    """Physical address of the first page; 0 unless it is in memory."""
    page_size: int
    """4 KiB, or 2 MiB or 1 GiB for what a higher level maps."""
    device: bool
    """Nobody's memory: a page of zeros that all share, or a device's (``pte_special()``)."""


def is_resident(run: Run) -> bool:
    """Whether its pages are memory that the process holds."""
    return run.kind in (PageKind.PRESENT, PageKind.NO_ACCESS) and not run.device


def zero_frames(prog: Program) -> tuple[int, int]:
    """The numbers of the page frames that all memory of zeros shares: the small and the huge one, -1: none."""
    return _frame_number(prog, "zero_pfn", "zero_page_pfn"), _frame_number(prog, "huge_zero_pfn")


def _frame_number(prog: Program, *names: str) -> int:
    for name in names:
        try:
            number = int(prog.variable(name))
        except (LookupError, FaultError, TypeError):
            continue
        return number if number < 1 << 52 else -1  # ~0: there is none yet
    return -1


def _merge(runs: list[Run], run: Run) -> None:
    if runs:
        last = runs[-1]
        size = last.end - last.start
        follows = last.physical + size == run.physical if run.physical else not last.physical
        if (last.end == run.start and last.kind is run.kind and last.page_size == run.page_size
                and last.device == run.device and follows):
            runs[-1] = last._replace(end=run.end)
            return
    runs.append(run)


class PageTables:
    """The page tables of one address space."""

    def __init__(self, mm: Object) -> None:
        """
        :param mm: ``struct mm_struct *``
        """
        self._prog: Program = mm.prog_
        self._pgd = int(mm.pgd)
        self._physical = physical(self._prog)
        information = programs.vmcoreinfo(self._prog)
        self._levels = 5 if int(information.get("NUMBER(pgtable_l5_enabled)", "0"), 0) else 4
        self._frame = _FRAME & ~int(information.get("NUMBER(sme_mask)", "0"), 0)
        self._swap_files = self._count_swap_files()
        self._huge_zero = zero_frames(self._prog)[1]

    def _count_swap_files(self) -> int:
        """Swap types from here on are no swap files (``MAX_SWAPFILES``); its value depends on the configuration."""
        try:
            return len(self._prog.variable("swap_info"))
        except (LookupError, TypeError):
            return 32

    def _table(self, physical_address: int) -> memoryview:
        data = self._physical.read(physical_address, PAGE)
        if len(data) < PAGE:
            raise FaultError("a page table is not in the dump", physical_address)
        return memoryview(data).cast("Q")

    def walk(self, start: int, end: int) -> list[Run]:
        """The runs in [start, end), both on page boundaries; where there is none, nothing was ever mapped."""
        runs: list[Run] = []
        top = memoryview(self._prog.read(self._pgd, PAGE)).cast("Q")
        self._walk_level(top, self._levels, start, end, runs)
        return runs

    def _walk_level(self, table: memoryview, level: int, start: int, end: int, runs: list[Run]) -> None:
        shift = 12 + 9 * (level - 1)
        first = start >> shift
        for number in range(first, ((end - 1) >> shift) + 1):
            entry = table[number % _ENTRIES]
            if not entry:
                continue
            low, high = max(start, number << shift), min(end, (number + 1) << shift)
            if level > 1 and entry & _PRESENT and not entry & _PSE:
                below = self._table(entry & self._frame)
                if level == 2:
                    self._walk_pages(below, low, high, runs)
                else:
                    self._walk_level(below, level - 1, low, high, runs)
            else:
                self._add(entry, low, high, 1 << shift, runs)

    def _walk_pages(self, table: memoryview, start: int, end: int, runs: list[Run]) -> None:
        """The last level; made quick for the plain case, a page that follows the one before."""
        mask, follows = self._frame | _PRESENT | _SPECIAL, -1
        begin = place = 0
        for number in range(start >> 12, end >> 12):
            entry = table[number & 511]
            if entry & mask == follows:
                follows += PAGE
                continue
            if follows >= 0:
                _merge(runs, Run(begin << 12, number << 12, PageKind.PRESENT, place, PAGE, False))
                follows = -1
            if entry & (_PRESENT | _SPECIAL) == _PRESENT:
                begin, place = number, entry & self._frame
                follows = (entry & mask) + PAGE
            elif entry:
                self._add(entry, number << 12, (number + 1) << 12, PAGE, runs)
        if follows >= 0:
            _merge(runs, Run(begin << 12, end, PageKind.PRESENT, place, PAGE, False))

    def _add(self, entry: int, start: int, end: int, size: int, runs: list[Run]) -> None:
        device = bool(entry & _SPECIAL)
        inside = start & (size - 1)
        if entry & _PRESENT:
            place = entry & self._frame & -size
            device = device or (size > PAGE and place // PAGE == self._huge_zero)
            _merge(runs, Run(start, end, PageKind.PRESENT, place + inside, size, device))
        elif entry & _PROTNONE:
            # Since Linux kernel commit 6b28baca9b1f ("x86/speculation/l1tf: Protect PROT_NONE PTEs against speculation")
            # (in v4.19) the frame's bits are inverted.
            _merge(runs, Run(start, end, PageKind.NO_ACCESS, (~entry & self._frame & -size) + inside, size, device))
        elif entry >> 59 < self._swap_files and size == PAGE:
            _merge(runs, Run(start, end, PageKind.SWAPPED, 0, size, False))
        else:
            _merge(runs, Run(start, end, PageKind.SPECIAL, 0, size, False))


class PageMap:
    """The runs of one mapping, to be asked by address."""

    def __init__(self, runs: list[Run], in_dump: Callable[[Run], bool]) -> None:
        """in_dump: whether all of a run's pages are."""
        self.runs = runs
        self._starts = [run.start for run in runs]
        # Neighbours that can be read in one go, wherever they are in physical memory; and how many bytes are resident
        # in all runs before each.
        self._plain_starts: list[int] = []
        self._plain_ends: list[int] = []
        self._resident_before = [0]
        for run in runs:
            self._resident_before.append(self._resident_before[-1] + (run.end - run.start if is_resident(run) else 0))
            if run.kind is PageKind.PRESENT and in_dump(run):
                if self._plain_ends and self._plain_ends[-1] == run.start:
                    self._plain_ends[-1] = run.end
                else:
                    self._plain_starts.append(run.start)
                    self._plain_ends.append(run.end)

    def plain_until(self, address: int) -> int:
        """The end of the pages from address on that are present and in the dump; address itself if there are none."""
        index = bisect_right(self._plain_starts, address) - 1
        return max(address, self._plain_ends[index]) if index >= 0 else address

    def at(self, address: int) -> tuple[Run | None, int]:
        """The run that holds address and its end, or None and where the next one begins."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.runs[index].end:
            return self.runs[index], self.runs[index].end
        following = self._starts[index + 1] if index + 1 < len(self._starts) else 2**64
        return None, following

    def resident(self, start: int, end: int) -> int:
        """Bytes of [start, end) that are in memory."""
        return self._resident_below(end) - self._resident_below(start)

    def _resident_below(self, address: int) -> int:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return 0
        run = self.runs[index]
        inside = min(address, run.end) - run.start if is_resident(run) else 0
        return self._resident_before[index] + inside

    def between(self, start: int, end: int) -> Iterator[Run]:
        """The runs that touch [start, end), cut to it."""
        for index in range(max(0, bisect_right(self._starts, start) - 1), len(self.runs)):
            run = self.runs[index]
            if run.start >= end:
                return
            low, high = max(run.start, start), min(run.end, end)
            if low < high:
                place = run.physical + low - run.start if run.physical else 0
                yield run._replace(start=low, end=high, physical=place)
