"""
The kernel's counters of resident memory, and what they leave out.

Each CPU (up to Linux 6.1: each thread) counts a part of a process's pages by itself. The parts are added to the common
count now and then; until then the common count, which some files of ``/proc`` show, lags behind. This module adds up all
parts. Mirrors ``include/linux/mm.h``, ``mm_types_task.h``, ``percpu_counter.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Optional

from drgn import FaultError, Object, Program
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu_ptr
from karst_engine import ErrorCode, KarstError

from karst_drgn import programs, tasks

PAGE = 4096
# mm/memory.c up to v6.1: a thread's part is added to the common count when it has had more faults than this.
_FAULTS_OF_THREAD = 64
# One fault may map so many pages of a file around the one that was asked for (fault_around_bytes).
_PAGES_OF_FAULT = 16

_COUNTERS = {"file": "MM_FILEPAGES", "anonymous": "MM_ANONPAGES", "swap": "MM_SWAPENTS", "shmem": "MM_SHMEMPAGES"}


class RssCounter(NamedTuple):
    """One counter of an ``mm_struct``, in pages."""

    name: str
    """``file``, ``anonymous``, ``swap`` or ``shmem``."""
    cached: int
    """The common count: what a reader sees that does not add up the parts. Negative ones are shown as 0."""
    exact: int
    """With all parts."""
    bound: int
    """How far ``cached`` can be off."""
    parts: dict[int, int]
    """What each CPU (or thread) holds back, by its number; only those that hold something."""

    @property
    def drift(self) -> int:
        """``cached - exact``"""
        return self.cached - self.exact


class MmRss(NamedTuple):
    """The counters of an address space."""

    file: RssCounter
    anonymous: RssCounter
    swap: RssCounter
    shmem: RssCounter
    scheme: str
    """Who holds parts: ``cpu``, ``thread``, or ``none``."""

    @property
    def counters(self) -> tuple[RssCounter, ...]:
        return self.file, self.anonymous, self.swap, self.shmem

    @property
    def resident(self) -> tuple[RssCounter, ...]:
        """Those that make up RSS: all but ``swap``."""
        return self.file, self.anonymous, self.shmem

    @property
    def exact(self) -> int:
        """RSS in pages."""
        return sum(max(0, counter.exact) for counter in self.resident)

    @property
    def cached(self) -> int:
        """RSS in pages as ``/proc/PID/stat`` shows it."""
        return sum(max(0, counter.cached) for counter in self.resident)

    @property
    def drift(self) -> int:
        return self.cached - self.exact

    @property
    def bound(self) -> int:
        return sum(counter.bound for counter in self.resident)


class TaskRss(NamedTuple):
    """A process and its counters."""

    pid: int
    name: str
    rss: MmRss
    task: Object
    """``struct task_struct *``"""


def _indexes(prog: Program) -> dict[str, int]:
    found = {}
    for name, constant in _COUNTERS.items():
        try:
            found[name] = int(prog.constant(constant))
        except LookupError:
            raise _unknown(f"there is no {constant}") from None
    return found


def _unknown(what: str) -> KarstError:
    return KarstError(ErrorCode.UNSUPPORTED, f"this kernel counts resident memory in a way that is not known here: {what}")


def _atomic(value: Object) -> int:
    return int(value.counter.read_())


class _Threads:
    """Up to v6.1: ``struct mm_rss_stat``, and a part in each thread where the kernel is for 4 CPUs and more
    (SPLIT_RSS_COUNTING)."""

    scheme = "thread"

    def __init__(self, prog: Program, mm: Object, users: list[Object]) -> None:
        self._mm, self._users = mm, users
        try:
            prog.type("struct task_rss_stat")
        except LookupError:
            self.scheme, self._users = "none", []

    def cached(self, index: int) -> int:
        return _atomic(self._mm.rss_stat.count[index])

    def parts(self, index: int) -> dict[int, int]:
        return {int(thread.pid): int(thread.rss_stat.count[index]) for thread in self._users}

    def bound(self, name: str) -> int:
        return (_FAULTS_OF_THREAD + 1) * len(self._users) * (_PAGES_OF_FAULT if name in ("file", "shmem") else 1)


class _Cpus:
    """Since Linux kernel commit f1a7941243c1 ("mm: convert mm's rss stats into percpu_counter") (in v6.2)."""

    scheme = "cpu"

    def __init__(self, prog: Program, mm: Object, users: list[Object]) -> None:
        self._prog, self._mm = prog, mm
        # All that ever were: the part of a CPU that went away is moved to the common count and is 0.
        self._cpus = list(for_each_possible_cpu(prog))
        batch = int(prog.variable("percpu_counter_batch"))
        self._bound = (batch - 1) * sum(1 for _ in for_each_online_cpu(prog))

    def cached(self, index: int) -> int:
        return int(self._mm.rss_stat[index].count.read_())

    def parts(self, index: int) -> dict[int, int]:
        counters = self._mm.rss_stat[index].counters
        return {cpu: int(per_cpu_ptr(counters, cpu)[0]) for cpu in self._cpus}

    def bound(self, name: str) -> int:
        return self._bound


def _scheme(mm: Object, users: Optional[list[Object]]) -> _Threads | _Cpus:
    prog = mm.prog_
    try:
        kind = mm.rss_stat.type_
    except LookupError:
        raise _unknown("struct mm_struct has no rss_stat") from None
    if kind.type_name() == "struct mm_rss_stat":
        return _Threads(prog, mm, _users(mm) if users is None else users)
    if kind.type_name().startswith("struct percpu_counter ["):
        return _Cpus(prog, mm, [])
    raise _unknown(f"mm_struct.rss_stat is a {kind.type_name()}")


def _users(mm: Object) -> list[Object]:
    """The threads that run in an address space, of whatever process."""
    return [thread for process in tasks.for_each_process(mm.prog_) if process.mm == mm
            for thread in tasks.threads_of(process) if thread.mm == mm]


def _mm_rss(mm: Object, users: Optional[list[Object]]) -> MmRss:
    scheme = _scheme(mm, users)
    counters = {}
    try:
        for name, index in _indexes(mm.prog_).items():
            cached, parts = scheme.cached(index), scheme.parts(index)
            counters[name] = RssCounter(name, cached, cached + sum(parts.values()), scheme.bound(name),
                                        {who: part for who, part in parts.items() if part})
    except FaultError as error:
        raise KarstError(ErrorCode.FORMAT, f"the counters are not in the dump: {error}") from None
    return MmRss(**counters, scheme=scheme.scheme)


def mm_rss(mm: Object) -> MmRss:
    """
    The counters of an address space, with their exact values.

    :param mm: ``struct mm_struct *``
    """
    programs.need_kernel(mm.prog_)
    return _mm_rss(mm, None)


def task_rss(task: Object) -> TaskRss:
    """
    The counters of a process; KarstError if it has no memory of its own.

    :param task: ``struct task_struct *``
    """
    mm = task.mm
    if not mm:
        raise KarstError(ErrorCode.NOT_FOUND, f"{int(task.pid)} ({tasks.command(task)}) has no memory of its own")
    users = [thread for thread in tasks.threads_of(task) if thread.mm == mm]
    if int(mm.mm_users.counter) != len(users):  # others share it by clone(CLONE_VM), or look at it just now
        return TaskRss(int(task.tgid), tasks.command(task), _mm_rss(mm, None), task)
    return TaskRss(int(task.tgid), tasks.command(task), _mm_rss(mm, users), task)


def for_each_task_rss(prog: Program) -> Iterator[TaskRss]:
    """All processes that have memory, the one with most by the exact figure first."""
    programs.need_kernel(prog)
    found = [task_rss(task) for task in tasks.for_each_process(prog)]
    return iter(sorted(found, key=lambda one: (-one.rss.exact, one.pid)))


# ---- which file of /proc shows which figure ------------------------------------------------------------


class RssSources(NamedTuple):
    """Whether the files of ``/proc/PID`` add up the parts on this kernel; ``None``: not known."""

    smaps: Optional[bool]
    """``smaps`` and ``smaps_rollup``: from the page tables, always exact."""
    status: Optional[bool]
    statm: Optional[bool]
    stat: Optional[bool]


def _calls(prog: Program, caller: str, callee: int) -> Optional[bool]:
    """Whether a function of the kernel calls the one at an address, by its code; None: it can't be told."""
    try:
        symbol = prog.symbol(caller)
        code = prog.read(symbol.address, symbol.size)
    except (LookupError, FaultError):
        return None
    for place in range(len(code) - 4):
        if code[place] == 0xE8:  # call, 32 bits relative to what follows
            distance, = struct.unpack_from("<i", code, place + 1)
            if symbol.address + place + 5 + distance == callee:
                return True
    return False


def rss_sources(prog: Program) -> RssSources:
    """
    Which files add up the parts. Since Linux kernel commit 82241a83cd15 ("mm: fix the inaccurate memory statistics
    issue for users") (in v6.16, and in stable releases since July 2025) ``status`` and ``statm`` do: told by whether
    their functions call the one that adds up.
    """
    programs.need_kernel(prog)
    try:
        total = prog.symbol("__percpu_counter_sum").address
    except LookupError:
        total = 0
    try:
        prog.type("struct mm_rss_stat")
    except LookupError:
        if not total:
            return RssSources(True, None, None, None)
        status = _calls(prog, "task_mem", total)
        return RssSources(True, status, _calls(prog, "task_statm", total), _calls(prog, "do_task_stat", total))
    try:
        prog.type("struct task_rss_stat")
    except LookupError:
        return RssSources(True, True, True, True)  # there are no parts
    return RssSources(True, False, False, False)
