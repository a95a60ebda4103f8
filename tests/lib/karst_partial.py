"""Cores that lack libc's variables, held against the whole core: every state that is told is the right one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from karst_command import Block, Target
from karst_cores import leave_out, segments, truncate_before, variables_of
from karst_heaps import HEAPS, Heap, start
from karst_ledger import compare, read_ledger
from karst_libcs import Libc
from karst_programs import core_of

# What may be in a fastbin of the main arena: chunks of at most this size.
LARGEST_FAST = 0xB0


def by_address(blocks: Iterable[Block]) -> dict[tuple[int, int], Block]:
    return {(block.address, block.size): block for block in blocks}


def assert_nothing_wrong_is_told(whole: list[Block], part: list[Block]) -> None:
    """Each state that the part of a core tells is what the whole core tells."""
    truth = by_address(whole)
    for block in part:
        if block.state in ("live", "free", "cached", "top"):
            true = truth.get((block.address, block.size))
            assert true and (true.state, true.usable) == (block.state, block.usable), f"{block}, truly {true}"


def system_bytes(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Of each arena, in whole chunk alignments: where the break is not aligned, chunks begin a little behind it."""
    return {row["name"]: row["system_bytes"] // 16 for row in rows if row["name"] != "mapped"}


PARTIAL = {
    "default": HEAPS["default"],
    "one-thread": HEAPS["one-thread"],
    "four-threads": Heap(("--threads=5", "--slots=1200", "--seed=31")),
    "fastbins": HEAPS["fastbins"],
    "mapped": HEAPS["mapped"],
    "several-heaps": HEAPS["several-heaps"],
    "exited-threads": HEAPS["exited-threads"],
    "perturbed": HEAPS["perturbed"],
    "static": HEAPS["static"],
}


def variables(heap: Heap, pid: int) -> list[tuple[int, int]]:
    return variables_of(pid, heap.program if heap.program.endswith("-static") else "libc.so")


def assert_told_without_variables(libc: Libc, name: str, directory: Path, symbols: list[str]) -> None:
    """Of a core from which libc's variables were left out; symbols: karst's options to find the debug info."""
    with start(PARTIAL[name], libc, directory) as program:
        lost = variables(PARTIAL[name], program.pid)
        core = core_of(program)
    target = Target.core(core, *symbols)
    whole, arenas = list(target.blocks()), target.json("arenas")["arenas"]
    assert not compare(read_ledger(directory), whole).missing
    assert leave_out(core, lost) > 0
    for options in (symbols, ["--no-symbols"]):
        assert_all_is_told_but_fastbins(Target.core(core, *options), whole, arenas)


def assert_all_is_told_but_fastbins(target: Target, whole: list[Block], arenas: list[dict[str, Any]]) -> None:
    part = list(target.blocks())
    assert_nothing_wrong_is_told(whole, part)
    # The arenas are all there, and the same; nothing of them is lost.
    assert system_bytes(target.json("arenas")["arenas"]) == system_bytes(arenas)
    told, truth = by_address(part), by_address(whole)
    lost_blocks = [block for key, block in truth.items() if key not in told]
    assert told.keys() <= truth.keys() and not [block for block in lost_blocks if block.arena and block.usable]
    # Blocks with mappings of their own are counted nowhere: where one has merged with other memory it is not found.
    assert len(lost_blocks) <= len([block for block in whole if not block.arena]) / 2
    # What cannot be told is what may be in a fastbin of the main arena, and that alone.
    for key, block in told.items():
        if block.state != truth[key].state:
            assert block.state == "unknown" and block.arena == "main" and block.size <= LARGEST_FAST, block
    in_fastbins = [key for key, block in truth.items() if (block.bin or "").startswith("fast") and block.arena == "main"]
    assert all(told[key].state == "unknown" for key in in_fastbins)
    # It is said, in one line; and nothing is called damaged.
    note = [line for line in target.run("summary").stderr.splitlines() if "libc's variables" in line]
    assert len(note) == 1, target.run("summary").stderr
    healthy, findings = target.check()
    assert healthy, findings


def assert_told_when_cut(libc: Libc, name: str, directory: Path) -> None:
    """Of a core that is cut off before libc's variables, and further and further on."""
    with start(PARTIAL[name], libc, directory) as program:
        lost = variables(PARTIAL[name], program.pid)
        core = core_of(program)
    whole = list(Target.core(core).blocks())
    truncate_before(core, lost[0][0])
    first = min(segment.offset for segment in segments(core))
    memory = core.stat().st_size - first
    for tenth in range(9, 0, -1):
        os.truncate(core, first + memory * tenth // 9)
        target = Target.core(core)
        # 2.42 and later look alike, and differ in fastbins, when neither a thread arena nor libc's file is there.
        if libc.minor >= 42 and "its heap is left out" in target.run("info").stderr:
            continue
        # Before 2.32 links are stored as they are: in any block that begins with zeros there may be one.
        assert_what_is_there_is_told(core, whole, 0.3 if 0 < libc.minor < 32 else 0.8)


def assert_what_is_there_is_told(core: Path, whole: list[Block], share: float) -> None:
    target, size = Target.core(core), core.stat().st_size
    part = list(target.blocks())
    assert_nothing_wrong_is_told(whole, part)
    there = [(one.start, one.start + min(one.saved, size - one.offset)) for one in segments(core) if one.offset < size]
    live = [block for block in whole
            if block.state == "live" and any(start <= block.address < end for start, end in there)]
    told = [block for block in part if block.state == "live"]
    assert len(told) > share * len(live), f"{len(told)} of {len(live)} live blocks that are there are told"
    _, findings = target.check()
    assert not [finding for finding in findings if finding.severity == "corrupt"], findings
