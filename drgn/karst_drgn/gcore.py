"""Writes a task of a kernel program as a core that debuggers open. Mirrors ``fs/binfmt_elf.c``, ``elfcore.h``."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Union

from drgn import FaultError, Object
from karst_engine import ErrorCode, KarstError

from karst_drgn import registers, tasks
from karst_drgn.memory import Absent, TaskMemory
from karst_drgn.tables import PAGE, Run, is_resident
from karst_drgn.tasks import Vma

_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV, _NT_FILE = 1, 3, 6, 0x46494C45
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 62, 1, 4, 0xFFFF
_PF_READ, _PF_WRITE, _PF_EXECUTE = 4, 2, 1
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PIECE = 1 << 20


class Written(NamedTuple):
    """What :func:`write_core` did."""

    size: int
    """Of the file, in bytes; what was never touched is a hole in it."""
    saved: int
    """Bytes of memory that were written."""
    threads: int
    without_registers: int
    """Threads whose registers the dump does not have; they are all 0 in the core but for the thread pointer."""
    absent: Absent
    """What the dump did not have: it is not in the core either."""


class _Segment(NamedTuple):
    """Part of a mapping that is in the core whole, or not at all."""

    mapping: int  # its number
    start: int
    end: int
    saved: bool


# ---- which memory -------------------------------------------------------------------------------------


def _spans(memory: TaskMemory, vma: Vma, runs: Sequence[Run]) -> Iterator[tuple[int, int, bool]]:
    """The mapping's parts in order, and whether each can be told: what was never touched can where it reads as
    zeros."""
    fills, place = memory.fills(vma), vma.start
    for run in runs:
        if run.start > place:
            yield place, run.start, fills
        place = run.end
        if is_resident(run):
            yield from memory.parts(run)
        else:
            yield run.start, run.end, fills and run.device
    if place < vma.end:
        yield place, vma.end, fills


def _segments(memory: TaskMemory, vmas: Sequence[Vma]) -> list[_Segment]:
    found: list[_Segment] = []
    for index, vma in enumerate(vmas):
        runs = memory.page_map(index).runs
        if not runs or vma.flags & (tasks.VM_IO | tasks.VM_PFNMAP):  # as the kernel's own cores have them
            found.append(_Segment(index, vma.start, vma.end, False))
            continue
        for start, end, saved in _spans(memory, vma, runs):
            if found and found[-1].mapping == index and found[-1].saved == saved:
                found[-1] = found[-1]._replace(end=end)
            else:
                found.append(_Segment(index, start, end, saved))
    return found


# ---- notes --------------------------------------------------------------------------------------------


def _note(kind: int, data: bytes) -> bytes:
    return struct.pack("<III", 5, len(data), kind) + b"CORE\0\0\0\0" + data + bytes(-len(data) % 4)


def _ids(task: Object) -> tuple[int, int, int]:
    """Parent, process group and session: 0 where the dump does not say."""
    try:
        return int(task.real_parent.tgid), 0, 0
    except FaultError:
        return 0, 0, 0


def _status_note(task: Object) -> tuple[bytes, bool]:
    """struct elf_prstatus, and whether the registers are known."""
    found = registers.user_registers(task)
    words = list(found.values) if found else [0] * registers.COUNT
    words[registers.FS_BASE] = int(task.thread.fsbase)
    head = struct.pack("<iiihxxQQiiii", 0, 0, 0, 0, 0, 0, int(task.pid), *_ids(task))
    return _note(_NT_PRSTATUS, head + bytes(64) + struct.pack(f"<{registers.COUNT}Q", *words) + bytes(8)), bool(found)


def _arguments(memory: TaskMemory, mm: Object) -> bytes:
    start, end = int(mm.arg_start), int(mm.arg_end)
    return memory.read(start, min(end - start, 79)).rstrip(b"\0").replace(b"\0", b" ") if end > start else b""


def _process_note(task: Object, memory: TaskMemory) -> bytes:
    """struct elf_prpsinfo."""
    user, group = int(task.cred.uid.val), int(task.cred.gid.val)
    name = task.comm.string_()[:15]
    return _note(_NT_PRPSINFO, struct.pack("<bcbbxxxxQIIiiii16s80s", 0, b"S", 0, 0, 0, user, group, int(task.tgid),
                                           *_ids(task), name, _arguments(memory, task.mm)))


def _auxiliary_note(mm: Object) -> bytes:
    words = mm.saved_auxv.value_()
    end = next((place + 2 for place in range(0, len(words) - 1, 2) if not words[place]), len(words))
    return _note(_NT_AUXV, struct.pack(f"<{end}Q", *words[:end]))


def _file_note(vmas: Sequence[Vma]) -> bytes:
    files = [vma for vma in vmas if vma.has_file]
    table = b"".join(struct.pack("<QQQ", vma.start, vma.end, vma.offset // PAGE) for vma in files)
    names = b"".join(os.fsencode(vma.name or "") + b"\0" for vma in files)
    return _note(_NT_FILE, struct.pack("<QQ", len(files), PAGE) + table + names)


def _notes(task: Object, memory: TaskMemory, vmas: Sequence[Vma]) -> tuple[bytes, int, int]:
    """All notes, the number of threads, and of those without registers."""
    threads = [thread for thread in tasks.threads_of(task) if thread.mm]
    status = [_status_note(thread) for thread in threads]
    # As in the kernel's cores: the first thread's status, what is the process's, then the other threads.
    text = (status[0][0] + _process_note(task, memory) + _auxiliary_note(task.mm) + _file_note(vmas)
            + b"".join(note for note, _ in status[1:]))
    return text, len(threads), sum(1 for _, known in status if not known)


# ---- the file -----------------------------------------------------------------------------------------


def _page_up(size: int) -> int:
    return (size + PAGE - 1) & -PAGE


def _flags(vma: Vma) -> int:
    return ((_PF_READ if vma.flags & tasks.VM_READ else 0) | (_PF_WRITE if vma.flags & tasks.VM_WRITE else 0)
            | (_PF_EXECUTE if vma.flags & tasks.VM_EXEC else 0))


def _headers(notes: bytes, segments: Sequence[_Segment], vmas: Sequence[Vma]) -> tuple[bytes, list[int]]:
    """What stands in front of the memory, and where each segment's memory begins."""
    count = len(segments) + 1
    many = count >= _PN_XNUM  # the count then stands in a section header
    sections = _HEADER.size + count * _SEGMENT.size
    begin = sections + (_SECTION.size if many else 0)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    text = [_HEADER.pack(ident, _ET_CORE, _EM_X86_64, 1, 0, _HEADER.size, sections if many else 0, 0, _HEADER.size,
                         _SEGMENT.size, _PN_XNUM if many else count, _SECTION.size, 1 if many else 0, 0),
            _SEGMENT.pack(_PT_NOTE, 0, begin, 0, 0, len(notes), 0, 4)]
    place, places = _page_up(begin + len(notes)), []
    for segment in segments:
        size = segment.end - segment.start
        places.append(place)
        text.append(_SEGMENT.pack(_PT_LOAD, _flags(vmas[segment.mapping]), place, segment.start, 0,
                                  size if segment.saved else 0, size, PAGE))
        place += size if segment.saved else 0
    if many:
        text.append(_SECTION.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    return b"".join(text) + notes, [*places, place]


def _write_memory(file: int, memory: TaskMemory, segment: _Segment, place: int, poll: Callable[[int], None]) -> int:
    """Writes a segment's pages to where they belong; returns how many bytes."""
    written = 0
    if memory.is_vdso(segment.start):
        return os.pwrite(file, memory.read(segment.start, segment.end - segment.start), place)
    for run in memory.page_map(segment.mapping).between(segment.start, segment.end):
        if not is_resident(run):
            continue
        for start in range(run.start, run.end, _PIECE):
            size = min(_PIECE, run.end - start)
            data = memory.read_run(run, start - run.start, size)
            if len(data) < size:
                raise KarstError(ErrorCode.FORMAT, f"memory at {start + len(data):#x} can't be read from the dump")
            os.pwrite(file, data, place + start - segment.start)
            written += size
            poll(size)
    return written


def write_core(task: Object, path: Union[str, os.PathLike[str]], poll: Callable[[int], None] = lambda size: None) -> Written:
    """
    Writes a process as an ELF core: its threads with registers and thread pointers, its files, the auxiliary vector, and
    all memory that is there. What was swapped out, or left out of the dump, is in no part of the file that could be
    taken for zeros.

    :param task: ``struct task_struct *``
    :param path: The file to write; one that exists is replaced.
    :param poll: Called with the number of bytes written since the last call.
    """
    vmas = tasks.task_vmas(task.mm)
    memory = TaskMemory(task.mm, vmas)
    notes, threads, without = _notes(task, memory, vmas)
    segments = _segments(memory, vmas)
    head, places = _headers(notes, segments, vmas)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, places[-1])
            os.pwrite(file, head, 0)
            saved = sum(_write_memory(file, memory, segment, place, poll)
                        for segment, place in zip(segments, places) if segment.saved)
        finally:
            os.close(file)
    except OSError as error:
        raise KarstError(ErrorCode.SYSTEM, f"can't write {os.fspath(path)}: {error.strerror}") from None
    return Written(places[-1], saved, threads, without, memory.absent())
