"""The walker's live blocks are exactly those that the ledger program knows of: alive and from a core, with
debug info, with a symbol table alone, and with neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from karst_command import TESTS, Target
from karst_ledger import Comparison, compare, read_ledger, read_mallinfo2, read_malloc_info
from karst_programs import Program, core_of, started
from karst_symbols import make_symbol_table_directory


@dataclass(frozen=True)
class Heap:
    """One way to run the ledger program. others: how many blocks libc may make that the ledger cannot name."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    program: str = "ledger"
    others: int = 0
    usable: bool = True


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
    "static": Heap(("--seed=18", MAPPED), program="ledger-static"),
    # The dynamic linker's own records of the second libc, and that libc's start.
    "second-libc": Heap(("--second-libc", "--seed=19"), others=40),
    # Each block is a byte longer than asked, and its usable size is what was asked.
    "checking-libc": Heap(
        ("--seed=20",),
        {"LD_PRELOAD": "libc_malloc_debug.so.0", **tunables("glibc.malloc.check=3")},
        others=40,
        usable=False,
    ),
}


@pytest.fixture(scope="session")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """karst's options for each way to know where things are."""
    table = make_symbol_table_directory(tmp_path_factory.mktemp("symbols"))
    return {
        "debug info": [],
        "symbol table": ["--debug-dir", str(table)],
        "no symbols": ["--no-symbols"],
    }


def start(heap: Heap, directory: Path):
    return started([TESTS / heap.program, *heap.arguments, directory], directory, heap.environment)


def wrong(heap: Heap, comparison: Comparison) -> bool:
    return bool(
        comparison.missing
        or (heap.usable and comparison.other_usable)
        or len(comparison.extra) > heap.others
    )


def differences(heap: Heap, directory: Path, ways: dict[str, list[str]], *target: str) -> str:
    ledger = read_ledger(directory)
    text = ""
    for way, options in ways.items():
        comparison = compare(ledger, Target(*target, *options).blocks())
        if wrong(heap, comparison):
            text += f"with {way}: {comparison}\n"
    return text


@pytest.mark.parametrize("name", HEAPS)
def test_live_blocks_of_a_process(name: str, directory: Path, ways: dict[str, list[str]]) -> None:
    heap = HEAPS[name]
    with start(heap, directory) as program:
        text = differences(heap, directory, ways, "-p", str(program.pid))
    assert not text, text


@pytest.mark.parametrize("name", HEAPS)
def test_live_blocks_of_a_core(name: str, directory: Path, ways: dict[str, list[str]]) -> None:
    heap = HEAPS[name]
    with start(heap, directory) as program:
        core = core_of(program)
    text = differences(heap, directory, ways, "-c", str(core))
    assert not text, text


@pytest.mark.parametrize("name", HEAPS)
def test_healthy(name: str, directory: Path, ways: dict[str, list[str]]) -> None:
    with start(HEAPS[name], directory) as program:
        for way, options in ways.items():
            healthy, findings = Target.process(program.pid, *options).check()
            assert healthy and not findings, f"with {way}: " + "\n".join(map(str, findings))


def totals(program: Program, options: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """What karst says, and what malloc said, both in malloc's terms."""
    target = Target.process(program.pid, *options)
    rows = target.json("summary")["allocators"]
    assert len(rows) == 1, rows
    row = rows[0]
    blocks = list(target.blocks())
    unused = [block for block in blocks if block.state in ("free", "top")]
    fast = [block for block in blocks if block.state == "cached" and (block.bin or "").startswith("fast")]
    karst = {
        "arenas": row["arenas"],
        "system": row["system_bytes"],
        "mapped blocks": row["mapped"]["blocks"],
        "mapped bytes": row["mapped"]["bytes"],
        "fast blocks": len(fast),
        "fast bytes": sum(block.size for block in fast),
        "unused blocks": len(unused),
        "unused bytes": sum(block.size for block in unused),
        "top of main": sum(block.size for block in unused if block.state == "top" and block.arena == "main"),
    }
    told = read_malloc_info(program.directory)
    info = read_mallinfo2(program.directory)
    malloc = {
        "arenas": told.arenas,
        # What has a mapping of its own is system memory to karst.
        "system": told.system + told.mapped_bytes,
        "mapped blocks": told.mapped_blocks,
        "mapped bytes": told.mapped_bytes,
        "fast blocks": info["smblks"],
        "fast bytes": info["fsmblks"],
        # ordblks counts each top once, fordblks counts fastbins, too.
        "unused blocks": info["ordblks"],
        "unused bytes": info["fordblks"] - info["fsmblks"],
        "top of main": info["keepcost"],
    }
    assert (info["hblks"], info["hblkhd"]) == (told.mapped_blocks, told.mapped_bytes)
    assert (info["smblks"], info["fsmblks"]) == (told.fast_blocks, told.fast_bytes)
    return karst, malloc


TOTALS = [
    name
    for name, heap in HEAPS.items()
    # Two heaps have two tellings; of foreign memory in between malloc_info itself has no notion.
    if not heap.others
]


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_mallocs_own(name: str, directory: Path, ways: dict[str, list[str]]) -> None:
    with start(HEAPS[name], directory) as program:
        for way, options in ways.items():
            karst, malloc = totals(program, options)
            assert karst == malloc, f"with {way}"


HAMMERS = 4
HELD_BY_HAMMERS = HAMMERS * 33  # what each holds at most, and one block in flight


@pytest.mark.parametrize("end", ["process", "core"])
def test_threads_inside_malloc(end: str, directory: Path, ways: dict[str, list[str]]) -> None:
    """Threads that never leave malloc alone: the blocks of the others are there all the same, and what a
    half-done change looks like is no corruption."""
    command = [TESTS / "ledger", f"--hammers={HAMMERS}", "--arenas=3", directory]
    with started(command, directory) as program:
        target = ["-p", str(program.pid)] if end == "process" else ["-c", str(core_of(program))]
        for way, options in ways.items():
            comparison = compare(read_ledger(directory), Target(*target, *options).blocks())
            assert not comparison.missing and not comparison.other_usable, f"with {way}: {comparison}"
            assert len(comparison.extra) <= HELD_BY_HAMMERS, f"with {way}: {comparison}"
            _, findings = Target(*target, *options).check()
            corrupt = [str(finding) for finding in findings if finding.severity == "corrupt"]
            assert not corrupt, f"with {way}: {corrupt}"
