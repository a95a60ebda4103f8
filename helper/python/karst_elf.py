"""ELF modules as a process has them loaded, read through a function read(address, size) that gives up to size
bytes. Needs no files and no section headers. Layouts: System V ABI, gABI chapter 5; <link.h>; and for
DT_GNU_HASH glibc's elf/dl-lookup.c. All that is read may be anything: counts are bounded, chains end."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Optional

Read = Callable[[int, int], "bytes | memoryview"]

_MODULES_MAX = 10_000
_NAME_MAX = 4096
_RELOCATIONS_MAX = 1 << 26  # bytes of a table
_MASK = (1 << 64) - 1

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_PHDR = 1, 2, 3, 6
_PF_X, _PF_W = 1, 2
_ET_DYN = 3
_DT_STRTAB, _DT_SYMTAB, _DT_HASH, _DT_GNU_HASH, _DT_DEBUG, _DT_VERSYM = 5, 6, 4, 0x6ffffef5, 21, 0x6ffffff0
_DT_PLTRELSZ, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 7, 8, 23
_SYMBOL = struct.Struct("<IBBHQQ")
_HIDDEN_VERSION = 0x8000
_TYPE_OBJECT, _TYPE_FUNCTION = 1, 2
_PAGE = 4096


class NotThere(Exception):
    """Memory that can't be read, or is not what it should be."""


def _whole(read: Read, address: int, size: int) -> bytes:
    data = bytes(read(address & _MASK, size))
    if len(data) < size:
        raise NotThere(f"no memory at {address & _MASK:#x}")
    return data


def _word(read: Read, address: int) -> int:
    return int.from_bytes(_whole(read, address, 8), "little")


def _text(read: Read, address: int) -> str:
    found = b""
    while b"\0" not in found and len(found) < _NAME_MAX:
        piece = bytes(read(address + len(found), min(256, _PAGE - (address + len(found)) % _PAGE)))
        if not piece:
            break
        found += piece
    return found.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Segment:
    start: int
    end: int  # as the file asks for; what is mapped ends at a page boundary
    executable: bool
    writable: bool


@dataclass(frozen=True)
class Definition:
    """A function that a module exports."""

    module: "Module"
    name: str
    address: int
    size: int  # 0: not told


@dataclass(frozen=True)
class Slot:
    """A word that a module's relocation filled with a symbol's address."""

    module: "Module"
    name: str
    address: int


@dataclass
class Module:
    read: Read
    path: str  # "": the program itself
    bias: int
    dynamic_address: int
    _dynamic: Optional[dict[int, int]] = field(default=None, repr=False)

    @property
    def dynamic(self) -> dict[int, int]:
        """Entries by their tag, the first of each."""
        if self._dynamic is None:
            self._dynamic = {}
            for index in range(200):
                tag, value = struct.unpack("<QQ", _whole(self.read, self.dynamic_address + 16 * index, 16))
                if tag == 0:
                    break
                self._dynamic.setdefault(tag, value)
        return self._dynamic

    def _pointer(self, tag: int) -> int:
        """An address in the dynamic section; the loader has made most of them absolute, not all
        (the vDSO's, those of a module without writable dynamic section)."""
        value = self.dynamic.get(tag)
        if value is None:
            raise NotThere(f"{self.path or 'the program'} has no dynamic entry {tag:#x}")
        return value if value >= self.bias else value + self.bias

    # ---- names ---------------------------------------------------------------------------------------

    def definitions(self, name: str, data: bool = False) -> list[Definition]:
        """Functions (data: variables) of that name, those of the default version first."""
        try:
            found = list(self._matching(name, _TYPE_OBJECT if data else _TYPE_FUNCTION))
        except NotThere:
            return []
        return [definition for _, definition in sorted(found, key=lambda pair: pair[0])]

    def _matching(self, name: str, kind: int) -> Iterator[tuple[int, Definition]]:
        symbols, strings = self._pointer(_DT_SYMTAB), self._pointer(_DT_STRTAB)
        for index in self._candidates(name):
            where, info, _, section, value, size = _SYMBOL.unpack(_whole(self.read, symbols + 24 * index, 24))
            if section == 0 or info & 15 != kind or not value:
                continue
            wanted = name.encode() + b"\0"
            if bytes(self.read(strings + where, len(wanted))) != wanted:
                continue
            hidden = 0
            if _DT_VERSYM in self.dynamic:
                version = int.from_bytes(_whole(self.read, self._pointer(_DT_VERSYM) + 2 * index, 2), "little")
                hidden = version & _HIDDEN_VERSION
            yield hidden, Definition(self, name, value + self.bias & _MASK, size)

    def _candidates(self, name: str) -> Iterator[int]:
        if _DT_GNU_HASH in self.dynamic:
            return self._gnu_chain(name)
        return self._old_chain(name)

    def _gnu_chain(self, name: str) -> Iterator[int]:
        table = self._pointer(_DT_GNU_HASH)
        buckets, first, bloom, _ = struct.unpack("<4I", _whole(self.read, table, 16))
        wanted = 5381
        for byte in name.encode():
            wanted = wanted * 33 + byte & 0xffffffff
        if not 0 < buckets < 1 << 24 or bloom > 1 << 20:
            return
        bucket_table = table + 16 + 8 * bloom
        index = int.from_bytes(_whole(self.read, bucket_table + 4 * (wanted % buckets), 4), "little")
        if index < first or index == 0:
            return
        chains = bucket_table + 4 * buckets
        for index in range(index, index + 4096):
            value = int.from_bytes(_whole(self.read, chains + 4 * (index - first), 4), "little")
            if value | 1 == wanted | 1:
                yield index
            if value & 1:
                return

    def _old_chain(self, name: str) -> Iterator[int]:
        table = self._pointer(_DT_HASH)
        buckets, count = struct.unpack("<2I", _whole(self.read, table, 8))
        wanted = 0
        for byte in name.encode():
            wanted = (wanted << 4) + byte
            high = wanted & 0xf0000000
            wanted = (wanted ^ high >> 24) & ~high
        if not 0 < buckets < 1 << 24:
            return
        index = int.from_bytes(_whole(self.read, table + 8 + 4 * (wanted % buckets), 4), "little")
        for _ in range(4096):
            if not 0 < index < count:
                return
            yield index
            index = int.from_bytes(_whole(self.read, table + 8 + 4 * (buckets + index), 4), "little")

    # ---- relocations ---------------------------------------------------------------------------------

    def slots(self, names: frozenset[str], kinds: frozenset[int]) -> Iterator[Slot]:
        """Words that relocations of these kinds filled with one of these symbols."""
        if _DT_SYMTAB not in self.dynamic:
            return
        symbols, strings = self._pointer(_DT_SYMTAB), self._pointer(_DT_STRTAB)
        known: dict[int, str] = {}
        for table, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
            length = self.dynamic.get(size, 0) // 24 * 24
            if table not in self.dynamic or not 0 < length <= _RELOCATIONS_MAX:
                continue
            entries = _whole(self.read, self._pointer(table), length)
            for offset, info, addend in struct.iter_unpack("<QQq", entries):
                index = info >> 32
                if info & 0xffffffff not in kinds or addend or not index:
                    continue
                if index not in known:
                    where, = struct.unpack("<I", _whole(self.read, symbols + 24 * index, 4))
                    known[index] = _text(self.read, strings + where)
                if known[index] in names:
                    yield Slot(self, known[index], offset + self.bias & _MASK)


def segments(read: Read, header: int) -> list[Segment]:
    """Of the module whose ELF header is mapped at `header`."""
    start = _whole(read, header, 64)
    if start[:5] != b"\x7fELF\x02":
        raise NotThere(f"no 64-bit ELF file is mapped at {header:#x}")
    kind, = struct.unpack_from("<H", start, 16)
    offset, = struct.unpack_from("<Q", start, 32)
    size, count = struct.unpack_from("<HH", start, 54)
    if size != 56 or count > 1000:
        raise NotThere(f"the file mapped at {header:#x} has program headers of an unknown shape")
    entries = list(struct.iter_unpack("<IIQQQQQQ", _whole(read, header + offset, 56 * count)))
    bias = 0
    if kind == _ET_DYN:
        firsts = [address - at for kind, _, at, address, _, _, _, _ in entries if kind == _PT_LOAD]
        bias = header - firsts[0] if firsts else 0
    return [Segment(address + bias & _MASK, address + bias + memory & _MASK, bool(flags & _PF_X),
                    bool(flags & _PF_W))
            for kind, flags, _, address, _, _, memory, _ in entries if kind == _PT_LOAD]


def modules(read: Read, program_headers: int, count: int) -> list[Module]:
    """What the dynamic loader has loaded, in the order that names are looked up in. program_headers and count
    are the kernel's AT_PHDR and AT_PHNUM. Empty: a static program."""
    headers = list(struct.iter_unpack("<IIQQQQQQ", _whole(read, program_headers, 56 * min(count, 1000))))
    kinds = {kind: address for kind, _, _, address, _, _, _, _ in reversed(headers)}
    if _PT_DYNAMIC not in kinds:
        return []
    if _PT_PHDR in kinds:
        bias = program_headers - kinds[_PT_PHDR]
    else:  # they follow the ELF header, which is mapped first
        bias = program_headers - 64 - kinds.get(_PT_LOAD, 0)
    first = Module(read, "", bias, kinds[_PT_DYNAMIC] + bias)
    if _PT_INTERP in kinds:
        debug = first.dynamic.get(_DT_DEBUG, 0)
    else:  # a loader that was started by name, `ld.so PROGRAM`, or a static program
        found = first.definitions("_r_debug", data=True)
        if not found:
            return []
        debug = found[0].address
    if not debug:
        raise NotThere("the dynamic loader has not begun yet")
    return _link_map(read, _word(read, debug + 8))


def _link_map(read: Read, entry: int) -> list[Module]:
    found: list[Module] = []
    while entry and len(found) < _MODULES_MAX:
        bias, name, dynamic, entry = struct.unpack("<4Q", _whole(read, entry, 32))
        found.append(Module(read, _text(read, name), bias, dynamic))
    return found
