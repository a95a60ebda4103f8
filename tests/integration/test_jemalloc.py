"""jemalloc, preloaded: the walker's live blocks are the ledger's, its totals jemalloc's own, and a healthy heap has
no findings; with the symbols that the library has, and with none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from karst_command import TESTS, Target
from karst_heaps import HAMMERS, HELD_BY_HAMMERS, Heap, assert_healthy, start
from karst_jemalloc import (
    HEAPS, LIBRARY, OTHERS, assert_blocks, compare_as_known, preloaded, read_mallctl, totals_of_karst,
)
from karst_ledger import compare, read_ledger
from karst_libcs import SYSTEM, Ways
from karst_programs import core_of

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"no {LIBRARY}")

WAYS: Ways = {"symbols": [], "no symbols": ["--no-symbols"]}
if "KARST_JEMALLOC_PATCHED" in os.environ:  # its structs are known by its debug info alone
    del WAYS["no symbols"]


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("name", HEAPS)
def test_live_blocks(name: str, end: str, directory: Path) -> None:
    assert_blocks(HEAPS[name], end, directory, WAYS)


@pytest.mark.parametrize("name", HEAPS)
def test_healthy(name: str, directory: Path) -> None:
    assert_healthy(HEAPS[name], SYSTEM, directory, WAYS)


# A forked child has others' caches no more, and its totals were taken before it was one.
@pytest.mark.parametrize("name", [name for name in HEAPS if name != "forked"])
def test_totals_are_jemallocs_own(name: str, directory: Path) -> None:
    with start(HEAPS[name], SYSTEM, directory) as program:
        told = read_mallctl(directory)
        found = {way: totals_of_karst(Target.process(program.pid, *options)) for way, options in WAYS.items()}
    for way, totals in found.items():
        for size, (slabs, regions) in told.bins.items():
            assert totals.bins.get(size, (0, 0)) == (slabs, regions), f"class {size}, {way}"
        for name_, value in told.totals.items():
            assert totals.totals.get(name_) == value, f"{name_}, {way}: {totals.totals}, jemalloc {told.totals}"


# What a thread that fills its cache has in hand is in no cache yet: most of all the regions of a slab that is new.
IN_HAND = 512


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("conf", ["", "tcache:false,narenas:2"])
def test_threads_inside_malloc(conf: str, end: str, directory: Path) -> None:
    """Threads that never leave malloc alone: the blocks of the others are there all the same, and what a half-done
    change looks like is no corruption."""
    with start(preloaded(f"--hammers={HAMMERS}", conf=conf), SYSTEM, directory) as program:
        target = Target.process(program.pid) if end == "process" else Target.core(core_of(program))
        comparison, others = compare_as_known(target, directory)
        assert not comparison.missing and not comparison.other_usable, str(comparison)
        assert len(comparison.extra) <= HELD_BY_HAMMERS + HAMMERS * IN_HAND + OTHERS + others, str(comparison)
        _, findings = target.check()
        corrupt = [str(finding) for finding in findings if finding.severity == "corrupt"]
        assert not corrupt, corrupt


@pytest.mark.skipif("KARST_JEMALLOC_PATCHED" in os.environ, reason="it looks without symbols")
def test_each_instruction() -> None:
    """Stopped behind each instruction that changed the heap: what the program holds is there, to the block, even where
    the head of its thread's cache has moved and the slot is not written yet; and nothing is called corrupt."""
    command = [str(TESTS / "unit/test_each_instruction"), "/usr/bin/env", f"LD_PRELOAD={LIBRARY}", str(TESTS / "stepped"), "small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("KARST_JEMALLOC" in os.environ, reason="the system's alone is linked in")
def test_linked_into_the_program_beside_another(directory: Path) -> None:
    """A stripped program has its own jemalloc, and one that is preloaded serves what it does not."""
    heap = Heap(("--threads=3",), {"LD_PRELOAD": str(LIBRARY)}, program="ledger-jemalloc", others=1)
    with start(heap, SYSTEM, directory) as program:
        target = Target.process(program.pid, "--no-symbols")
        rows = target.json("summary")["allocators"]
        assert [row["name"].split(" (")[0] for row in rows] == ["jemalloc", "jemalloc #2"]
        assert target.check() == (True, [])
        comparison = compare(read_ledger(directory), target.blocks())
        assert not comparison.missing and not comparison.other_usable and len(comparison.extra) <= 1, str(comparison)


def test_holes_are_told_apart(directory: Path) -> None:
    """What is free inside runs is in holes of its own; what runs don't have is between them."""
    with start(HEAPS["one-thread"], SYSTEM, directory) as program:
        target = Target.process(program.pid)
        holes = target.json("holes")
        answer = target.json("runs", "--classes")
        runs, counted = answer["classes"], answer["total"]
        summary = target.json("summary")["total"]
    assert (counted["live"], counted["cached"]) == (summary["live"]["blocks"], summary["cached"]["blocks"])
    assert counted["own"] > 0 and counted["live"] + counted["cached"] + counted["free"] + counted["own"] == counted["regions"]
    unused = sum((run["free"] + run["cached"]) * run["region_size"] for run in runs if run["kind"] in ("slab", "run"))
    edges = holes["outside"]["free_bytes"] + holes["outside"]["cached_bytes"]
    assert unused - edges <= holes["in_runs"]["bytes"] <= unused
    assert 0 < holes["in_runs"]["holes"] < holes["holes"] == summary["holes"]
    assert holes["bytes"] == summary["hole_bytes"]


@pytest.mark.parametrize("name", ["default", "small", "no-tcache", "many-threads", "profiled"])
def test_summary_is_of_the_blocks(name: str, directory: Path) -> None:
    """It takes slabs as wholes, the others a region at a time: it comes to the same."""
    with start(HEAPS[name], SYSTEM, directory) as program:
        target = Target.process(program.pid)
        total = target.json("summary")["total"]
        holes = target.json("holes", "-n", "100000")
        counts: dict[str, list[int]] = {}
        for block in target.blocks():
            of = counts.setdefault(block.state, [0, 0])
            of[0] += 1
            of[1] += block.size
    for state, (blocks, size) in counts.items():
        if state in ("live", "free", "cached"):
            assert (total[state]["blocks"], total[state]["bytes"]) == (blocks, size), state
    assert (total["holes"], total["hole_bytes"]) == (holes["holes"], holes["bytes"])
    assert len(holes["biggest"]) == holes["holes"]
    assert total["largest_hole"]["usable_bytes"] == max(hole["usable_bytes"] for hole in holes["biggest"])
