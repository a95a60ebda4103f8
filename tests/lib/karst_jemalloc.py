"""jemalloc for the test programs: the system's, or the one that KARST_JEMALLOC names; its own totals."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from karst_command import Block, Target
from karst_heaps import Heap, start
from karst_ledger import Comparison, Entry, compare, read_ledger
from karst_libcs import SYSTEM, Ways
from karst_programs import core_of

LIBRARY = Path(os.environ.get("KARST_JEMALLOC", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"))

# What jemalloc, or the C++ library that some builds need, has for itself and the ledger cannot name.
# Older ones have a table for each thread, which without a cache nothing leads to.
OTHERS = 8 if "KARST_JEMALLOC" in os.environ else 1
PROFILING = 100
OTHERS_OF_4 = 60
UNTOLD = 2**64 - 1  # what the ledger program writes for a figure that the library has not


def preloaded(*arguments: str, conf: str = "", others: int = OTHERS) -> Heap:
    environment = {"LD_PRELOAD": str(LIBRARY), **({"MALLOC_CONF": conf} if conf else {})}
    return Heap(arguments, environment, others=others)


HEAPS = {
    "default": preloaded(),
    "one-thread": preloaded("--threads=1"),
    "many-threads": preloaded("--threads=16", "--slots=400", "--seed=2"),
    "small": preloaded("--small", "--seed=3"),
    "large": preloaded("--large", "--threads=3", "--seed=4"),
    "no-tcache": preloaded("--seed=5", conf="tcache:false"),
    "no-tcache-one-thread": preloaded("--threads=1", "--seed=6", conf="tcache:false"),
    "one-arena": preloaded("--threads=7", "--seed=7", conf="narenas:1"),
    "per-cpu-arenas": preloaded("--threads=7", "--seed=8", conf="percpu_arena:percpu"),
    "exited-threads": preloaded("--threads=6", "--exited=3", "--seed=9"),
    "young-threads": preloaded("--young=6", "--exited=2", "--seed=10"),
    "purged": preloaded("--seed=11", conf="dirty_decay_ms:0,muzzy_decay_ms:0"),
    "purged-at-once": preloaded("--seed=12", conf="dirty_decay_ms:0,muzzy_decay_ms:0,retain:false"),
    "muzzy": preloaded("--seed=13", conf="dirty_decay_ms:1,muzzy_decay_ms:-1"),
    "whole-pages": preloaded("--seed=14", conf="cache_oblivious:false"),
    "profiled": preloaded("--seed=15", conf="prof:true,lg_prof_sample:12", others=PROFILING),
    "large-tcache": preloaded("--seed=16", conf="lg_tcache_max:20"),
    "sharded-bins": preloaded("--threads=5", "--seed=19", conf="bin_shards:8-256:4|320-4096:2"),
    # 5.3's, and others know them not: guard pages around slabs and large blocks, the huge page allocator.
    "guarded": preloaded("--seed=25", conf="san_guard_small:1,san_guard_large:2"),
    "guarded-not-retained": preloaded("--seed=26", conf="san_guard_small:3,san_guard_large:1,retain:false"),
    "huge-pages": preloaded("--seed=27", conf="hpa:true"),
    "forked": preloaded("--fork", "--threads=5", "--exited=1", "--seed=17"),
    # Not together with --foreign-sbrk: jemalloc 5.3's extents overlap then, which check finds.
    "break": preloaded("--seed=18", conf="dss:primary"),
}
# Options that only older ones have, and the chunk's size.
OLDER_HEAPS = {
    "redzones": preloaded("--seed=20", conf="redzone:true,junk:false"),
    "redzones-no-tcache": preloaded("--threads=2", "--seed=21", conf="redzone:true,tcache:false"),
    "profiled-all": preloaded("--seed=22", conf="prof:true,lg_prof_sample:0", others=PROFILING),
    "profiled-all-redzones": preloaded("--seed=23", conf="prof:true,lg_prof_sample:0,redzone:true", others=PROFILING),
    "large-chunks": preloaded("--seed=24", conf="lg_chunk:23"),
}
if "KARST_JEMALLOC" in os.environ:
    HEAPS.update(OLDER_HEAPS)


def compare_pages(ledger: dict[int, Entry], blocks: Iterable[Block]) -> Comparison:
    """For jemalloc 4, which records of a large block its pages alone: it begins somewhere in the first. Blocks of
    its own that nothing names are left out."""
    found = compare(ledger, blocks)
    pages = {block.address: block for block in found.extra if block.address % 4096 == 0}
    matched = {entry: pages[entry.address & ~4095] for entry in found.missing if entry.address & ~4095 in pages}
    other = [(entry, block) for entry, block in matched.items() if entry.usable != block.usable]
    extra = [block for block in found.extra if block not in matched.values()]
    return Comparison([entry for entry in found.missing if entry not in matched], found.other_usable + other, extra)


def compare_as_known(target: Target, directory: Path) -> tuple[Comparison, int]:
    """And how many blocks that nothing names there may be, besides those of any version."""
    if target.json("summary")["allocators"][0]["version"].startswith("4."):
        return compare_pages(read_ledger(directory), target.blocks()), OTHERS_OF_4
    return compare(read_ledger(directory), target.blocks()), 0


def assert_blocks(heap: Heap, end: str, directory: Path, ways: Ways) -> None:
    """The walker's live blocks are the ledger's, whatever version the library is."""
    with start(heap, SYSTEM, directory) as program:
        target = ["-p", str(program.pid)] if end == "process" else ["-c", str(core_of(program))]
        for way, options in ways.items():
            comparison, others = compare_as_known(Target(*target, *options), directory)
            if comparison.missing or comparison.other_usable or len(comparison.extra) > heap.others + others:
                pytest.fail(f"with {way}: {comparison}", pytrace=False)


@dataclass(frozen=True)
class Totals:
    """What mallctl("stats...") says: totals by name, and for each size of region slabs and regions in use."""

    totals: dict[str, int]
    bins: dict[int, tuple[int, int]]


def read_mallctl(directory: Path) -> Totals:
    totals: dict[str, int] = {}
    bins: dict[int, tuple[int, int]] = {}
    for line in (directory / "mallctl").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("bin-"):
            if UNTOLD not in (int(values[0]), int(values[1])):
                bins[int(name[4:])] = (int(values[0]), int(values[1]))
        else:
            if int(values[0]) != UNTOLD:
                totals[name] = int(values[0])
    assert totals["allocated"]
    return Totals(totals, bins)


def totals_of_karst(target: Target) -> Totals:
    [row] = target.json("summary")["allocators"]
    bins: dict[int, tuple[int, int]] = {}
    for of in target.json("runs", "--classes")["classes"]:
        if of["kind"] in ("slab", "run"):
            bins[of["region_size"]] = (of["runs"], of["regions"] - of["free"])
    return Totals(row["own"], bins)
