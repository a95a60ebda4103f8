"""Which physical memory a vmcore holds. drgn reads pages that a filtered dump left out as zeros; a heap read so would
be empty instead of missing."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right

from drgn import FaultError, Program
from karst_engine import ErrorCode, KarstError

from karst_drgn import programs

_NO_ADDRESS = 2**64 - 1
_CACHE_KEY = "karst physical"
# makedumpfile's dump levels: 1 zero, 2 cache, 4 private cache, 8 user data, 16 free pages
_USER_DATA_LEFT_OUT = 8
_PAGES_LEFT_OUT = 2 | 4 | 16
_BLOCK_SIZE_AT = 428  # in a kdump file's header


def _segments(path: str) -> tuple[list[tuple[int, int]], bool]:
    """Start and end of the physical memory that is in an ELF vmcore's file, in order of address, and whether some that
    the machine had is not."""
    found, left_out = [], False
    for _, place, in_file, in_memory in programs.load_segments(path):
        if place != _NO_ADDRESS:
            left_out |= in_file < in_memory
            if in_file:
                found.append((place, place + in_file))
    return _merged(found), left_out


def _merged(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _kdump_ranges(path: str) -> tuple[list[tuple[int, int]], bool]:
    """The same of a kdump-compressed file (diskdump_mod.h of makedumpfile): a header, a second one, a bitmap of the pages
    that the machine had, one of those that are in the file. Pages of zeros count as there."""
    with open(path, "rb") as file:
        # After the signature, a version and a struct new_utsname: a struct timeval, a status, the size of a block.
        header = file.read(_BLOCK_SIZE_AT + 16)
        if len(header) < _BLOCK_SIZE_AT + 16:
            raise KarstError(ErrorCode.FORMAT, "the dump's header is cut off")
        block_size, second_blocks, bitmap_blocks, old_pages = struct.unpack_from("<iiiI", header, _BLOCK_SIZE_AT)
        if not 512 <= block_size <= 1 << 20 or not 0 < second_blocks <= 1 << 16 or not 0 < bitmap_blocks <= 1 << 24:
            raise KarstError(ErrorCode.FORMAT, "the dump's header makes no sense")
        file.seek(block_size)
        second = file.read(104)
        if len(second) < 104:
            raise KarstError(ErrorCode.FORMAT, "the dump's second header is cut off")
        level, split = struct.unpack_from("<ii", second, 8)
        if level & _USER_DATA_LEFT_OUT:
            raise KarstError(ErrorCode.UNSUPPORTED, f"this dump was written without the memory of processes (dump level"
                                                    f" {level}): take one with makedumpfile -d 23 or less")
        if not level & _PAGES_LEFT_OUT or split:
            return [], False
        version, = struct.unpack_from("<i", header, 8)
        pages = struct.unpack_from("<Q", second, 96)[0] if version >= 6 else old_pages
        size = bitmap_blocks * block_size // 2
        file.seek((1 + second_blocks) * block_size + size)
        bitmap = file.read(min(size, (pages + 7) // 8))
    return _ranges_of(bitmap, block_size), True


def _ranges_of(bitmap: bytes, page: int) -> list[tuple[int, int]]:
    """The ranges that the bits of a bitmap, the lowest of a byte first, stand for, one a page."""
    found = []
    for same in re.finditer(rb"\xff+|[^\x00\xff]", bitmap):
        first, last = same.start() * 8, same.end() * 8
        if same[0][0] == 0xFF:
            found.append((first * page, last * page))
        else:
            found += [(bit * page, (bit + 1) * page) for bit in range(first, last) if same[0][0] >> bit - first & 1]
    return _merged(found)


class Physical:
    """Reads physical memory, and nothing that the dump left out."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._ranges: list[tuple[int, int]] = []
        self.checks = self._holes = False
        path = None if programs.is_live(prog) else programs.core_path(prog)
        if path is not None:
            with open(path, "rb") as file:
                magic = file.read(8)
            if magic.startswith(b"\x7fELF"):
                self._ranges, self._holes = _segments(path)
                self.checks = True
            elif magic == b"KDUMP   ":
                self._ranges, self.checks = _kdump_ranges(path)
                self._holes = self.checks
        self._starts = [start for start, _ in self._ranges]

    def available(self, address: int, size: int) -> int:
        """How many of size bytes from address on are in the dump."""
        if not self.checks:
            return size
        index = bisect_right(self._starts, address) - 1
        return max(0, min(size, self._ranges[index][1] - address)) if index >= 0 else 0

    def gap(self, address: int, size: int) -> int:
        """Of size bytes from an address on that is not in the dump: after how many it goes on."""
        index = bisect_right(self._starts, address)
        return min(size, self._starts[index] - address) if index < len(self._starts) else size

    def missing(self, address: int, size: int) -> int:
        """How many bytes of [address, address + size) are not in the dump."""
        missing = done = 0
        while self._holes and done < size:
            there = self.available(address + done, size - done)
            gone = 0 if there else self.gap(address + done, size - done)
            missing += gone
            done += there or gone
        return missing

    def read(self, address: int, size: int) -> bytes:
        """Up to size bytes: what the dump does not have ends it."""
        size = self.available(address, size)
        if not size:
            return b""
        try:
            return self._prog.read(address, size, True)
        except FaultError:
            return b""


def physical(prog: Program) -> Physical:
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = Physical(prog)
    return prog.cache[_CACHE_KEY]
