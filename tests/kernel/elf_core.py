"""Just enough of ELF cores to look into one, and to take something out of it."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

_PT_LOAD, _PT_NOTE = 1, 4
_SEGMENT = struct.Struct("<IIQQQQQQ")


class Core:
    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            header = file.read(64)
            assert header[:4] == b"\x7fELF", path
            offset, = struct.unpack_from("<Q", header, 32)
            count, = struct.unpack_from("<H", header, 56)
            file.seek(offset)
            data = file.read(count * _SEGMENT.size)
        self.segments = [_SEGMENT.unpack_from(data, index * _SEGMENT.size) for index in range(count)]

    def word(self, address: int) -> Optional[int]:
        """The 8 bytes at a virtual address; None: not in the file."""
        for kind, _, offset, start, _, in_file, in_memory, _ in self.segments:
            if kind == _PT_LOAD and start <= address < start + in_memory:
                if address + 8 > start + in_file:
                    return None
                with open(self.path, "rb") as file:
                    file.seek(offset + address - start)
                    return struct.unpack("<Q", file.read(8))[0]
        return None

    def copy_without(self, physical: int, size: int, path: Path) -> None:
        """A copy that lacks a range of physical memory, as a filter leaves it out: in memory, but not in the file."""
        segments = []
        for one in self.segments:
            kind, flags, offset, virtual, start, in_file, in_memory, align = one
            inside = physical - start
            if kind != _PT_LOAD or not 0 <= inside < in_file:
                segments.append(one)
                continue
            segments += [(kind, flags, offset, virtual, start, inside, inside, align),
                         (kind, flags, 0, virtual + inside, physical, 0, size, align),
                         (kind, flags, offset + inside + size, virtual + inside + size, physical + size,
                          in_file - inside - size, in_memory - inside - size, align)]
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", self.path, path], check=True)
        path.chmod(0o600)
        with open(path, "r+b") as file:
            end = file.seek(0, 2)
            file.write(b"".join(_SEGMENT.pack(*one) for one in segments))
            file.seek(32)
            file.write(struct.pack("<Q", end))
            file.seek(56)
            file.write(struct.pack("<H", len(segments)))

    def copy_with_headers_in_front(self, path: Path) -> None:
        """A copy whose program headers stand right behind the file's, where makedumpfile (elf_info.c) takes them to be;
        QEMU has two section headers before them."""
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", self.path, path], check=True)
        path.chmod(0o600)
        with open(path, "r+b") as file:
            header = bytearray(file.read(64))
            place, = struct.unpack_from("<Q", header, 32)
            assert 64 <= place <= 64 + 2 * 64, place
            struct.pack_into("<QQ", header, 32, 64, 0)
            struct.pack_into("<HHH", header, 58, 0, 0, 0)  # no sections
            file.seek(0)
            file.write(bytes(header) + b"".join(_SEGMENT.pack(*one) for one in self.segments))

    def copy_without_notes(self, names: Sequence[bytes], path: Path) -> None:
        """A copy in which all notes of these names have others."""
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", self.path, path], check=True)
        path.chmod(0o600)
        with open(path, "r+b") as file:
            for kind, _, offset, _, _, in_file, _, _ in self.segments:
                if kind == _PT_NOTE:
                    file.seek(offset)
                    notes = file.read(in_file)
                    for name in names:
                        assert name + b"\0" in notes, f"no note {name!r}"
                        notes = notes.replace(name + b"\0", b"X" * len(name) + b"\0")
                    file.seek(offset)
                    file.write(notes)
