"""Which physical memory a vmcore holds. drgn reads pages that a filtered dump left out as zeros; a heap read so would
be empty instead of missing."""

from __future__ import annotations

import struct
from bisect import bisect_right

from drgn import FaultError, Program
from karst_engine import ErrorCode, KarstError

from karst_drgn import programs

_PT_LOAD = 1
_PN_XNUM = 0xFFFF
_NO_ADDRESS = 2**64 - 1
_CACHE_KEY = "karst physical"
_USER_DATA_LEFT_OUT = 8  # makedumpfile's dump levels: 1 zero, 2 cache, 4 private cache, 8 user data, 16 free pages


def _segments(path: str) -> tuple[list[tuple[int, int]], bool]:
    """Start and end of the physical memory that is in an ELF vmcore's file, in order of address, and whether some that
    the machine had is not."""
    found, left_out = [], False
    with open(path, "rb") as file:
        header = file.read(64)
        offset, = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        if count == _PN_XNUM:  # the count is in the first section's sh_info
            file.seek(struct.unpack_from("<Q", header, 40)[0] + 44)
            count, = struct.unpack("<I", file.read(4))
        for index in range(count):
            file.seek(offset + index * size)
            kind, _, _, _, place, in_file, in_memory, _ = struct.unpack("<IIQQQQQQ", file.read(56))
            if kind == _PT_LOAD and place != _NO_ADDRESS:
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


def _check_kdump(path: str) -> None:
    """diskdump_mod.h of makedumpfile: the second block begins with phys_base, then the dump level."""
    with open(path, "rb") as file:
        header = file.read(1024)
        block_size = struct.unpack_from("<i", header, 8 + 4 + 6 * 65 + 2 + 16 + 4)[0]
        if not 512 <= block_size <= 1 << 20:
            return
        file.seek(block_size + 8)
        level, = struct.unpack("<i", file.read(4))
    if level & _USER_DATA_LEFT_OUT:
        raise KarstError(ErrorCode.UNSUPPORTED, f"this dump was written without the memory of processes (dump level"
                                                f" {level}): take one with makedumpfile -d 23 or less")


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
                _check_kdump(path)
        self._starts = [start for start, _ in self._ranges]

    def available(self, address: int, size: int) -> int:
        """How many of size bytes from address on are in the dump."""
        if not self.checks:
            return size
        index = bisect_right(self._starts, address) - 1
        return max(0, min(size, self._ranges[index][1] - address)) if index >= 0 else 0

    @property
    def has_holes(self) -> bool:
        """Whether a part of the machine's memory is not in the dump."""
        return self._holes

    def missing(self, address: int, size: int) -> int:
        """How many bytes of [address, address + size) are not in the dump."""
        if not self._holes:
            return 0
        end, missing = address + size, 0
        while address < end:
            there = self.available(address, end - address)
            if not there:
                index = bisect_right(self._starts, address)
                there = min(end, self._starts[index] if index < len(self._starts) else end) - address
                missing += there
            address += there
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
