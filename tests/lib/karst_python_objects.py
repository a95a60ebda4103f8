"""What karst has to say of tests/programs/objects.py, on any Python: what CPython says of itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karst_command import Target
from karst_programs import Program, core_of
from karst_pythons import PROGRAMS, Python, told

# "class   size   num pools   blocks in use  avail blocks"
CLASS_ROW = re.compile(r"^ +\d+ +(\d+) +(\d+) +(\d+) +(\d+)$", re.MULTILINE)
SCRIPT = PROGRAMS / "objects.py"
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


def objects(target: Target, *arguments: str) -> dict[str, Any]:
    (runtime,) = target.json("py-objects", *arguments)["runtimes"]
    return runtime


def assert_types(target: Target, program: Program) -> None:
    """What gc.get_objects() counted, and what counting itself makes: the Counter, and at most a tuple."""
    (counted,), (own,) = told(program, "types"), told(program, "own")
    answer = objects(target, "--all")
    assert answer["lists_found"] and not answer["lists_damaged"]
    tracked = {row["type"]: row["tracked"] for row in answer["types"] if row["tracked"]}
    more = {name: tracked.get(name, 0) - counted.get(name, 0) for name in {*tracked, *counted}}
    assert more.pop("collections.Counter") == 1
    assert more.pop("tuple") in (0, 1)
    assert not any(more.values()), {name: count for name, count in more.items() if count}

    rows = {row["type"]: row for row in answer["types"]}
    assert {name: rows[f"__main__.{name}"]["objects"] for name in own} == own
    # Each object in a list of the collector's is in a block, too.
    missing = [row for row in answer["types"] if row["objects"] - row["kept"] < row["tracked"]]
    assert not missing, missing
    live = sum(block.size for block in target.blocks("--arena", "pymalloc/main", "--state", "live"))
    outside = sum(block.size for block in target.blocks("--arena", "glibc/main", "--state", "live"))
    outside += sum(block.size for block in target.blocks("--arena", "mapped", "--state", "live"))
    assert 0 < answer["no_objects"]["bytes"] < live / 4
    assert live <= answer["total"]["bytes"] + answer["no_objects"]["bytes"] <= live + outside


def assert_single_objects(target: Target, program: Program, python: Python) -> None:
    (ids,), (sizes,) = told(program, "ids"), told(program, "sizes")
    largest = {int(one["address"], 16): one for one in objects(target, "--largest", "--limit", "8")["objects"]}
    if python.minor >= 15:  # a bytearray's bytes are an object of their own
        del ids["big_bytes"]
        assert [one["bytes"] for one in largest.values() if one["type"] == "bytes" and one["bytes"] > 500000]
    for name, size in sizes.items():
        if name not in ids:
            continue
        one = largest[ids[name]]
        # getsizeof() has the collector's header; the block is rounded up, by as much as a page.
        assert size <= one["bytes"] + one["buffer_bytes"] <= size + 4096, name
    assert largest[ids["big_text"]]["value"] == "1,200,000 characters"

    def where(address: int) -> list[str]:
        return [one["text"] for one in objects(target, "--where", hex(address))["referrers"]]

    assert where(ids["plain"]) == ["item 7 of list, 100 items"], where(ids["plain"])
    assert where(ids["slotted"]) == ["item 3 of list, 100 items"], where(ids["slotted"])
    line = next(number for number, line in enumerate(SCRIPT.read_text().splitlines(), 1) if "time.sleep" in line)
    assert where(ids["kept"]) == [f"local kept of main, line {line}"], where(ids["kept"])
    (holder,) = where(ids["name"])
    assert holder == ("attribute name of __main__.Plain" if python.minor >= 11 else
                      "value of 'name' in dict, 2 items")

    def facts(address: int) -> list[tuple[str, str]]:
        return [(fact["name"], fact["text"]) for fact in target.json("block", hex(address))["facts"]]

    text = facts(ids["big_text"] + 100000)
    assert ("object", "str, 1,200,000 characters; 1 reference") in text
    assert ("referred by", f"local big_text of main, line {line}") in text
    (items,) = [fact["address"] for fact in target.json("block", hex(ids["big_list"]))["facts"]
                if fact["name"] == "buffer"]
    assert ("holds", "the items of list, 60,000 items") in facts(int(items, 16))
    (one,) = [one for one in objects(target, "--type", "__main__.Plain", "--all")["objects"]
              if int(one["address"], 16) == ids["plain"]]
    assert one["type"] == "__main__.Plain" and one["references"] >= 1


def assert_objects_each_way(python: Python, directory: Path) -> None:
    with python.running("objects.py", directory) as program:
        for target in each_way(program):
            assert_types(target, program)
            assert_single_objects(target, program, python)


def assert_nested_arenas(python: Python, directory: Path) -> None:
    """Arenas that lie in blocks of glibc: each byte counts once, and each allocator names what it has."""
    with python.running("nested_arenas.py", directory) as program:
        kept = int(program.wait_line("kept").split()[1], 16)
        for target in each_way(program):
            answer = target.json("summary")
            glibc, pymalloc, total = *answer["allocators"], answer["total"]
            assert (glibc["name"], pymalloc["name"]) == ("glibc", "pymalloc")
            assert pymalloc["nested_bytes"] > pymalloc["system_bytes"] / 2 and glibc["nested_bytes"] == 0
            both = glibc["system_bytes"] + pymalloc["system_bytes"]
            assert total["system_bytes"] == both - pymalloc["nested_bytes"]
            states = ("live", "cached", "free", "top", "metadata", "unknown")
            assert sum(total[state]["bytes"] for state in states) == total["system_bytes"]
            healthy, findings = target.check()
            assert healthy, findings

            block = target.json("block", hex(kept))
            assert block["block"]["allocator"] == "pymalloc" and block["within"]["allocator"] == "glibc"
            outer = int(block["within"]["address"], 16)
            assert outer <= kept < outer + block["within"]["size"]
            around = target.json("block", hex(outer - 8))
            assert around["block"]["allocator"] == "glibc" and around["within"] is None
            assert [fact["text"] for fact in around["facts"] if fact["name"] == "is"] == [
                f"pages of pymalloc {python.version}, {pymalloc['system_bytes'] // pymalloc['extents']} bytes"]
