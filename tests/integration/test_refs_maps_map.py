"""Pointers into a block, mappings by owner, and the picture, of a program that has some of each."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from karst_command import TESTS, Target
from karst_programs import Program, core_of, gcore, started


@pytest.fixture
def program(directory: Path) -> Iterator[Program]:
    with started([TESTS / "pointers"], directory) as program:
        yield program


def facts(program: Program) -> dict[str, int]:
    return {name: int(value, 0) for name, value in (line.split() for line in program.lines if " " in line)}


def by_address(answer: dict) -> dict[int, dict]:
    return {int(ref["address"], 16): ref for ref in answer["refs"] if ref["address"]}


def check_refs(target: Target, said: dict[str, int]) -> None:
    answer = target.json("refs", hex(said["block"] + 1234), "--all")
    assert int(answer["block"]["address"], 16) == said["block"]
    assert answer["total"] == answer["shown"] == len(answer["refs"])
    refs = by_address(answer)
    for place, kind in (("data", "global"), ("bss", "global"), ("storage", "thread"), ("stack", "stack")):
        assert refs[said[place]]["kind"] == kind, place
        assert refs[said[place]]["exact"] and not refs[said[place]]["stale"]
    assert refs[said["stack"]]["thread"] == said["thread"]
    assert refs[said["stack"]]["offset"] > 0
    inner = refs[said["holder"] + 7 * 8]
    assert (inner["kind"], inner["into"], inner["exact"]) == ("block", 40, False)
    assert int(inner["block"]["address"], 16) == said["holder"] and inner["offset"] == 7 * 8
    mapped = refs[said["mapped"] + 3 * 8]
    assert (mapped["kind"], int(mapped["block"]["address"], 16)) == ("block", said["mapped"])
    stale = refs[said["freed"] + 600 * 8]
    assert (stale["kind"], stale["stale"], stale["block"]["state"]) == ("freed block", True, "free")
    assert refs[said["anonymous"] + 5 * 8]["kind"] == "other"
    few = target.json("refs", hex(said["block"]), "--limit", "2")
    assert (few["total"], few["shown"], few["counts"]) == (answer["total"], 2, answer["counts"])


def test_refs(program: Program) -> None:
    check_refs(Target.process(program.pid), facts(program))


def test_refs_in_core(program: Program) -> None:
    said = facts(program)
    check_refs(Target.core(core_of(program)), said)


def test_refs_as_text(program: Program) -> None:
    said = facts(program)
    text = Target.process(program.pid).run("refs", hex(said["block"])).stdout
    assert "pointer_in_data in " in text
    assert f"stack of thread {said['thread']}, sp+0x" in text
    assert f"live 5,000-byte block {said['holder']:#x} +0x38" in text


def test_refs_outside_heaps(program: Program) -> None:
    said = facts(program)
    answer = Target.process(program.pid).json("refs", hex(said["anonymous"]))
    assert answer["block"] is None
    assert all(int(ref["value"], 16) == said["anonymous"] for ref in answer["refs"])


def owners(answer: dict) -> dict[str, int]:
    return {row["owner"]: row["mappings"] for row in answer["owners"]}


def owner_of(answer: dict, address: int) -> str:
    return next(
        row["owner"] for row in answer["list"] if int(row["start"], 16) <= address < int(row["end"], 16)
    )


def check_maps(answer: dict, said: dict[str, int]) -> None:
    assert sum(owners(answer).values()) == answer["mappings"]
    assert sum(row["mappings"] for row in answer["reasons"]) == answer["mappings"]
    assert owner_of(answer, said["block"]) == "brk_heap"
    assert owner_of(answer, said["mapped"]) == "mapped_blocks"
    assert owner_of(answer, said["data"]) == "executable_data"
    assert owner_of(answer, said["stack"]) == "stacks"
    counts = owners(answer)
    assert counts["stacks"] == 2 and counts["guards"] == 1
    assert counts["arena_heaps"] == counts["arena_tails"] == 1
    reasons = {row["reason"]: row["mappings"] for row in answer["reasons"]}
    # Three pages that can't be written, and three of those that can, behind them.
    assert reasons["protection"] >= 6


def test_maps(program: Program) -> None:
    answer = Target.process(program.pid).json("maps", "--list")
    check_maps(answer, facts(program))
    lines = Path(f"/proc/{program.pid}/maps").read_text().splitlines()
    assert answer["mappings"] == sum("[vsyscall]" not in line for line in lines)
    assert answer["limit"] == int(Path("/proc/sys/vm/max_map_count").read_text())
    assert answer["limit_known"] is True
    resident = sum(row["resident_bytes"] for row in answer["list"])
    pages = int(Path(f"/proc/{program.pid}/statm").read_text().split()[1])
    # The kernel's count of resident pages lags behind by up to 64 a thread (SPLIT_RSS_COUNTING and its heirs).
    assert abs(resident - pages * 4096) <= 256 * 4096


def test_maps_in_core(program: Program) -> None:
    said = facts(program)
    check_maps(Target.core(core_of(program)).json("maps", "--list"), said)


def test_maps_in_gcore(program: Program) -> None:
    """gcore saves memory without any permission as if it could be read."""
    said = facts(program)
    check_maps(Target.core(gcore(program.pid, program.directory)).json("maps", "--list"), said)


def test_map(program: Program) -> None:
    target = Target.process(program.pid)
    picture, summary = target.json("map"), target.json("summary")["total"]
    for state in ("free", "cached", "top"):
        assert picture[f"{state}_bytes"] == summary[state]["bytes"]
    assert picture["live_bytes"] + picture["mapped_bytes"] == summary["live"]["bytes"]
    assert len(picture["arenas"]) == 2
    for arena in picture["arenas"]:
        assert sum(row["live_bytes"] for row in arena["rows"]) == arena["live_bytes"]
        assert all(len(row["cells"]) <= picture["columns"] for row in arena["rows"])


def test_map_closer(program: Program) -> None:
    said = facts(program)
    page = said["holder"] & ~4095
    picture = Target.process(program.pid).json("map", "--from", hex(page), "--to", hex(page + 4096), "--rows", "8")
    states = ("live", "free", "cached", "top", "metadata", "unknown")
    assert sum(picture[f"{state}_bytes"] for state in states) == 4096
    assert picture["cell_bytes"] == 16


def test_map_as_file(program: Program, directory: Path) -> None:
    target = Target.process(program.pid)
    for name in ("map.png", "map.svg"):
        answer = target.json("map", "--output", str(directory / name))
        assert answer["file"] == str(directory / name)
        content = (directory / name).read_bytes()
        if name.endswith("png"):
            assert content[:8] == b"\x89PNG\r\n\x1a\n"
            assert struct.unpack(">II", content[16:24]) == (answer["width"], answer["height"])
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")


def test_arenas_of_two_allocators_are_told_apart_in_the_file(directory: Path) -> None:
    """cairo writes letters as shapes: as many bold ones in a line as an arena's name has."""
    script = "kept = [str(number) for number in range(20000)]\nprint('ready', flush=True)\nimport time; time.sleep(600)"
    with started(["/usr/bin/python3", "-c", script], directory) as program:
        target = Target.process(program.pid)
        arenas = target.json("map")["arenas"]
        assert target.run("map", "--output", str(directory / "map.svg")).returncode == 0
    names = {arena["arena"] for arena in arenas}
    assert names == {"glibc/main", "pymalloc/main"}
    lines = Counter((use.get("y"), (use.get("{http://www.w3.org/1999/xlink}href") or "").split("-")[0])
                    for use in ElementTree.parse(directory / "map.svg").iter("{http://www.w3.org/2000/svg}use"))
    for arena in arenas:
        segments = arena["segments"]
        title = f"{arena['arena']}, {segments[0]['kind'] if len(segments) == 1 else f'{len(segments)} segments'}"
        assert {len(title), len(title.replace(" ", ""))} & set(lines.values()), (title, lines)


def test_map_mistakes(program: Program, directory: Path) -> None:
    target = Target.process(program.pid)
    for arguments, words in (
        (("--output", "map.jpeg"), "has to end in .png or .svg"),
        (("--output", str(directory / "none" / "map.png")), "No such file or directory"),
        (("--from", "0x1000", "--to", "0x10"), "--from has to be below --to"),
        (("--from", "0x1000", "--to", "0x2000"), "nothing to draw"),
        (("--rows", "0"), "--rows: from 1 to"),
    ):
        done = target.run("map", *arguments)
        assert done.returncode == 2
        assert words in done.stderr and done.stderr.count("\n") == 1
    assert json.loads(target.run("map", "--arena", "main", "--json").stdout)["arenas"][0]["arena"] == "main"
