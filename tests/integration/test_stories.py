"""Two heaps with a story: a hole that a request misses by a little, and a heap that will not shrink."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from karst_command import TESTS, Target
from karst_programs import Program, core_of, started


def facts(program: Program) -> dict[str, int]:
    """What the program printed: "name value" lines."""
    pairs = [line.split() for line in program.lines if line.count(" ") == 1]
    return {name: int(value, 0) for name, value in pairs if name != "ready"}


@pytest.fixture
def pinned(directory: Path) -> Iterator[Program]:
    with started([TESTS / "pinned_hole"], directory) as program:
        yield program


@pytest.fixture
def unshrinking(directory: Path) -> Iterator[Program]:
    with started([TESTS / "wont_shrink"], directory) as program:
        yield program


def check_pinned_hole(target: Target, said: dict[str, int]) -> None:
    fit = target.json("holes", "--fit", "8880819")["fit"]
    assert fit["request"] == 8880819
    assert fit["fits"] is False
    nearest = fit["nearest"][0]
    assert int(nearest["address"], 16) == said["hole"]
    assert nearest["size"] == 8880480
    assert nearest["needed"] == 8880832
    assert nearest["short_by"] == 352
    assert int(nearest["blocked_by"]["address"], 16) == said["pin"]
    assert nearest["blocked_by"]["size"] == 240
    assert nearest["blocked_by"]["usable"] == 232
    assert nearest["size_without_blocker"] == said["joined"]
    text = " ".join(target.run("holes", "--fit", "8880819").stdout.split())
    assert "does not fit; the nearest hole has 8,880,480 bytes, 339 fewer than asked (352 fewer than" in text
    assert f"blocked by the 232-byte block at {said['pin']:#x}" in text
    assert f"{said['joined']:,} bytes would be in one piece: enough" in text


def test_pinned_hole(pinned: Program) -> None:
    check_pinned_hole(Target.process(pinned.pid), facts(pinned))


def test_pinned_hole_in_core(pinned: Program) -> None:
    said = facts(pinned)
    check_pinned_hole(Target.core(core_of(pinned)), said)


def test_what_fits(pinned: Program) -> None:
    said = facts(pinned)
    target = Target.process(pinned.pid)
    most = target.json("holes", "--fit", str(8880480 - 8))["fit"]
    assert most["fits"] is True
    assert int(most["best"]["address"], 16) == said["hole"]
    assert most["nearest"] == []
    # From the threshold on, which the program raised to 32 MiB, malloc maps what finds no room.
    assert target.json("holes", "--fit", "40M")["fit"]["mapped"] is True
    assert target.json("holes", "--fit", "20M")["fit"]["mapped"] is False


def test_holes_bound_by_live_blocks(pinned: Program) -> None:
    said = facts(pinned)
    holes = Target.process(pinned.pid).json("holes")
    assert holes["holes"] == 2
    biggest = holes["biggest"][0]
    assert int(biggest["address"], 16) == said["hole"]
    assert biggest["size"] == holes["largest"] == 8880480
    assert int(biggest["before"], 16) == said["before"]
    assert int(biggest["after"], 16) == said["pin"]
    assert biggest["resident_bytes"] == 8880480
    assert sum(row["bytes"] for row in holes["census"]) == holes["bytes"]
    assert [row["holes"] for row in holes["census"] if row["min"] <= 8880480 <= row["max"]] == [1]


def trimmed(program: Program) -> int:
    """Make the program call malloc_trim(0); by how much its resident set shrank."""
    assert program.process.stdout is not None
    os.kill(program.pid, signal.SIGUSR1)
    assert select.select([program.process.stdout], [], [], 60)[0], "the program did not trim"
    words = os.read(program.process.stdout.fileno(), 4096).split()
    assert words[0] == b"trimmed"
    return int(words[1]) - int(words[2])


def check_top_pin(pins: list[dict], said: dict[str, int]) -> None:
    top = next(pin for pin in pins if pin["kind"] == "top")
    assert int(top["address"], 16) == said["last"]
    assert top["blocks"] == 1
    assert top["state"] == "live"
    assert top["to_top_bytes"] >= top["to_system_bytes"] > 0


def test_heap_that_will_not_shrink(unshrinking: Program) -> None:
    said = facts(unshrinking)
    target = Target.process(unshrinking.pid)
    answer = target.json("pins")
    check_top_pin(answer["pins"], said)
    between = [pin for pin in answer["pins"] if pin["kind"] == "between"]
    assert between and all(pin["blocks"] == 1 for pin in between)
    # All that was kept, but the first block and the last, lies between two holes.
    assert answer["pinned"]["pins"] == said["kept"] - 2
    expected = answer["trim"]["resident_bytes"]
    assert expected > 250 << 20
    returned = trimmed(unshrinking)
    assert abs(returned - expected) <= expected / 100
    # Once is enough, and looking at the heap does not bring its pages back.
    assert target.json("pins")["trim"]["resident_bytes"] < 1 << 20
    assert target.json("pins")["trim"]["resident_bytes"] < 1 << 20


def test_heap_that_will_not_shrink_in_core(unshrinking: Program) -> None:
    said = facts(unshrinking)
    live = Target.process(unshrinking.pid).json("pins")
    core = Target.core(core_of(unshrinking)).json("pins")
    check_top_pin(core["pins"], said)
    assert core["pins"] == live["pins"]
    assert core["pinned"] == live["pinned"]
    assert core["trim"]["bytes"] == live["trim"]["bytes"]


def test_pins_as_text(unshrinking: Program) -> None:
    said = facts(unshrinking)
    text = Target.process(unshrinking.pid).run("pins", "--bytes").stdout
    assert re.search(rf"^{said['last']:#x} .* 1 +live", text, re.MULTILINE)
    assert "malloc_trim(0)) would return" in text
