"""
Heaps of userspace programs, and of tasks in kernel programs.

All helpers take a userspace :class:`drgn.Program` (a core or a live process), or a task of a kernel, ``struct task_struct
*``. The engine answers, so that the words and numbers are those of ``karst`` on the command line. What can't be
answered is a :class:`karst_engine.KarstError`, whose text is one line.

A live process is stopped while it is read, and goes on after each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional, Union

import drgn
import karst_engine
from drgn import Object, Program
from karst_engine import ErrorCode, KarstError, State
from karst_terminal import Progress, interrupts_wait

from karst_drgn import programs, symbols, tasks
from karst_drgn.memory import TaskTarget

Heap = Union[Program, Object]
"""A userspace program, or ``struct task_struct *``."""

_SESSIONS = "karst sessions"
_CHUNK_HEADER = 16  # of glibc: what a block's address lies behind the address of its struct malloc_chunk


class HeapTotal(NamedTuple):
    """Blocks of a state, and their bytes."""

    blocks: int
    bytes: int


class HeapArena(NamedTuple):
    """An arena of an allocator; sizes are bytes."""

    allocator: str
    name: str
    address: int
    threads: int
    """Attached to it."""
    locked: bool
    """A thread was inside: what is told may be in between two states."""
    system: int
    live: HeapTotal
    free: HeapTotal
    cached: HeapTotal
    top: HeapTotal
    resident: Optional[int]
    """``None``: can't be told."""
    object: Optional[Object]
    """``struct malloc_state``, where the allocator is glibc's and its debug information is loaded."""


class HeapBlock(NamedTuple):
    """A block: ``address`` is what the program holds, or held."""

    address: int
    usable: int
    """Bytes the program may use at ``address``."""
    start: int
    size: int
    """With header; blocks of a heap tile it."""
    state: str
    """``live``, ``free``, ``cached``, ``top``, ``metadata`` or ``unknown``."""
    allocator: str
    arena: str
    bin: str
    """``""`` if it is in no bin or cache."""


class HeapHole(NamedTuple):
    """Memory that is not live between two live blocks."""

    address: int
    size: int
    usable: int
    """The largest piece without a seam."""
    free: int
    cached: int
    resident: Optional[int]
    before: int
    """The live block in front, as the program holds it."""
    after: int
    arena: str


class HeapFinding(NamedTuple):
    """Something that is wrong with a heap."""

    code: str
    severity: str
    """``corrupt``, or ``suspect`` where a legal state could look alike."""
    allocator: str
    address: int
    size: int
    text: str
    evidence: str


class HeapPin(NamedTuple):
    """Live blocks that keep free memory apart."""

    address: int
    size: int
    blocks: int
    arena: str
    joined: int
    """What the hole would have if they went."""


# ---- sessions -----------------------------------------------------------------------------------------


class Session:
    """The engine over one program or task; Ctrl-C ends its work."""

    def __init__(self, heap: Heap, **options: Any) -> None:
        self.progress = Progress()
        self.kept = False  # whether it may serve more than one call
        self.task: Optional[TaskTarget] = None
        with self.working():
            self.engine = self._open(heap, dict(options, poll=self.progress.poll))

    def _open(self, heap: Heap, options: dict[str, Any]) -> karst_engine.Session:
        if isinstance(heap, Object):
            return self._open_task(heap, options)
        programs.need_userspace(heap)
        lent = symbols.Lent(heap)
        if programs.is_live(heap):
            return karst_engine.Session.open_process(programs.process_id(heap), lent=lent, **options)
        path = programs.core_path(heap)
        if path is None:
            raise KarstError(ErrorCode.USAGE, "this program is neither a core nor a process: open one by"
                                              " drgn -c CORE or drgn -p PID")
        self.kept = True
        return karst_engine.Session.open_core(path, lent=lent, **options)

    def _open_task(self, task: Object, options: dict[str, Any]) -> karst_engine.Session:
        programs.need_kernel(task.prog_)
        if not task.mm:
            raise KarstError(ErrorCode.NOT_FOUND, f"{int(task.pid)} ({tasks.command(task)}) has no memory of its own")
        live = programs.is_live(task.prog_)
        self.kept = not live
        self.task = TaskTarget(task)
        executable = options.pop("executable", None)
        return karst_engine.Session.open_callbacks(self.task, executable=executable or self.task.executable(),
                                                   no_stop=live, **options)

    @contextmanager
    def working(self) -> Iterator[None]:
        self.progress.begin()
        try:
            with interrupts_wait():
                yield
        finally:
            self.progress.wipe()


def _key(heap: Heap, options: dict[str, Any]) -> tuple[Any, ...]:
    return (int(heap.tgid) if isinstance(heap, Object) else 0, *sorted(options.items()))


@contextmanager
def session(heap: Heap, **options: Any) -> Iterator[Session]:
    """A session, kept with the program where nothing can change. options: ``executable``, ``sysroot``,
    ``debug_directory``, ``no_stop``, ``no_symbols``, as on the command line."""
    prog = heap.prog_ if isinstance(heap, Object) else heap
    kept: dict[tuple[Any, ...], Session] = prog.cache.setdefault(_SESSIONS, {})
    key = _key(heap, options)
    current = kept.get(key) or Session(heap, **options)
    if current.kept:
        kept[key] = current
        yield current
        return
    try:
        yield current
    finally:
        current.engine.close()


def heap_json(heap: Heap, *words: str, **options: Any) -> Any:
    """
    What a verb says with ``--json``: ``heap_json(prog, "holes", "--fit", "8880819")``.

    :param heap: A program, or ``struct task_struct *``
    :param words: The verb, its options and arguments.
    """
    with session(heap, **options) as current, current.working():
        return current.engine.run_json(words)


# ---- helpers ------------------------------------------------------------------------------------------


def _number(text: Optional[str]) -> int:
    return int(text, 16) if text else 0


def _total(row: dict[str, int]) -> HeapTotal:
    return HeapTotal(row["blocks"], row["bytes"])


def _object_at(heap: Heap, type_name: str, address: int) -> Optional[Object]:
    if isinstance(heap, Object):  # the kernel's program has not the task's types
        return None
    try:
        return Object(heap, type_name, address=address)
    except LookupError:
        return None


def for_each_heap_arena(heap: Heap) -> Iterator[HeapArena]:
    """
    All arenas of all allocators.

    :param heap: A program, or ``struct task_struct *``
    """
    for row in heap_json(heap, "arenas")["arenas"]:
        if row["address"] is None:  # what stands for the blocks with mappings of their own
            continue
        address = _number(row["address"])
        glibc = row["allocator"].startswith("glibc")
        yield HeapArena(row["allocator"], row["name"], address, row["threads"], row["locked"], row["system_bytes"],
                        _total(row["live"]), _total(row["free"]), _total(row["cached"]), _total(row["top"]),
                        row["resident_bytes"], _object_at(heap, "struct malloc_state", address) if glibc else None)


def _block(engine: karst_engine.Session, block: Any) -> HeapBlock:
    return HeapBlock(block.address, block.usable, block.start, block.size, State(block.state).name.lower(),
                     engine.allocator_name(block), engine.arena_name(block), engine.bin_name(block))


def visit_heap_blocks(heap: Heap, visit: Callable[[Any], Optional[bool]], **options: Any) -> None:
    """
    Calls a function with arrays of :class:`karst_engine.Block`, in order of address, which are only valid during the
    call; returning ``False`` ends the walk. No more than an array is kept at a time.

    :param heap: A program, or ``struct task_struct *``
    """
    with session(heap, **options) as current, current.working():
        current.engine.for_each_block(visit)


def for_each_heap_block(heap: Heap, state: Optional[str] = None) -> Iterator[HeapBlock]:
    """
    All blocks in order of address. 48 bytes are kept for each; for the largest heaps see :func:`visit_heap_blocks`.

    :param heap: A program, or ``struct task_struct *``
    :param state: Only those in this state: ``"live"``, ``"free"``, ``"cached"``, ``"top"``, ``"metadata"`` or
        ``"unknown"``.
    """
    wanted = None if state is None else _state(state)
    batches: list[Any] = []

    def keep(blocks: Any) -> None:
        batches.append(type(blocks).from_buffer_copy(blocks))

    with session(heap) as current:
        with current.working():
            current.engine.for_each_block(keep)
        for batch in batches:
            for block in batch:
                if wanted is None or block.state == wanted:
                    yield _block(current.engine, block)


def _state(name: str) -> int:
    try:
        return int(State[name.upper()])
    except KeyError:
        raise ValueError(f"no state {name!r}; there are: {', '.join(one.name.lower() for one in State)}") from None


def find_heap_block(heap: Heap, address: drgn.IntegerLike) -> Optional[HeapBlock]:
    """
    The block whose bytes hold an address; ``None``: it is in no heap.

    :param heap: A program, or ``struct task_struct *``
    :param address: ``void *``
    """
    with session(heap) as current, current.working():
        try:
            return _block(current.engine, current.engine.find_block(int(address)))
        except KarstError as error:
            if error.code == ErrorCode.NOT_FOUND:
                return None
            raise


def heap_chunk(prog: Program, block: HeapBlock) -> Optional[Object]:
    """
    The header of a block of glibc's.

    :return: ``struct malloc_chunk``; ``None`` without libc's debug information, or for another allocator's.
    """
    if not block.allocator.startswith("glibc"):
        return None
    return _object_at(prog, "struct malloc_chunk", block.address - _CHUNK_HEADER)


def heap_holes(heap: Heap, limit: Optional[int] = None) -> list[HeapHole]:
    """
    The holes, the biggest first.

    :param heap: A program, or ``struct task_struct *``
    :param limit: At most so many; ``None``: all.
    """
    if limit is None:
        limit = heap_json(heap, "holes")["holes"]
    return [HeapHole(_number(row["address"]), row["size"], row["usable_bytes"], row["free_bytes"], row["cached_bytes"],
                     row["resident_bytes"], _number(row["before"]), _number(row["after"]), row["arena"])
            for row in heap_json(heap, "holes", "--limit", str(limit))["biggest"]]


def heap_pins(heap: Heap) -> list[HeapPin]:
    """
    The few live blocks that keep the most free memory apart.

    :param heap: A program, or ``struct task_struct *``
    """
    return [HeapPin(_number(row["address"]), row["size"], row["blocks"], row["arena"], row["joined_bytes"])
            for row in heap_json(heap, "pins")["pins"] if row["kind"] == "between"]


def heap_check(heap: Heap) -> list[HeapFinding]:
    """
    What is wrong with the heaps; an empty list if nothing is.

    :param heap: A program, or ``struct task_struct *``
    """
    return [HeapFinding(row["code"], row["severity"], row["allocator"], _number(row["address"]), row["size"],
                        row["text"], row["evidence"]) for row in heap_json(heap, "check")["findings"]]


def heap_total(heap: Heap) -> dict[str, Any]:
    """
    Totals of all allocators, as ``karst summary --json`` has them.

    :param heap: A program, or ``struct task_struct *``
    """
    return heap_json(heap, "summary")["total"]
