"""The ledger program's files: what it holds, and what malloc says at the same point."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from karst_command import Block


@dataclass(frozen=True)
class Entry:
    origin: str
    address: int
    requested: int
    usable: int


def read_ledger(directory: Path) -> dict[int, Entry]:
    entries: dict[int, Entry] = {}
    for line in (directory / "ledger").read_text().splitlines():
        origin, address, requested, usable = line.split()
        entry = Entry(origin, int(address, 16), int(requested), int(usable))
        # Threads that got the stack of one that had gone have its dtv, too: the same block twice.
        assert entry.address not in entries or entry == entries[entry.address], line
        entries[entry.address] = entry
    assert entries
    return entries


def read_mallinfo2(directory: Path) -> dict[str, int]:
    path = directory / "mallinfo2"
    if not path.exists():
        return {}
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


@dataclass(frozen=True)
class Totals:
    """malloc_info(3)'s closing totals; the bytes of `rest` include flag bits of the size words."""

    system: int
    mapped_blocks: int
    mapped_bytes: int
    fast_blocks: int
    fast_bytes: int
    rest_blocks: int
    rest_bytes: int
    arenas: int


def read_malloc_info(directory: Path) -> Totals:
    root = ElementTree.parse(directory / "malloc_info.xml").getroot()
    totals = {element.attrib["type"]: element.attrib for element in root.findall("total")}
    system = {element.attrib["type"]: element.attrib for element in root.findall("system")}
    fast = totals.get("fast", {"count": "0", "size": "0"})
    return Totals(
        system=int(system["current"]["size"]),
        mapped_blocks=int(totals["mmap"]["count"]),
        mapped_bytes=int(totals["mmap"]["size"]),
        fast_blocks=int(fast["count"]),
        fast_bytes=int(fast["size"]),
        rest_blocks=int(totals["rest"]["count"]),
        rest_bytes=int(totals["rest"]["size"]),
        arenas=len(root.findall("heap")),
    )


@dataclass
class Comparison:
    """How the walker's live blocks differ from the ledger's."""

    missing: list[Entry]
    other_usable: list[tuple[Entry, Block]]
    extra: list[Block]

    def __str__(self) -> str:
        lines = [
            f"{len(self.missing)} missing, {len(self.other_usable)} of another size, {len(self.extra)} too many"
        ]
        lines += [f"missing: {entry}" for entry in self.missing[:5]]
        lines += [f"size differs: {entry} {block}" for entry, block in self.other_usable[:5]]
        lines += [f"too many: {block}" for block in self.extra[:20]]
        return "\n".join(lines)


def compare(ledger: dict[int, Entry], blocks: Iterable[Block]) -> Comparison:
    live: dict[int, Block] = {}
    for block in blocks:
        if block.state == "live":
            assert block.address not in live, f"listed twice: {block}"
            live[block.address] = block
    return Comparison(
        missing=[entry for address, entry in ledger.items() if address not in live],
        other_usable=[
            (entry, live[address])
            for address, entry in ledger.items()
            if address in live and live[address].usable != entry.usable
        ],
        extra=[block for address, block in live.items() if address not in ledger],
    )
