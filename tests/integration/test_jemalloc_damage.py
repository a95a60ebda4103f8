"""What programs do wrong to jemalloc's heap is found and named: in the process, and in the core that it leaves. And
what a stray write does to jemalloc's own structs, written into them from here."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from karst_command import TESTS, Finding, Target
from karst_heaps import Heap, start
from karst_jemalloc import HEAPS, LIBRARY
from karst_libcs import SYSTEM
from karst_programs import Program, core_of, started

pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"no {LIBRARY}"),
    pytest.mark.skipif("KARST_JEMALLOC" in os.environ, reason="what goes wrong differs by version"),
]

REGIONS_LENT = 539  # jemalloc_damage.c, lent_arena()

# Kind, MALLOC_CONF, the codes expected, and words of the text.
DAMAGE: list[tuple[str, str, set[str], list[str]]] = [
    ("nothing", "", set(), []),
    ("nothing", "tcache:false", set(), []),
    ("nothing", "bin_shards:8-4096:4", set(), []),
    ("own-arena", "", set(), []),
    ("shared-arena", "", set(), []),
    ("file-arena", "", set(), []),
    ("double-free", "", {"double-free"}, ["cached twice", "both times in tcache 0xe0 thread"]),
    ("double-free", "tcache:false", {"bad-count"}, ["224-byte slab", "freed twice", "nfree says 2 free, its bitmap 0"]),
    ("flushed", "", {"double-free"}, ["tcache 0xe0 thread", "region 100 of", "free in its bitmap too"]),
    ("threads", "", {"double-free"}, ["cached twice", "and in another", "tcache 0xe0 thread"]),
    ("threads", "tcache:false", {"bad-count"}, ["224-byte slab", "freed twice"]),
    ("interior", "", {"misaligned"}, ["tcache 0xe0", "inside a region of the 224-byte slab"]),
    ("wrong-size", "", {"wrong-bin"}, ["tcache 0xe0", "a region of the 32-byte slab", "freed with a wrong size"]),
    ("past-end", "", {"bad-count", "run-overlap", "wrong-bin"},
     ["384-byte slab", "past its last", "the next malloc(384)", "the 192-byte bin of arena 0 has the 384-byte slab"]),
]


@contextmanager
def damaged(kind: str, conf: str, directory: Path) -> Iterator[tuple[Program, int]]:
    """The program, waiting, and the address it names."""
    command = [str(TESTS / "jemalloc_damage"), kind]
    with started(command, directory, {"LD_PRELOAD": str(LIBRARY), "MALLOC_CONF": conf}, ready=False) as program:
        assert program.process.stdout is not None
        name, address = program.process.stdout.readline().decode().split()
        assert name == "block"
        ready, pid = program.process.stdout.readline().decode().split()
        assert ready == "ready"
        program.pid = int(pid)
        yield program, int(address, 16)


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize(("kind", "conf", "codes", "words"), DAMAGE, ids=[f"{kind}-{conf}" for kind, conf, *_ in DAMAGE])
def test_found_and_named(kind: str, conf: str, codes: set[str], words: list[str], end: str, directory: Path) -> None:
    with damaged(kind, conf, directory) as (program, address):
        target = Target.process(program.pid) if end == "process" else Target.core(core_of(program))
        healthy, findings = target.check()
    said = "\n".join(map(str, findings))
    assert {finding.code for finding in findings} == codes, said
    assert healthy == (not codes)
    assert all(finding.severity == "corrupt" for finding in findings), said
    for word in words:
        assert word in said, f"{word!r} is not in {said}"
    if codes == {"double-free"}:
        assert {finding.address for finding in findings} == {address}, said


@pytest.mark.parametrize("end", ["process", "core"])
def test_an_arena_in_a_files_memory(end: str, directory: Path) -> None:
    """By hooks of the program's, with what it has for itself. A core has nothing of it, and that is told once."""
    with damaged("file-arena", "", directory) as (program, _):
        target = Target.process(program.pid) if end == "process" else Target.core(core_of(program))
        remarks = "\n".join(target.json("info")["target"]["remarks"])
        here = [block for block in target.blocks("--state", "live") if block.size == 224 and block.arena != "0"]
    assert len(here) == (REGIONS_LENT if end == "process" else 0)
    assert ("can't be read: they are left out" in remarks) == (end == "core"), remarks


def test_a_lost_cache_beside_the_heap(directory: Path) -> None:
    """In the child of a fork: the cache of a thread that is gone, in a stack that has one mapping with an arena."""
    with damaged("forked-beside", "", directory) as (program, address):
        target = Target.process(program.pid)
        assert target.json("block", hex(address))["block"]["state"] == "cached"
        assert target.check() == (True, [])


# ---- stray writes ----------------------------------------------------------------------------------------

BITS, ADDRESS, SIZE, LRU = 0, 8, 16, 64  # of edata_t, jemalloc 5.3
STATE_SHIFT, CLASS_SHIFT, NFREE_SHIFT = 17, 20, 28


class Memory:
    def __init__(self, pid: int) -> None:
        self.file = open(f"/proc/{pid}/mem", "r+b", buffering=0)

    def read(self, address: int) -> int:
        self.file.seek(address)
        value: int = struct.unpack("<Q", self.file.read(8))[0]
        return value

    def write(self, address: int, value: int) -> None:
        self.file.seek(address)
        self.file.write(struct.pack("<Q", value % 2**64))


def extent_of(target: Target, address: int) -> int:
    facts = {fact["name"]: fact for fact in target.json("block", hex(address))["facts"]}
    return int(facts["extent"]["address"], 16)


def runs(target: Target, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = target.json("runs", *arguments, "-n", "10000")["runs"]
    return found


@pytest.fixture
def healthy_heap(directory: Path) -> Iterator[tuple[Target, Memory]]:
    with start(HEAPS["one-thread"], SYSTEM, directory) as program:
        target = Target.process(program.pid)
        assert target.check() == (True, [])
        yield target, Memory(program.pid)


def said_of(target: Target, code: str) -> str:
    healthy, findings = target.check()
    said = "\n".join(map(str, findings))
    assert not healthy and code in {finding.code for finding in findings}, said or "nothing found"
    return said


def test_bit_past_the_last(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    run = next(run for run in runs(target, "slab") if run["regions"] % 64)
    word = extent_of(target, int(run["first_region"], 16)) + 64 + run["regions"] // 64 * 8
    memory.write(word, memory.read(word) | 1 << run["regions"] % 64)
    said = said_of(target, "run-overlap")
    assert f"region {run['regions']} of the {run['region_size']}-byte slab at {run['address']}" in said
    assert hex(int(run["first_region"], 16) + run["regions"] * run["region_size"]) in said


def test_count_and_bitmap_disagree(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    run = runs(target, "slab")[0]
    extent = extent_of(target, int(run["first_region"], 16))
    memory.write(extent, memory.read(extent) + (1 << NFREE_SHIFT))
    said = said_of(target, "bad-count")
    assert f"nfree says {run['free'] + 1} free, its bitmap {run['free']}" in said


def test_extents_overlap(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    large = runs(target, "large")
    first, second = next((a, b) for a, b in zip(large, large[1:]) if int(a["address"], 16) + a["size"] == int(b["address"], 16))
    extent = extent_of(target, int(first["first_region"], 16))
    memory.write(extent + SIZE, memory.read(extent + SIZE) + 4096)
    said = said_of(target, "run-overlap")
    assert first["first_region"] in said and second["first_region"] in said
    assert "bad-size" in said


def test_class_of_extent_and_tree_disagree(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    run = runs(target, "large")[0]
    extent = extent_of(target, int(run["first_region"], 16))
    memory.write(extent, memory.read(extent) - (1 << CLASS_SHIFT))
    said_of(target, "wrong-bin")


def test_extent_in_use_is_still_listed(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    run = runs(target, "dirty")[0]
    facts = target.json("block", run["address"])["facts"]
    extent = next(int(fact["address"], 16) for fact in facts if fact["name"] == "extent")
    memory.write(extent, memory.read(extent) + (1 << STATE_SHIFT))
    said = said_of(target, "bad-link")
    assert "is in the list of dirty extents" in said
    assert "bad-count" in said


def test_list_of_extents_is_overwritten(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    facts = target.json("block", runs(target, "dirty")[0]["address"])["facts"]
    extent = next(int(fact["address"], 16) for fact in facts if fact["name"] == "extent")
    memory.write(extent + LRU, 0x4141414141414141)
    assert "0x4141414141414141, which is none" in said_of(target, "bad-link")


# Of tcache_slow_t and cache_bin_t; where arena_t has its ring of caches and its base, and base_t its blocks.
TO_TCACHE, CACHE_BINS, CACHE_BIN, RING, BASE, BLOCKS = 168, 8, 24, 10392, 78936, 160
CACHE_BINS_ALL, SMALL = 73, 36
SIZES = [8, *range(16, 129, 16)] + [step * (1 << power) for power in range(5, 12) for step in (5, 6, 7, 8)]


def arena_of(target: Target) -> int:
    return next(int(row["address"], 16) for row in target.json("arenas")["arenas"] if row["name"] == "0")


def cache_bin(target: Target, memory: Memory) -> int:
    """The bin of 16-byte blocks of the thread's cache."""
    return memory.read(memory.read(arena_of(target) + RING) + TO_TCACHE) + CACHE_BINS + CACHE_BIN


def only_finding(target: Target) -> Finding:
    healthy, findings = target.check()
    assert not healthy and len(findings) == 1, "\n".join(map(str, findings)) or "nothing found"
    return findings[0]


@pytest.mark.parametrize("head", ["far below", "zero", "garbage"])
def test_cache_bin_is_overwritten(head: str, healthy_heap: tuple[Target, Memory]) -> None:
    """It has told where its stack is: one finding, and not one for each word that is there instead."""
    target, memory = healthy_heap
    at = cache_bin(target, memory)
    if head == "far below":
        memory.write(at, memory.read(at) - 8192)
    else:
        for word in range(at, at + CACHE_BIN, 8):
            memory.write(word, 0 if head == "zero" else 0x4141414141414141)
    finding = only_finding(target)
    assert (finding.code, finding.address) == ("bad-count", at)
    assert "tcache 0x10 thread" in finding.text and "makes no sense" in finding.text


@pytest.mark.parametrize("value", [0, 0x4141414141414141])
def test_whole_cache_is_overwritten(value: int, healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    first = cache_bin(target, memory) - CACHE_BIN
    for word in range(first, first + CACHE_BINS_ALL * CACHE_BIN, 8):
        memory.write(word, value)
    bins = CACHE_BINS_ALL if value else SMALL  # one of a large class may have no stack
    finding = only_finding(target)
    assert (finding.code, finding.address, finding.size) == ("bad-count", first, bins * CACHE_BIN)
    assert f"{bins} bins of one cache, tcache 0x8 thread" in finding.text and "makes no sense" in finding.text


@dataclass(frozen=True)
class Stack:
    """Of a bin of the thread's cache: where it is told, where it begins and ends, and the block cached last."""

    bin: int
    start: int
    end: int
    head: int


def stack_of(target: Target, memory: Memory, size: int) -> Stack:
    at = cache_bin(target, memory) + (SIZES.index(size) - 1) * CACHE_BIN
    memory.file.seek(at)
    head, _, _, full, empty, _ = struct.unpack("<QQHHHH", memory.file.read(CACHE_BIN))
    end = head + (empty - head) % 65536
    return Stack(at, end - (empty - full) % 65536, end, head)


def stash(memory: Memory, stack: Stack, address: int) -> None:
    """As a jemalloc with use-after-free detection does what begins a page (cache_bin_stash())."""
    memory.write(stack.start, address)
    memory.file.seek(stack.bin + 18)
    memory.file.write(struct.pack("<H", (stack.start + 8) % 65536))


def test_cache_is_overwritten(healthy_heap: tuple[Target, Memory]) -> None:
    """A pointer in a cache's stack."""
    target, memory = healthy_heap
    stack = next(stack for stack in (stack_of(target, memory, size) for size in SIZES[:SMALL]) if stack.head < stack.end)
    memory.write(stack.head, 0x4141414141414141)
    assert "holds 0x4141414141414141, which is in no run" in said_of(target, "bad-link")


def test_what_is_stashed_counts_as_cached(healthy_heap: tuple[Target, Memory]) -> None:
    """And no write to it since goes unnoticed. A build that stashes: tests/distros/test_jemalloc_builds.py."""
    target, memory = healthy_heap
    before = target.json("summary")["total"]
    block, stack = next((block, stack) for block in target.blocks("--state", "live")
                        if block.address % 4096 == 0 and 64 <= block.size <= 1024
                        for stack in [stack_of(target, memory, block.size)] if stack.start < stack.head)
    places = [block.address, block.address + block.size // 2 // 8 * 8, block.address + block.size - 8]
    for place in places:
        memory.write(place, 0x5b5b5b5b5b5b5b5b)
    stash(memory, stack, block.address)
    assert target.check() == (True, [])
    assert target.json("block", hex(block.address))["block"]["state"] == "cached"
    after = target.json("summary")["total"]
    for state, more in (("live", -1), ("cached", 1)):
        assert after[state]["blocks"] == before[state]["blocks"] + more
        assert after[state]["bytes"] == before[state]["bytes"] + more * block.size
    for place in places:
        memory.write(place, 0x41)
        finding = only_finding(target)
        assert (finding.code, finding.address) == ("write-after-free", block.address)
        assert f"0x41 at {place:#x}" in finding.evidence
        memory.write(place, 0x5b5b5b5b5b5b5b5b)
    stash(memory, stack, block.address + 32)
    finding = only_finding(target)
    assert (finding.code, finding.address) == ("bad-count", stack.bin)


def test_ring_of_caches_is_overwritten(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    word = arena_of(target) + RING
    memory.write(word, 0x4141414141414140)
    finding = only_finding(target)
    assert (finding.code, finding.address) == ("bad-link", word)
    assert "the ring of threads' caches of arena 0 leads to 0x4141414141414140" in finding.text


def test_forged_caches_hold_no_more_than_there_is(healthy_heap: tuple[Target, Memory]) -> None:
    """Each bin says that its stack is as long as one can be: many times the heap's bytes, were they believed."""
    target, memory = healthy_heap
    at = cache_bin(target, memory) - CACHE_BIN
    stack = max(int(run["first_region"], 16) for run in runs(target, "large")) & ~0xffff
    for index in range(CACHE_BINS_ALL):
        memory.file.seek(at + index * CACHE_BIN)
        memory.file.write(struct.pack("<QQHHHH", stack | 8, 0, 0, 8, 0xfff8, 0))
    remarks = target.json("info")["target"]["remarks"]
    assert any("hold more blocks than there can be" in remark for remark in remarks), remarks
    assert target.check()[0] is False


def test_allocators_own_blocks_go_in_a_circle(healthy_heap: tuple[Target, Memory]) -> None:
    """All extents lie in those that follow: that is no finding for each of them."""
    target, memory = healthy_heap
    block = memory.read(memory.read(arena_of(target) + BASE) + BLOCKS)
    memory.write(block + 8, block)
    finding = only_finding(target)
    assert (finding.code, finding.address) == ("bad-link", block + 8)
    assert f"of arena 0 leads to {block:#x}" in finding.text


@pytest.mark.parametrize("kind", ["slab", "large"])
def test_extent_is_overwritten(kind: str, healthy_heap: tuple[Target, Memory]) -> None:
    """One finding for all its pages, and those of what else leads to it; none for the blocks that caches have there."""
    target, memory = healthy_heap
    run = max(runs(target, kind), key=lambda run: (run["cached"], run["size"]))
    extent = extent_of(target, int(run["first_region"], 16))
    for word in range(extent, extent + 128, 8):
        memory.write(word, 0x4141414141414141)
    _, findings = target.check()
    pages = [finding for finding in findings if finding.address == int(run["address"], 16)]
    assert [(finding.code, finding.size) for finding in pages] == [("bad-link", run["size"])], findings
    assert "no extent, for these pages: one that is overwritten" in pages[0].text
    assert all(f"{extent:#x}" in str(finding) for finding in findings), findings
    assert len(findings) <= 2, findings


def element_of(target: Target, memory: Memory, page: int) -> int:
    """Where the tree's leaf has an element for the page: two levels, of 18 bits each."""
    leaf = memory.read(tree_of(target) + (page >> 30) * 8)
    return leaf + (page >> 12) % (1 << 18) * 8


def exchange(memory: Memory, one: int, other: int) -> None:
    values = memory.read(one), memory.read(other)
    memory.write(one, values[1])
    memory.write(other, values[0])


@pytest.mark.parametrize("kind", ["slab", "large", "dirty"])
def test_elements_of_the_tree_are_exchanged(kind: str, healthy_heap: tuple[Target, Memory]) -> None:
    """Those of the first pages of two slabs of a page each, or of two large or unused extents: one finding for each page,
    and none for what bins, lists and caches have there. What ends in another page is told of all the same."""
    target, memory = healthy_heap
    pages = [run for run in runs(target, kind) if (run["size"] == 4096) == (kind == "slab")]
    assert len(pages) > 1
    first, second = max(pages, key=lambda run: run["cached"]), min(pages, key=lambda run: run["cached"])
    if first is second:
        first, second = pages[0], pages[-1]
    addresses = sorted(int(run["address"], 16) for run in (first, second))
    before = [run["address"] for run in runs(target, kind)]
    exchange(memory, *(element_of(target, memory, address) for address in addresses))
    healthy, findings = target.check()
    said = "\n".join(map(str, findings))
    assert [(finding.code, finding.address, finding.size) for finding in findings] == [
        ("bad-link", address, 4096) for address in addresses], said
    assert said.count("leads from this page to the") == 2 and not healthy
    for finding, address in zip(findings, reversed(addresses)):
        assert f"{address:#x}"[:-3] in finding.text, said
    if kind != "slab":  # of which no other page is left
        assert [run["address"] for run in runs(target, kind)] == before


def test_last_elements_are_exchanged(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    first, second = runs(target, "large")[:2]
    ends = [int(run["address"], 16) + run["size"] - 4096 for run in (first, second)]
    exchange(memory, *(element_of(target, memory, end) for end in ends))
    _, findings = target.check()
    said = "\n".join(map(str, findings))
    assert [(finding.code, finding.address, finding.size) for finding in findings] == [
        ("bad-link", end, 4096) for end in ends], said


def test_address_that_is_no_region(healthy_heap: tuple[Target, Memory]) -> None:
    target, _ = healthy_heap
    run = runs(target, "slab")[0]
    address = int(run["first_region"], 16) + run["region_size"] + 8
    answer = target.json("block", hex(address))
    assert f"offset {run['region_size'] + 8:#x} of the slab at {run['address']}" in answer["explanation"]
    assert "is not a region start, but 0x8 bytes into region 1" in answer["explanation"]
    assert target.json("block", run["first_region"])["explanation"] is None


def tree_of(target: Target) -> int:
    return next(int(fact["address"], 16) for row in target.json("info")["allocators"] for fact in row["facts"]
                if fact["name"] == "radix tree")


def test_forged_tree_costs_no_more_than_is_mapped(healthy_heap: tuple[Target, Memory]) -> None:
    """Every entry of the root leads to the same leaf: 64 TiB of extents, if one believes it."""
    target, memory = healthy_heap
    root = tree_of(target)
    entries = 1 << 18
    memory.file.seek(root)
    leaf = max(struct.unpack(f"<{entries}Q", memory.file.read(8 * entries)))
    memory.file.seek(root)
    memory.file.write(struct.pack("<Q", leaf) * entries)
    assert target.json("summary")["total"]["live"]["blocks"] > 0


def test_what_looks_like_the_trees_root_is_none(directory: Path) -> None:
    """A word in front of the root leads to a leaf whose one element leads to an extent of the page it stands for, but
    nothing else of it makes sense. The tree behind it is found all the same."""
    with start(Heap(("--threads=3",), program="ledger-jemalloc"), SYSTEM, directory) as program:
        target, memory = Target.process(program.pid), Memory(program.pid)
        root = tree_of(target)
        block = max(target.blocks("--state", "live"), key=lambda block: block.usable)
        leaf, size, page = -(-block.address // 64) * 64, 8 << 18, (1 << 30) + 0x5000
        extent = leaf + size
        assert extent + 128 <= block.address + block.usable
        memory.file.seek(leaf)
        memory.file.write(bytes(size))
        memory.write(leaf + 5 * 8, extent)
        for offset, value in ((BITS, -1), (ADDRESS, page), (SIZE, 4096)):
            memory.write(extent + offset, value)
        word = next(int(line.split("-")[0], 16) for line in Path(f"/proc/{program.pid}/maps").read_text().splitlines()
                    if "rw-p" in line and line.endswith("/ledger-jemalloc"))
        assert word < root
        memory.write(word, leaf)
        assert tree_of(target) == root


# ---- bins ------------------------------------------------------------------------------------------------

# Of arena_t and bin_t, jemalloc 5.3.
BINS, BIN_SIZE, CURRENT, NONFULL, FULL = 78952, 224, 192, 200, 216


def bins_of(target: Target, arena: int = 0) -> list[int]:
    """The address of each class's bin."""
    row = next(row for row in target.json("arenas")["arenas"] if row["name"] == str(arena))
    return [int(row["address"], 16) + BINS + BIN_SIZE * class_ for class_ in range(36)]


def bin_with(target: Target, memory: Memory, *members: int) -> tuple[int, int]:
    """A bin that has something in those places, and the size of its regions."""
    for size, address in zip(SIZES, bins_of(target)):
        if all(memory.read(address + member) for member in members):
            return address, size
    raise AssertionError("no such bin")


def test_current_slab_is_of_another_class(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    first, size = bin_with(target, memory, CURRENT)
    second = next(address for address in bins_of(target) if address != first and memory.read(address + CURRENT))
    other = memory.read(second + CURRENT)
    memory.write(first + CURRENT, other)
    said = said_of(target, "wrong-bin")
    assert f"the current slab of the {size}-byte bin of arena 0 has the " in said
    assert f"extent at {other:#x}" in said


def test_current_slab_is_none(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    address, size = bin_with(target, memory, CURRENT)
    memory.write(address + CURRENT, 0x4141414141414141)
    said = said_of(target, "bad-link")
    assert f"the current slab of the {size}-byte bin of arena 0 leads to 0x4141414141414141, which is no extent" in said


def test_slabs_are_lost(healthy_heap: tuple[Target, Memory]) -> None:
    """The root of a bin's heap is cleared: nothing leads to the slabs that were in it."""
    target, memory = healthy_heap
    address, size = bin_with(target, memory, NONFULL)
    extent = memory.read(address + NONFULL)
    memory.write(address + NONFULL, 0)
    said = said_of(target, "lost-free")
    assert f"the {size}-byte slab at" in said and "its bin (arena 0) does not lead to it" in said
    assert f"extent at {extent:#x}" in said


def test_slab_is_in_its_bin_twice(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    address, size = bin_with(target, memory, CURRENT, NONFULL)
    memory.write(address + CURRENT, memory.read(address + NONFULL))
    said = said_of(target, "bad-link")
    assert f"is in the {size}-byte bin of arena 0 twice: its current slab, and in its heap" in said


def test_heap_of_slabs_goes_in_a_circle(healthy_heap: tuple[Target, Memory]) -> None:
    target, memory = healthy_heap
    address, size = bin_with(target, memory, NONFULL)
    root = memory.read(address + NONFULL)
    memory.write(root + 48, root)  # its next brother
    said = said_of(target, "bad-link")
    assert f"is in the {size}-byte bin of arena 0 twice: its heap of slabs with free regions goes in a circle" in said


def test_slab_with_others_behind_it_is_overwritten(healthy_heap: tuple[Target, Memory]) -> None:
    """What a bin's heap would lead on to is out of reach, which is no damage of its own."""
    target, memory = healthy_heap
    roots = [memory.read(address + NONFULL) for address in bins_of(target)]
    extent = next(root for root in roots if root and memory.read(root + 56) and memory.read(memory.read(root + 56) + 48))
    for word in range(extent, extent + 128, 8):
        memory.write(word, 0x4141414141414141)
    _, findings = target.check()
    said = "\n".join(map(str, findings))
    assert [finding.code for finding in findings] == ["bad-link", "bad-link"], said
    assert "slabs behind it are out of reach" in said and said.count(f"leads to {extent:#x}") == 2


def test_shard_of_a_bin(directory: Path) -> None:
    with damaged("nothing", "bin_shards:8-4096:4", directory) as (program, _):
        target, memory = Target.process(program.pid), Memory(program.pid)
        assert target.check() == (True, [])
        first = bins_of(target)[0]
        shards = [first + BIN_SIZE * (4 * SIZES.index(224) + shard) for shard in range(4)]
        shard, address = next((i, address) for i, address in enumerate(shards) if memory.read(address + CURRENT))
        memory.write(address + CURRENT, 0x4141414141414141)
        said = said_of(target, "bad-link")
        assert f"the current slab of the 224-byte bin of arena 0, shard {shard} leads to 0x4141414141414141" in said


def test_list_of_full_slabs(directory: Path) -> None:
    """In an arena of the program's own: a slab that is not full in the list, and one that is no extent's."""
    with damaged("own-arena", "", directory) as (program, address):
        target, memory = Target.process(program.pid), Memory(program.pid)
        assert target.check() == (True, [])
        arena = next(block.arena for block in target.blocks() if block.size == 224 and block.arena != "0")
        bin_ = bins_of(target, int(arena or 0))[SIZES.index(224)]
        current, full = memory.read(bin_ + CURRENT), memory.read(bin_ + FULL)
        assert current and full
        memory.write(full, memory.read(full) + (1 << NFREE_SHIFT))
        assert "is in the list of full slabs of the 224-byte bin" in said_of(target, "bad-count")
        memory.write(full, memory.read(full) - (1 << NFREE_SHIFT))
        memory.write(bin_ + FULL, 0x4141414141414141)
        assert "the list of full slabs of the 224-byte bin" in said_of(target, "bad-link")


# ---- several heaps ---------------------------------------------------------------------------------------


def test_two_heaps_claim_the_same_bytes(directory: Path) -> None:
    """An extent of one jemalloc is overwritten, and reaches into the other's memory."""
    heap = Heap(("--threads=3",), {"LD_PRELOAD": str(LIBRARY)}, program="ledger-jemalloc")
    with start(heap, SYSTEM, directory) as program:
        target, memory = Target.process(program.pid), Memory(program.pid)
        assert target.check() == (True, [])
        large = [run for run in runs(target) if run["kind"] == "large"]
        others = [run for run in runs(target) if run["size"] >= 8192]
        first, second = max(((a, b) for a in large for b in others
                             if a["allocator"] != b["allocator"] and int(a["address"], 16) < int(b["address"], 16)),
                            key=lambda pair: int(pair[0]["address"], 16) - int(pair[1]["address"], 16))
        extent = extent_of(target, int(first["first_region"], 16))
        end = int(second["address"], 16) + 4096
        memory.write(extent + SIZE, end - int(first["address"], 16) | memory.read(extent + SIZE) & 4095)
        _, findings = target.check()
        said = [str(finding) for finding in findings if finding.code == "overlap"]
    assert any("both claim these bytes" in text and "jemalloc #2" in text and hex(end) in text for text in said), said
