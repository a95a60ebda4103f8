"""Which physical memory a vmcore holds. drgn reads pages that a filtered dump left out as zeros; a heap read so would
be empty instead of missing."""

from __future__ import annotations

import struct
from bisect import bisect_right

from drgn import FaultError, Program
from karst_engine import ErrorCode, KarstError

from karst_drgn import programs

_NO_ADDRESS = 2**64 - 1
_CACHE_KEY = "karst physical"
_USER_DATA_LEFT_OUT = 8  # makedumpfile's dump levels: 1 zero, 2 cache, 4 private cache, 8 user data, 16 free pages


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
