#!/usr/bin/python3
"""Cuts a core down to what a heap walker needs, as seeds for the fuzzers.

    cut_seeds.py DIRECTORY CORE...

DIRECTORY/core/NAME is a smaller core: headers, notes, libc's and the heaps' memory. DIRECTORY/glibc/NAME is
the same memory in the form that fuzz_glibc.c describes.
"""
from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import NamedTuple

PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS, NT_FILE = 1, 0x46494C45
FS_BASE = 112 + 21 * 8  # in struct elf_prstatus of x86-64: registers are at 112
STACK_POINTER = 112 + 19 * 8
PAGE = 4096
SEGMENT = struct.Struct("<IIQQQQQQ")


class Segment(NamedTuple):
    address: int
    size: int
    permissions: int  # as in an ELF program header: 1 execute, 2 write, 4 read
    data: bytes


class Core(NamedTuple):
    header: bytes
    notes: bytes
    segments: list[Segment]
    threads: list[tuple[int, int]]  # thread pointer, stack pointer
    files: list[tuple[int, int, str]]  # start, end, path


def split_notes(notes: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        at += 12 + (name_size + 3) // 4 * 4
        found.append((kind, notes[at:at + size]))
        at += (size + 3) // 4 * 4
    return found


def mapped_files(note: bytes) -> list[tuple[int, int, str]]:
    count, _page = struct.unpack_from("<QQ", note)
    ranges = [struct.unpack_from("<QQ", note, 16 + 24 * i) for i in range(count)]
    names = note[16 + 24 * count:].split(b"\0")
    return [(start, end, name.decode()) for (start, end), name in zip(ranges, names)]


def read_core(path: Path) -> Core:
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 32)
    (count,) = struct.unpack_from("<H", data, 56)
    notes, segments = b"", []
    for i in range(count):
        kind, flags, offset, address, _, stored, size, _ = SEGMENT.unpack_from(data, table + i * SEGMENT.size)
        if kind == PT_NOTE:
            notes = data[offset:offset + stored]
        elif kind == PT_LOAD:
            segments.append(Segment(address, size, flags, data[offset:offset + stored]))
    threads, files = [], []
    for kind, note in split_notes(notes):
        if kind == NT_PRSTATUS:
            threads.append((struct.unpack_from("<Q", note, FS_BASE)[0],
                            struct.unpack_from("<Q", note, STACK_POINTER)[0]))
        elif kind == NT_FILE:
            files = mapped_files(note)
    return Core(data[:64], notes, segments, threads, files)


def wanted(core: Core, segment: Segment) -> bool:
    """libc, heaps, and the pages that thread pointers point into; not stacks, loaders, executables."""
    end = segment.address + segment.size
    if any(segment.address <= pointer < end for pointer, _ in core.threads):
        return True
    for start, stop, name in core.files:
        if start < end and segment.address < stop:
            return "libc.so" in name
    stack = any(segment.address <= pointer < end for _, pointer in core.threads)
    return segment.permissions & 2 != 0 and not stack and segment.address < 0x7FFFF7FC0000


def cut(segment: Segment) -> Segment:
    """Zeros at the end need not be stored: they are read as missing, which is a case of its own."""
    data = segment.data.rstrip(b"\0")
    return segment._replace(data=segment.data[:(len(data) + PAGE - 1) // PAGE * PAGE])


def small_core(core: Core, segments: list[Segment]) -> bytes:
    count = len(segments) + 1
    at = 64 + count * SEGMENT.size
    header = bytearray(core.header)
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<H", header, 56, count)
    table = [SEGMENT.pack(PT_NOTE, 0, at, 0, 0, len(core.notes), 0, 4)]
    body = core.notes + bytes(-len(core.notes) % 8)
    for segment in segments:
        table.append(SEGMENT.pack(PT_LOAD, segment.permissions, at + len(body), segment.address, 0,
                                  len(segment.data), segment.size, 8))
        body += segment.data
    return bytes(header) + b"".join(table) + body


def memory_image(core: Core, segments: list[Segment]) -> bytes:
    image = struct.pack("<BB6x", len(segments), len(core.threads))
    for pointer, stack in core.threads:
        image += struct.pack("<QQ", pointer, stack)
    for segment in segments:
        libc = any(start <= segment.address < end for start, end, name in core.files if "libc.so" in name)
        kind = 1 if libc else 2 if segment.address < 0x600000000000 else 0
        image += struct.pack("<QQIBB2x", segment.address, segment.size, len(segment.data), kind, segment.permissions)
    return image + b"".join(segment.data for segment in segments)


def main() -> int:
    directory = Path(sys.argv[1])
    for name in sys.argv[2:]:
        core = read_core(Path(name))
        segments = [cut(segment) for segment in core.segments if wanted(core, segment)]
        for kind, made in (("core", small_core(core, segments)), ("glibc", memory_image(core, segments))):
            (directory / kind).mkdir(parents=True, exist_ok=True)
            (directory / kind / Path(name).stem).write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
