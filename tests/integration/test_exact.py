"""The walker's live blocks are exactly those that the ledger program knows of: alive and from a core, with
debug info, with a symbol table alone, and with neither."""

from __future__ import annotations

from pathlib import Path

import pytest
from karst_command import Target
from karst_heaps import HEAPS, Heap, assert_exact, assert_hammered, assert_healthy, assert_totals, start
from karst_ledger import compare, read_ledger, read_mallinfo2
from karst_libcs import SYSTEM, Ways
from karst_programs import gcore
from karst_symbols import make_symbol_table_directory

NAMES = [name for name, heap in HEAPS.items() if heap.since < 42]
TWO_HEAPS = ["second-libc", "second-libc-mapped", "checking-libc"]
ENDS = ["process", "core"]


@pytest.fixture(scope="session")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Ways:
    """karst's options for each way to know where things are."""
    table = make_symbol_table_directory(tmp_path_factory.mktemp("symbols"))
    return {
        "debug info": [],
        "symbol table": ["--debug-dir", str(table)],
        "no symbols": ["--no-symbols"],
    }


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", NAMES)
def test_live_blocks(name: str, end: str, directory: Path, ways: Ways) -> None:
    assert_exact(HEAPS[name], SYSTEM, end, directory, ways)


@pytest.mark.parametrize("name", NAMES)
def test_healthy(name: str, directory: Path, ways: Ways) -> None:
    assert_healthy(HEAPS[name], SYSTEM, directory, ways)


# Of two heaps in one process malloc tells one.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TWO_HEAPS])
def test_totals_are_mallocs_own(name: str, directory: Path, ways: Ways) -> None:
    assert_totals(HEAPS[name], SYSTEM, directory, ways)


def test_mapped_blocks_of_two_libcs(directory: Path, ways: Ways) -> None:
    """Nothing in a block with a mapping of its own says whose it is: each libc gets as many as it counts."""
    with start(HEAPS["second-libc-mapped"], SYSTEM, directory) as program:
        ledger, info = read_ledger(directory), read_mallinfo2(directory)
        for way, options in ways.items():
            target = Target.process(program.pid, *options)
            rows = target.json("summary")["allocators"]
            mapped = [(row["mapped"]["blocks"], row["mapped"]["bytes"]) for row in rows]
            assert len(mapped) == 2 and (info["hblks"], info["hblkhd"]) in mapped, f"with {way}: {mapped}"
            assert all(blocks for blocks, _ in mapped), f"with {way}: {mapped}"
            found = [block.address for block in target.blocks("--state", "live")]
            assert len(found) == len(set(found)) and set(ledger) <= set(found), f"with {way}"


@pytest.mark.parametrize("end", ENDS)
def test_threads_inside_malloc(end: str, directory: Path, ways: Ways) -> None:
    assert_hammered(SYSTEM, end, directory, ways)


def test_core_by_gdb(directory: Path, ways: Ways) -> None:
    """GDB's cores differ from the kernel's: in what is left out, and in their notes."""
    heap = HEAPS["mapped"]
    with start(heap, SYSTEM, directory) as program:
        core = gcore(program.pid, directory)
        for way, options in ways.items():
            comparison = compare(read_ledger(directory), Target.core(core, *options).blocks())
            assert not comparison.missing and not comparison.extra, f"with {way}: {comparison}"


def test_ways_differ(directory: Path, ways: Ways) -> None:
    """That the three ways are three: `info` tells where each knows from."""
    with start(Heap(("--threads=1", "--slots=100")), SYSTEM, directory) as program:
        told = {way: Target.process(program.pid, *options).run("info").stdout for way, options in ways.items()}
    assert len(set(told.values())) == len(told), told
