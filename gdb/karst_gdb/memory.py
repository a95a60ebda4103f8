"""Memory and mappings of an inferior that only GDB can read: gdbserver, rr, qemu, any remote stub."""

from __future__ import annotations

import os
import re
import tempfile
from bisect import bisect_right
from collections import OrderedDict

import gdb
from karst_engine import Mapping

from karst_gdb.expressions import one_line

_PAGE = 4096
_BLOCK = 64 * 1024
_BLOCKS_KEPT = 256
_MAPS_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ ([0-9]+) *(.*)")
_INFO_LINE = re.compile(r"\s*0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)"
                        r"(?:\s+([-rwxsp]{4,5})(?=\s|$))?\s*(.*)")
_PERMISSIONS = {"r": 1, "w": 2, "x": 4, "s": 8}


def _permissions(text: str) -> int:
    return sum(bit for letter, bit in _PERMISSIONS.items() if letter in text)


def parse_maps(text: str) -> list[Mapping]:
    """/proc/PID/maps as it is."""
    found = []
    for line in text.splitlines():
        match = _MAPS_LINE.fullmatch(line)
        if match:
            start, end, permissions, offset, inode, name = match.groups()
            found.append(Mapping(int(start, 16), int(end, 16), _permissions(permissions), name or None,
                                 int(offset, 16), int(inode)))
    return found


def _parse_info(text: str) -> list[Mapping]:
    """`info proc mappings`. GDB 10 and 11 leave the permissions out: the memory of files then counts as
    read-only, all else as writable."""
    found = []
    for line in text.splitlines():
        match = _INFO_LINE.fullmatch(line)
        if match:
            start, end, offset, permissions, name = match.groups()
            if permissions is None:
                permissions = "r-xp" if name.startswith("/") else "rw-p"
            found.append(Mapping(int(start, 16), int(end, 16), _permissions(permissions), name.strip() or None,
                                 int(offset, 16)))
    return found


def remote_file(path: str) -> bytes:
    """A file of the remote machine, empty where it can't be had."""
    with tempfile.TemporaryDirectory(prefix="karst-") as folder:
        local = os.path.join(folder, "file")
        try:
            gdb.execute(f"remote get {path} {local}", to_string=True)
            with open(local, "rb") as file:
                return file.read()
        except (gdb.error, OSError):
            return b""


def mappings() -> list[Mapping]:
    """The selected inferior's mappings in address order; fails with one line where GDB can't list them."""
    found = parse_maps(os.fsdecode(remote_file(f"/proc/{gdb.selected_inferior().pid}/maps")))
    if not found:
        try:
            found = _parse_info(gdb.execute("info proc mappings", to_string=True))
        except gdb.error as error:
            raise gdb.GdbError(f"GDB can't list the mappings of this target: {one_line(error)}") from None
    if not found:
        raise gdb.GdbError("GDB lists no mappings of this target; its stub has to serve /proc/PID/maps (vFile)")
    return sorted(found, key=lambda mapping: mapping.start)


def _ranges(mappings: list[Mapping]) -> list[tuple[int, int]]:
    """Start and end of what is mapped in one piece, in address order."""
    ranges: list[tuple[int, int]] = []
    for mapping in mappings:
        if ranges and mapping.start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(mapping.end, ranges[-1][1]))
        else:
            ranges.append((mapping.start, mapping.end))
    return ranges


class Memory:
    """An inferior's memory by GDB, in large pieces. Small reads are served from blocks that are kept: the
    session that this belongs to is dropped before the inferior runs or its memory changes.

    Nothing is read outside the mappings: a read below a stack makes the kernel let that stack grow."""

    def __init__(self, inferior: gdb.Inferior, mappings: list[Mapping]) -> None:
        self._inferior = inferior
        self._ranges = _ranges(mappings)
        self._starts = [start for start, _ in self._ranges]
        self._blocks: OrderedDict[int, memoryview] = OrderedDict()

    def read(self, address: int, size: int) -> memoryview:
        """Up to size bytes at address: as many as are there from the start on."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ranges[index][1]:
            return memoryview(b"")
        start, end = self._ranges[index]
        size = min(size, end - address)
        start = max(start, address - address % _BLOCK)
        end = min(end, address - address % _BLOCK + _BLOCK)
        if address + size > end:
            return self._read_there(address, size)
        block = self._blocks.get(start)
        if block is None:
            block = self._read_there(start, end - start)
            self._blocks[start] = block
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        if len(block) < address - start + size:  # a page in the block is not there, in front of this or behind
            return self._read_there(address, size)
        return block[address - start:address - start + size]

    def _read_whole(self, address: int, size: int) -> memoryview | None:
        try:
            return memoryview(self._inferior.read_memory(address, size)).cast("B")
        except (gdb.MemoryError, OverflowError):
            return None

    def _read_there(self, address: int, size: int) -> memoryview:
        whole = self._read_whole(address, size)
        if whole is not None:
            return whole
        # The bytes up to the first page that is not there, by halving.
        first_page = address - address % _PAGE
        good, bad = 0, (address + size - first_page + _PAGE - 1) // _PAGE
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._read_whole(address, first_page + middle * _PAGE - address) is None:
                bad = middle
            else:
                good = middle
        if good == 0:
            return memoryview(b"")
        return self._read_whole(address, first_page + good * _PAGE - address) or memoryview(b"")
