"""Builds of jemalloc that Debian ships none of: linked into a program beside libc's malloc, with a prefix and private
names, of 5.1.0, too; one whose structs no table has, which its debug info tells; and one with use-after-free detection.
`make test-jemalloc-builds` makes them from Debian's sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from karst_command import BUILD, Target
from karst_heaps import Heap, start
from karst_jemalloc import Totals, read_mallctl
from karst_ledger import compare, read_ledger
from karst_libcs import SYSTEM
from karst_programs import core_of

BUILDS = BUILD / "jemalloc"
pytestmark = pytest.mark.skipif(not BUILDS.exists(), reason="make test-jemalloc-builds makes them")

PREFIXED = ["5.1.0-prefixed", "5.3.0-prefixed"]
MOVED = "5.3.0-moved"
STASHING = "5.3.0-stashing"
# That the ledger cannot name; 5.1 has a table for each thread, which without a cache nothing leads to.
OWN_BLOCKS = {"5.1.0-prefixed": 8, "5.3.0-prefixed": 2, MOVED: 2, STASHING: 2}
CONF: dict[str, tuple[tuple[str, ...], str]] = {
    "default": ((), ""),
    "one-thread": (("--threads=1", "--seed=2"), ""),
    "many-threads": (("--threads=16", "--slots=400", "--seed=3"), ""),
    "no-tcache": (("--seed=4",), "tcache:false"),
    "exited-threads": (("--threads=6", "--exited=3", "--seed=5"), "narenas:2"),
    "purged": (("--seed=6",), "dirty_decay_ms:0,muzzy_decay_ms:0"),
}


def prefixed(build: str, name: str, program: str = "ledger") -> Heap:
    arguments, conf = CONF[name]
    return Heap(arguments, {"JE_MALLOC_CONF": conf}, program=str(BUILDS / build / program), others=OWN_BLOCKS[build])


def of_jemalloc(target: Target, verb: str) -> dict[str, object]:
    rows = [row for row in target.json(verb)["allocators"] if row["name"].startswith("jemalloc")]
    assert len(rows) == 1, rows
    row: dict[str, object] = rows[0]
    return row


def layout_of(target: Target) -> str:
    facts = of_jemalloc(target, "info")["facts"]
    assert isinstance(facts, list)
    return str(next(fact["text"] for fact in facts if fact["name"] == "layout"))


def assert_read(target: Target, build: str, directory: Path) -> None:
    """Blocks are the ledger's, totals jemalloc's own, and nothing is damaged."""
    comparison = compare(read_ledger(directory), target.blocks())
    assert not comparison.missing and not comparison.other_usable, str(comparison)
    assert len(comparison.extra) <= OWN_BLOCKS[build], str(comparison)
    told: Totals = read_mallctl(directory)
    own = of_jemalloc(target, "summary")["own"]
    assert isinstance(own, dict) and own.items() >= told.totals.items(), (own, told.totals)
    assert target.check() == (True, [])


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("name", CONF)
@pytest.mark.parametrize("build", PREFIXED)
def test_prefixed_beside_libc(build: str, name: str, end: str, directory: Path) -> None:
    with start(prefixed(build, name), SYSTEM, directory) as program:
        target = ["-p", str(program.pid)] if end == "process" else ["-c", str(core_of(program))]
        with_debug_info, without = Target(*target), Target(*target, "--no-symbols")
        assert layout_of(with_debug_info).startswith(("debug info, 3", "debug info, 4"))  # so many members
        assert not layout_of(without).startswith("debug info")
        assert_read(with_debug_info, build, directory)
        assert_read(without, build, directory)
        names = [row["name"] for row in without.json("summary")["allocators"]]
        assert names == ["glibc", "jemalloc"]


@pytest.mark.parametrize("build", PREFIXED)
def test_prefixed_and_stripped(build: str, directory: Path) -> None:
    stripped = directory / "ledger-stripped"
    subprocess.run(["strip", "-o", stripped, BUILDS / build / "ledger"], check=True)
    with start(prefixed(build, "default", str(stripped)), SYSTEM, directory) as program:
        target = Target.process(program.pid)
        assert not layout_of(target).startswith("debug info")
        assert_read(target, build, directory)


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("name", CONF)
def test_layout_that_no_table_has(name: str, end: str, directory: Path) -> None:
    arguments, conf = CONF[name]
    heap = Heap(arguments, {"LD_PRELOAD": str(BUILDS / MOVED / "libjemalloc.so.2"), "MALLOC_CONF": conf})
    with start(heap, SYSTEM, directory) as program:
        target = ["-p", str(program.pid)] if end == "process" else ["-c", str(core_of(program))]
        with_debug_info, without = Target(*target), Target(*target, "--no-symbols")
        assert layout_of(with_debug_info).startswith(("debug info, 3", "debug info, 4"))  # so many members
        assert_read(with_debug_info, MOVED, directory)
        told = of_jemalloc(without, "info")["facts"]
        assert isinstance(told, list)
        assert any(fact["name"] == "arenas" and fact["text"].startswith("not found") for fact in told)
        assert without.check()[0]


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("name", CONF)
def test_stashed(name: str, end: str, directory: Path) -> None:
    """What is freed at the start of two pages is junked and stashed: 5.3.0 itself dies where one page is enough."""
    arguments, conf = CONF[name]
    conf = ",".join(filter(None, (conf, "lg_san_uaf_align:13")))
    heap = Heap(arguments, {"LD_PRELOAD": str(BUILDS / STASHING / "libjemalloc.so.2"), "MALLOC_CONF": conf})
    with start(heap, SYSTEM, directory) as program:
        target = ["-p", str(program.pid)] if end == "process" else ["-c", str(core_of(program))]
        for options in ([], ["--no-symbols"]):
            assert_read(Target(*target, *options), STASHING, directory)
