"""How much of a task's mappings is in memory, and of what kind: what ``/proc/PID/smaps`` says, from a dump."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Optional

from drgn import Object, Program, sizeof

from karst_drgn.tables import PAGE, PageKind, PageTables, Run, zero_frames
from karst_drgn.tasks import VM_HUGETLB, Vma, task_vmas

_ANONYMOUS = 1  # of page->mapping: PAGE_MAPPING_ANON; same-page merging has both bits
_CACHE_KEY = "karst page kinds"


class Residency(NamedTuple):
    """Bytes of a range by what holds them; ``rss`` is anonymous, file and shmem together, as smaps counts it."""

    start: int
    end: int
    name: Optional[str]
    rss: int
    anonymous: int
    file: int
    shmem: int
    swap: int
    zero: int
    """Only read so far: the page of zeros that all share, which takes no memory."""
    huge: int
    """Of ``rss``: in huge pages."""
    no_access: int
    """Of ``rss``: ``PROT_NONE``, or watched by automatic NUMA balancing."""
    hugetlb: int
    """Huge pages of hugetlbfs; not part of ``rss``."""
    other: int
    """Device memory, migration entries, poisoned pages."""


class PageKinds:
    """Tells by ``struct page`` what a page is. Mirrors ``include/linux/page-flags.h``."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._size = sizeof(prog.type("struct page"))
        self._map = int(prog["vmemmap_base"])
        self._mapping = self._offset("mapping")
        # Since Linux kernel commit "mm: Rename the 'compound_head' field in the 'struct page' to 'compound_info'" (in
        # v7.1) it has another name, and may hold a mask for the head's address instead of that address.
        try:
            self._head = self._offset("compound_head")
        except LookupError:
            self._head = self._offset("compound_info")
        self._swap_backed = 1 << int(prog.constant("PG_swapbacked"))
        self._zero, self._huge_zero = zero_frames(prog)

    def _offset(self, member: str) -> int:
        """In words. drgn finds members of unnamed structs by their object."""
        return int(Object(self._prog, "struct page", address=0).member_(member).address_) // 8

    def is_zero(self, frame: int, size: int) -> bool:
        return frame == self._zero or (size > PAGE and self._huge_zero == frame & -(size // PAGE))

    def _word(self, address: int, index: int) -> int:
        return self._prog.read_u64(address + 8 * index)

    def _head_of(self, page: int, info: int) -> int:
        """Of a tail page: its head's address, or a mask that makes it of the tail's."""
        info &= ~1
        size = 2**64 - info
        return page & info if size & (size - 1) == 0 and size <= 1 << 40 else info

    def count(self, run: Run) -> tuple[int, int, int]:
        """Pages of a run (4 KiB) that are anonymous, a file's, shmem."""
        first, pages = run.physical // PAGE, (run.end - run.start) // PAGE
        if run.page_size > PAGE:  # one compound page: all its pages are of one kind
            kind = self._kind(self._map + first * self._size)
            return tuple(pages if index == kind else 0 for index in range(3))  # type: ignore[return-value]
        counts = [0, 0, 0]
        words_a_page = self._size // 8
        heads: dict[int, int] = {}
        for done in range(0, pages, 4096):
            some = min(4096, pages - done)
            start = self._map + (first + done) * self._size
            words = memoryview(self._prog.read(start, some * self._size)).cast("Q")
            for index in range(some):
                at = index * words_a_page
                info = words[at + self._head]
                if info & 1:
                    head = self._head_of(start + index * self._size, info)
                    kind = heads.get(head, -1)
                    if kind < 0:
                        kind = heads[head] = self._kind(head)
                elif words[at + self._mapping] & _ANONYMOUS:
                    kind = 0
                else:
                    kind = 2 if words[at] & self._swap_backed else 1
                counts[kind] += 1
        return counts[0], counts[1], counts[2]

    def _kind(self, page: int) -> int:
        info = self._word(page, self._head)
        if info & 1:
            page = self._head_of(page, info)
        if self._word(page, self._mapping) & _ANONYMOUS:
            return 0
        return 2 if self._word(page, 0) & self._swap_backed else 1


def _page_kinds(prog: Program) -> PageKinds:
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = PageKinds(prog)
    return prog.cache[_CACHE_KEY]


def _residency(kinds: PageKinds, vma: Vma, runs: Sequence[Run]) -> Residency:
    sums = dict.fromkeys(Residency._fields[3:], 0)
    for run in runs:
        size = run.end - run.start
        if run.kind is PageKind.SWAPPED:
            sums["swap"] += size
        elif run.kind is PageKind.SPECIAL:
            sums["other"] += size
        elif kinds.is_zero(run.physical // PAGE, run.page_size):
            sums["zero"] += size
        elif run.device:
            sums["other"] += size
        elif vma.flags & VM_HUGETLB:
            sums["hugetlb"] += size
        else:
            anonymous, file, shmem = (pages * PAGE for pages in kinds.count(run))
            sums["anonymous"] += anonymous
            sums["file"] += file
            sums["shmem"] += shmem
            sums["rss"] += size
            sums["huge"] += size if run.page_size > PAGE else 0
            sums["no_access"] += size if run.kind is PageKind.NO_ACCESS else 0
    return Residency(vma.start, vma.end, vma.name, **sums)


def _page_down(address: int) -> int:
    return address & -PAGE


def task_residency(task: Object, start: int = 0, end: int = 2**64, poll: Callable[[], None] = lambda: None) -> \
        Iterator[Residency]:
    """
    What of each mapping of a task is in memory, in order of address.

    :param task: ``struct task_struct *``
    :param start: Where to begin; a mapping that reaches over is cut, to whole pages.
    :param end: Where to end.
    """
    kinds, tables = _page_kinds(task.prog_), PageTables(task.mm)
    for vma in task_vmas(task.mm):
        low, high = max(vma.start, _page_down(start)), min(vma.end, _page_down(min(end, 2**64 - PAGE) + PAGE - 1))
        if low < high:
            poll()
            yield _residency(kinds, vma._replace(start=low, end=high), tables.walk(low, high))
