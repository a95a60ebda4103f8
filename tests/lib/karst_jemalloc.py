"""jemalloc for the test programs: the system's, or the one that KARST_JEMALLOC names; its own totals."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from karst_command import Target
from karst_heaps import Heap

LIBRARY = Path(os.environ.get("KARST_JEMALLOC", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"))

# What jemalloc, or the C++ library that some builds need, has for itself and the ledger cannot name.
OTHERS = 1
PROFILING = 100


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
    "muzzy": preloaded("--seed=13", conf="dirty_decay_ms:0,muzzy_decay_ms:-1"),
    "whole-pages": preloaded("--seed=14", conf="cache_oblivious:false"),
    "profiled": preloaded("--seed=15", conf="prof:true,lg_prof_sample:12", others=PROFILING),
    "large-tcache": preloaded("--seed=16", conf="lg_tcache_max:20"),
    "forked": preloaded("--fork", "--threads=5", "--exited=1", "--seed=17"),
    # Not together with --foreign-sbrk: jemalloc 5.3's extents overlap then, which check finds.
    "break": preloaded("--seed=18", conf="dss:primary"),
}


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
            bins[int(name[4:])] = (int(values[0]), int(values[1]))
        else:
            totals[name] = int(values[0])
    assert totals["allocated"] and bins
    return Totals(totals, bins)


def totals_of_karst(target: Target) -> Totals:
    [row] = target.json("summary")["allocators"]
    bins: dict[int, tuple[int, int]] = {}
    for of in target.json("runs", "--classes")["classes"]:
        if of["kind"] in ("slab", "run"):
            bins[of["region_size"]] = (of["runs"], of["regions"] - of["free"])
    return Totals(row["own"], bins)
