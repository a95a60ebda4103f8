"""Cores that lack something: edited copies of a whole one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD: where its header is in the file, the memory it is of, and where its bytes are."""

    header: int
    start: int
    end: int
    offset: int
    saved: int


def segments(core: Path) -> Iterator[Segment]:
    with core.open("rb") as file:
        header = _EHDR.unpack(file.read(_EHDR.size))
        first, size, count = header[5], header[9], header[10]
        for index in range(count):
            file.seek(first + index * size)
            kind, _, offset, start, _, saved, memory, _ = _PHDR.unpack(file.read(_PHDR.size))
            if kind == _PT_LOAD:
                yield Segment(first + index * size, start, start + memory, offset, saved)


def leave_out(core: Path, ranges: list[tuple[int, int]]) -> int:
    """Edit core so that it has nothing of the segments that touch the ranges, as if coredump_filter had left them
    out. How many bytes it lost."""
    lost = 0
    found = [one for one in segments(core) if any(one.start < end and start < one.end for start, end in ranges)]
    with core.open("r+b") as file:
        for segment in found:
            file.seek(segment.header + 32)  # p_filesz
            file.write(struct.pack("<Q", 0))
            lost += segment.saved
    return lost


def resize(core: Path, segment: Segment, size: int) -> None:
    """Edit core so that a segment's memory, and what is saved of it, end so many bytes behind its start."""
    with core.open("r+b") as file:
        file.seek(segment.header + 32)  # p_filesz, p_memsz
        file.write(struct.pack("<QQ", min(size, segment.saved), size))


def truncate_before(core: Path, address: int) -> None:
    """Cut the file off where the segment that holds address begins."""
    offset = next(one.offset for one in segments(core) if one.start <= address < one.end)
    with core.open("r+b") as file:
        file.truncate(offset)


def variables_of(pid: int, library: str) -> list[tuple[int, int]]:
    """The writable mappings of a library in a process, the anonymous memory right behind (its .bss) included."""
    ranges: list[tuple[int, int]] = []
    names = (library, "libc-2.") if library == "libc.so" else (library,)
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split()
        start, end = (int(word, 16) for word in words[0].split("-"))
        name = words[5] if len(words) > 5 else ""
        behind = not name and bool(ranges) and ranges[-1][1] == start
        if "w" in words[1] and (name.rsplit("/", 1)[-1].startswith(names) or behind):
            ranges.append((start, end))
    assert ranges, f"process {pid} has no {library}"
    return ranges
