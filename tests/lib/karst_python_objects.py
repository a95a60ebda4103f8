"""What karst has to say of tests/programs/objects.py, on any Python: what CPython says of itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from karst_command import Target
from karst_programs import Program, core_of
from karst_pythons import Python

# "class   size   num pools   blocks in use  avail blocks"
CLASS_ROW = re.compile(r"^ +\d+ +(\d+) +(\d+) +(\d+) +(\d+)$", re.MULTILINE)
Classes = dict[int, tuple[int, int, int]]


def mallocstats(directory: Path) -> tuple[Classes, dict[str, int]]:
    """By size: pools, blocks in use, free blocks; and the totals by their names."""
    text = (directory / "mallocstats").read_text()
    classes = {int(size): (int(pools), int(used), int(free)) for size, pools, used, free in CLASS_ROW.findall(text)}
    totals = {name: int(number.replace(",", ""))
              for name, number in re.findall(r"^(?:# )?(.+?) += +([\d,]+)$", text, re.MULTILINE)}
    return classes, totals


def each_way(program: Program) -> Iterator[Target]:
    """Alive and from a core, with .dynsym and by structure alone. The core ends the program."""
    ways: list[list[str]] = [[], ["--no-symbols"]]
    for options in ways:
        yield Target.process(program.pid, *options)
    core = core_of(program)
    for options in ways:
        yield Target.core(core, *options)


def assert_pools(target: Target, directory: Path) -> None:
    classes, totals = mallocstats(directory)
    assert len(classes) > 25
    rows = target.json("runs", "--classes", "--all")["classes"]
    pools = {row["region_size"]: (row["runs"], row["live"], row["free"]) for row in rows if row["kind"] == "pool"}
    assert pools == classes
    (free,) = [row for row in rows if row["kind"] == "free pool"]
    (unused,) = [value for name, value in totals.items() if "unused pools" in name]
    assert free["bytes"] == unused

    live: Counter[int] = Counter()
    bytes_of: Counter[str] = Counter()
    for block in target.blocks("--arena", "pymalloc/main"):
        assert block.allocator == "pymalloc"
        bytes_of[block.state] += block.size
        if block.state == "live":
            live[block.size] += 1
    assert live == {size: used for size, (_, used, _) in classes.items() if used}
    assert bytes_of["live"] == totals["bytes in allocated blocks"]
    assert bytes_of["free"] == totals["bytes in available blocks"] + unused
    assert bytes_of["metadata"] == sum(totals[f"bytes lost to {what}"] for what in (
        "pool headers", "quantization", "arena alignment"))

    (arenas,) = [value for name, value in totals.items() if "bytes/arena" in name]
    (summary,) = [row for row in target.json("summary")["allocators"] if row["name"] == "pymalloc"]
    assert summary["system_bytes"] == arenas == sum(bytes_of.values())
    assert summary["live"] == {"blocks": sum(live.values()), "bytes": bytes_of["live"]}
    bins = {row["name"]: row["blocks"] for row in target.json("bins", "--all", "pymalloc/main")["bins"]}
    assert {f"pool {size}": count for size, (_, _, count) in classes.items()}.items() <= bins.items()

    healthy, findings = target.check()
    assert healthy, findings


def assert_pools_each_way(python: Python, directory: Path) -> None:
    with python.running("objects.py", directory) as program:
        for target in each_way(program):
            assert_pools(target, directory)
