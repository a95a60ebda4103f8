"""Detours and the reading of machine code: held against objdump, and run."""

from __future__ import annotations

import ctypes
import mmap
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from karst_command import ROOT

sys.path.insert(0, str(ROOT / "helper" / "python"))
import karst_detour as detours  # noqa: E402
import karst_x86 as x86  # noqa: E402
from karst_detour import RDI, RDX, RSI, Arguments, Condition, Refused  # noqa: E402

LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")
_LINE = re.compile(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)")
_JUMP = re.compile(r"(?:bnd |notrack )*(?:call|j\w+|loop\w*)(?:,p[nt])?\s+([0-9a-f]+)")


def test_lengths_and_targets_are_objdumps() -> None:
    """Of every instruction of libc's text."""
    text = subprocess.run(["objdump", "-dw", "-j", ".text", LIBC], capture_output=True, text=True, check=True).stdout
    seen = 0
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match or "(bad)" in line or not match[3].strip():
            continue
        address, code = int(match[1], 16), bytes.fromhex(match[2])
        instruction = x86.decode(code, 0, address)
        assert instruction.code == code, line
        jump = _JUMP.match(match[3])
        assert instruction.target == (int(jump[1], 16) if jump else None), line
        assert (instruction.relative_at is not None) == ("(%rip)" in match[3]), line
        seen += 1
    assert seen > 100_000


# ---- code that is run --------------------------------------------------------------------------------

_ENTRY, _START, _COUNTERS, _DATA = 0, 1024, 3072, 3584
_LARGE = 1 << 40


class Page:
    """Executable memory with a function at its start."""

    def __init__(self, function: bytes) -> None:
        self._map = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.write(_ENTRY, function)
        self.write(_DATA, struct.pack("<Q", 0x1234))

    def write(self, at: int, data: bytes) -> None:
        ctypes.memmove(self.address + at, data, len(data))

    def read(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self.address + at, size)

    def call(self, *arguments: int) -> int:
        kind = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 3)
        return kind(self.address)(*arguments)


# First instructions of every kind that is moved; what each returns for (a, b, c).
FUNCTIONS: dict[str, tuple[str, Callable[[int, int, int], int]]] = {
    "pushes": ("53 55 4889fb 488d0433 4801d0 5d 5b c3", lambda a, b, c: a + b + c),
    "rip-relative": ("488b05f90d0000 4801f8 c3", lambda a, b, c: 0x1234 + a),
    "endbr64": ("f30f1efa 4889f8 4801f0 c3", lambda a, b, c: a + b),
    "short jump": ("4885ff 7405 488d0437 c3 4889d0 c3", lambda a, b, c: a + b if a else c),
    "long jump": ("4885ff 0f8405000000 488d0437 c3 4889d0 c3", lambda a, b, c: a + b if a else c),
    "stack": ("4883ec18 48893c24 488b0424 4883c418 c3", lambda a, b, c: a),
    "jump on": ("e900000000 4889f0 c3", lambda a, b, c: b),
}
NAMES = {
    "size": Arguments(("f",), (RSI,), RDI),
    "product": Arguments(("f",), (RDI, RSI), RDX),
    "other product": Arguments(("f",), (RSI, RDX), RDI),
}


def install(page: Page, arguments: Arguments, conditions: list[Condition], size: int) -> detours.Detour:
    detour = detours.build(page.read(0, 1024), page.address, size, arguments, conditions, page.address + _START)
    assert len(detour.code) <= _COUNTERS - _START
    assert detour.jump[:1] == b"\xe9" and len(detour.jump) == len(detour.original)
    page.write(_START, detour.code)
    page.write(detour.patch - page.address, detour.jump)
    return detour


def meets(condition: Condition, arguments: Arguments, values: dict[int, int]) -> bool:
    size = 1
    for register in arguments.size:
        size *= values[register]
    if condition.size is not None and not (condition.size[0] <= size <= condition.size[1] and size < 1 << 63):
        return False
    if condition.sizes and size not in condition.sizes:
        return False
    assert arguments.pointer is not None
    return condition.freed is None or condition.freed[0] <= values[arguments.pointer] <= condition.freed[1]


def conditions_of(generator: random.Random, page: Page, interesting: list[int]) -> Iterator[Condition]:
    for index in range(5):
        counter = page.address + _COUNTERS + 8 * index
        low, high = sorted(generator.choices(interesting, k=2))
        kind = generator.randrange(5)
        yield Condition(index,
                        size=(low, high) if kind == 0 else (low, low) if kind == 1 else (low, 2**64 - 1)
                        if kind == 2 else None,
                        sizes=tuple(generator.choices(interesting, k=3)) if kind == 3 else (),
                        freed=(low, high) if kind == 4 or generator.random() < 0.3 else None,
                        caller=(0, 2**64 - 1) if generator.random() < 0.2 else None, counter=counter)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_counts_matches_and_changes_nothing(name: str, kind: str) -> None:
    """Any conditions, held against the same in Python; the function gives what it gave."""
    code, answer = FUNCTIONS[name]
    generator = random.Random(f"{name} {kind}")
    interesting = [0, 1, 2, 64, 100, 127, 128, 4095, 4096, 4097, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
    for _ in range(25):
        page = Page(bytes.fromhex(code))
        original = page.read(0, 64)
        conditions = list(conditions_of(generator, page, interesting))
        for index in range(5):
            page.write(_COUNTERS + 8 * index, struct.pack("<Q", _LARGE))
        detour = install(page, NAMES[kind], conditions, len(bytes.fromhex(code)))
        expected = [0] * 5
        for _ in range(60):
            a, b, c = generator.choices(interesting, k=3)
            expected = [count + meets(condition, NAMES[kind], {RDI: a, RSI: b, RDX: c})
                        for count, condition in zip(expected, conditions)]
            assert page.call(a, b, c) == answer(a, b, c) % 2**64
        counted = [_LARGE - value for value in struct.unpack("<5Q", page.read(_COUNTERS, 40))]
        assert counted == expected, conditions
        page.write(detour.patch - page.address, detour.original)
        assert page.read(0, 64) == original


def test_where_threads_are() -> None:
    """Each place of a detour leads back to its instruction, and each instruction into the detour."""
    code = bytes.fromhex(FUNCTIONS["pushes"][0])
    detour = detours.build(code + bytes(64), 0x10000, len(code), NAMES["size"], [Condition(1, size=(5, 5))], 0x20000)
    assert detour.inside(0x10000) is None, "it takes the jump"
    for original, moved in detour.displaced.items():
        assert detour.outside(moved) == original
        assert original == 0x10000 or detour.inside(original) == moved
    assert all(detour.outside(stop) == 0x10000 for stop in detour.stops)
    assert detour.inside(0x10005) is None and detour.outside(0x10001) is None
    frames = [detour.places[index].frame for index in range(1, 4)]
    assert frames == [8, 16, 24]
    assert detour.places[3].saved == {3: 16, 5: 24}
    found, = detours.leftovers(bytes(48) + detour.code + bytes(16), 0x20000 - 48)
    assert (found.patch, found.original, found.start, found.jump) == \
        (detour.patch, detour.original, detour.start, detour.jump)
    assert all(found.outside(place.start) == place.original for place in detour.places)
    damaged = bytearray(detour.code)
    damaged[30] ^= 1
    assert detours.leftovers(bytes(damaged), 0x20000) == []


@pytest.mark.parametrize("code, says", [
    ("e800000000 c3", "is a call"),
    ("4889f8 c3 9090909090", "is not in karst's table"),
    ("eb00 9090909090", "its code ends 2 bytes behind its entry"),
    ("5c 9090909090", "is not in karst's table"),
    ("4889fc 9090909090", "changes the stack pointer"),
    ("4883e4f0 9090909090", "changes the stack pointer"),
    ("0f05 9090909090", "is not in karst's table"),
    ("c5f877 9090909090", "is not in karst's table"),
    ("f0480fc10f 90", "is not in karst's table"),
    ("f3a4 9090909090", "is not in karst's table"),
    ("06 9090909090", "are not known"),
    ("53 4889fb 4883c301 4883fb10 75f6 5b c3", "jumps back to its own first instructions"),
    ("53 4889fb 4889f8 06 5b c3" + "90" * 30, "its code can't be read beyond"),
])
def test_refused(code: str, says: str) -> None:
    text = bytes.fromhex(code)
    with pytest.raises(Refused, match=re.escape(says)):
        detours.build(text + bytes(64), 0x10000, len(text), NAMES["size"], [Condition(1)], 0x20000)


def test_too_far() -> None:
    text = bytes.fromhex(FUNCTIONS["pushes"][0])
    with pytest.raises(Refused, match="too far"):
        detours.build(text, 0x10000, len(text), NAMES["size"], [Condition(1)], 1 << 40)
    with pytest.raises(Refused, match="jumps into"):
        detours.check_no_far_way_in(b"\x90\xe8" + struct.pack("<i", -100) + b"\xc3", 0x1000, [(0x1006 - 104, 6)])
    detours.check_no_far_way_in(b"\x90\xe8" + struct.pack("<i", -104) + b"\xc3", 0x1000, [(0x1006 - 104, 6)])
