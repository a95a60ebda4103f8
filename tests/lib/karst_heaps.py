"""Heaps of the ledger program: the ways to run it, and how karst's answers are held against its ledger."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from karst_command import Target
from karst_ledger import Comparison, compare, read_ledger, read_mallinfo2, read_malloc_info
from karst_libcs import Libc, Ways
from karst_programs import Program, core_of, started


@dataclass(frozen=True)
class Heap:
    """One way to run the ledger program. others: how many blocks libc may make that the ledger cannot name;
    usable: whether malloc_usable_size() tells of the chunk; since, until: minor versions it is for."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    program: str = "ledger"
    others: int = 0
    usable: bool = True
    since: int = 0
    until: int = 999


def tunables(text: str) -> dict[str, str]:
    return {"GLIBC_TUNABLES": text}


MAPPED = "--mmap-threshold=131072"
HEAPS = {
    "default": Heap(),
    "one-thread": Heap(("--threads=1",)),
    "mapped": Heap((MAPPED, "--seed=2")),
    "many-threads": Heap(("--threads=24", "--slots=400")),
    "small": Heap(("--small",)),
    "fastbins": Heap(("--small", "--seed=3"), tunables("glibc.malloc.tcache_count=0")),
    "no-tcache": Heap((MAPPED, "--seed=4"), tunables("glibc.malloc.tcache_count=0")),
    "wide-tcache": Heap(("--seed=5",), tunables("glibc.malloc.tcache_count=2000")),
    "narrow-tcache": Heap(("--seed=6",), tunables("glibc.malloc.tcache_max=128")),
    "exited-threads": Heap(("--threads=6", "--exited=3", "--seed=7")),
    "young-threads": Heap(("--young=6", "--exited=2", "--seed=8")),
    "one-arena": Heap(("--arenas=1", "--seed=9")),
    "shared-arenas": Heap(("--arenas=2", "--threads=7", "--seed=10", MAPPED)),
    "several-heaps": Heap(("--large", "--threads=3", "--seed=11")),
    "brk-blocked": Heap(("--block-brk=3000000", "--seed=12", MAPPED)),
    "brk-blocked-at-once": Heap(("--block-brk=0", "--seed=13", MAPPED)),
    "foreign-sbrk": Heap(("--foreign-sbrk", "--seed=14")),
    "foreign-sbrk-and-blocked": Heap(("--foreign-sbrk", "--block-brk=30000000", "--seed=15")),
    "perturbed": Heap(("--perturb=165", "--seed=16")),
    "forked": Heap(("--fork", "--threads=5", "--exited=1", "--seed=17")),
    # A static program's own search paths for libraries (elf/dl-support.c, _dl_non_dynamic_init).
    "static": Heap(("--seed=18", MAPPED), program="ledger-static", others=8),
    # The dynamic linker's own records of the second libc, and that libc's start.
    "second-libc": Heap(("--second-libc", "--seed=19"), others=40, since=34),
    "second-libc-mapped": Heap(
        ("--second-libc", "--seed=22"), tunables("glibc.malloc.mmap_threshold=131072"), others=40, since=34
    ),
    # Each block is a byte longer than asked, and its usable size is what was asked.
    "checking-libc": Heap(
        ("--seed=20",),
        {"LD_PRELOAD": "libc_malloc_debug.so.0", **tunables("glibc.malloc.check=3")},
        others=40,
        usable=False,
        since=34,
    ),
    # Before 2.42 the tcache takes no more than this for an answer.
    "large-tcache": Heap(("--seed=21",), tunables("glibc.malloc.tcache_max=4194304"), since=42),
}


def start(heap: Heap, libc: Libc, directory: Path) -> AbstractContextManager[Program]:
    if not heap.since <= (libc.minor or 36) <= heap.until:
        pytest.skip(f"not for {libc.name}")
    command = libc.command(heap.program, *heap.arguments, directory)
    return started(command, directory, {**libc.environment, **heap.environment})


def is_wrong(heap: Heap, comparison: Comparison) -> bool:
    return bool(
        comparison.missing
        or (heap.usable and comparison.other_usable)
        or len(comparison.extra) > heap.others
    )


def assert_same_blocks(heap: Heap, directory: Path, ways: Ways, *target: str) -> None:
    ledger = read_ledger(directory)
    text = ""
    for way, options in ways.items():
        comparison = compare(ledger, Target(*target, *options).blocks())
        if is_wrong(heap, comparison):
            text += f"with {way}: {comparison}\n"
    if text:
        pytest.fail(text, pytrace=False)


def assert_exact(heap: Heap, libc: Libc, end: str, directory: Path, ways: Ways) -> None:
    """The walker's live blocks are the ledger's, in the process or in a core of it."""
    with start(heap, libc, directory) as program:
        if end == "process":
            assert_same_blocks(heap, directory, ways, "-p", str(program.pid))
            return
        core = core_of(program)
    assert_same_blocks(heap, directory, ways, "-c", str(core))


def assert_healthy(heap: Heap, libc: Libc, directory: Path, ways: Ways) -> None:
    with start(heap, libc, directory) as program:
        for way, options in ways.items():
            healthy, findings = Target.process(program.pid, *options).check()
            if findings or not healthy:
                pytest.fail(f"with {way}: " + "\n".join(map(str, findings)), pytrace=False)


def totals_of_karst(target: Target) -> dict[str, int]:
    rows = target.json("summary")["allocators"]
    assert len(rows) == 1, rows
    row = rows[0]
    blocks = list(target.blocks())
    unused = [block for block in blocks if block.state in ("free", "top")]
    fast = [block for block in blocks if block.state == "cached" and (block.bin or "").startswith("fast")]
    return {
        "arenas": row["arenas"],
        "system": row["system_bytes"],
        "foreign": sum(block.size for block in blocks if block.state == "unknown"),
        "mapped blocks": row["mapped"]["blocks"],
        "mapped bytes": row["mapped"]["bytes"],
        "fast blocks": len(fast),
        "fast bytes": sum(block.size for block in fast),
        "unused blocks": len(unused),
        "unused bytes": sum(block.size for block in unused),
        "top of main": sum(block.size for block in unused if block.state == "top" and block.arena == "main"),
    }


def totals_of_malloc(directory: Path) -> dict[str, int]:
    """malloc_info's and mallinfo2's figures in karst's terms."""
    told = read_malloc_info(directory)
    info = read_mallinfo2(directory)
    totals = {
        "arenas": told.arenas,
        # What has a mapping of its own is system memory to karst.
        "system": told.system + told.mapped_bytes,
        "mapped blocks": told.mapped_blocks,
        "mapped bytes": told.mapped_bytes,
        "fast blocks": told.fast_blocks,
        "fast bytes": told.fast_bytes,
        "unused blocks": told.rest_blocks,
    }
    if info:
        assert (info["hblks"], info["hblkhd"]) == (told.mapped_blocks, told.mapped_bytes)
        assert (info["smblks"], info["fsmblks"]) == (told.fast_blocks, told.fast_bytes)
        # ordblks counts each top once, fordblks counts fastbins, too.
        assert info["ordblks"] == told.rest_blocks
        totals["unused bytes"] = info["fordblks"] - info["fsmblks"]
        totals["top of main"] = info["keepcost"]
    return totals


def assert_totals(heap: Heap, libc: Libc, directory: Path, ways: Ways) -> None:
    with start(heap, libc, directory) as program:
        malloc = totals_of_malloc(directory)
        if libc.minor >= 43:
            # mmapped_mem drifts there, by 16 bytes a resized block: it says 64 with none mapped.
            malloc["system"] -= malloc.pop("mapped bytes")
        for way, options in ways.items():
            karst = totals_of_karst(Target.process(program.pid, *options))
            # What others took from the break in between malloc counts as its own, or not: that depends on
            # whether the break was still contiguous then.
            foreign = karst.pop("foreign")
            if "mapped bytes" not in malloc:
                karst["system"] -= karst["mapped bytes"]
            for name, value in malloc.items():
                most = value + foreign if name == "system" else value
                assert value <= karst[name] <= most, f"with {way}: {name}; {karst}, malloc {malloc}"


HAMMERS = 4
HELD_BY_HAMMERS = HAMMERS * 33  # what each holds at most, and one block in flight


def assert_hammered(libc: Libc, end: str, directory: Path, ways: Ways) -> None:
    """Threads that never leave malloc alone: the blocks of the others are there all the same, and what a
    half-done change looks like is no corruption."""
    heap = Heap((f"--hammers={HAMMERS}", "--arenas=3"))
    with start(heap, libc, directory) as program:
        target = ["-p", str(program.pid)] if end == "process" else ["-c", str(core_of(program))]
        for way, options in ways.items():
            comparison = compare(read_ledger(directory), Target(*target, *options).blocks())
            assert not comparison.missing and not comparison.other_usable, f"with {way}: {comparison}"
            assert len(comparison.extra) <= HELD_BY_HAMMERS, f"with {way}: {comparison}"
            _, findings = Target(*target, *options).check()
            corrupt = [str(finding) for finding in findings if finding.severity == "corrupt"]
            assert not corrupt, f"with {way}: {corrupt}"
