"""The flight recorder, in programs that know what they called."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from karst_command import Target, karst
from karst_preload import ALLOCATORS, CALLS, running
from karst_programs import core_of


def history(target: Target, *arguments: str) -> Any:
    return target.json("history", *arguments)


@pytest.mark.parametrize(("threads", "rounds"), [(1, 20000), (2, 60000), (4, 20000)])
def test_history_is_what_happened_in_its_order(threads: int, rounds: int, directory: Path) -> None:
    with running("--recorder=16M", program=(CALLS, "hand", str(threads), str(rounds)), directory=directory) as program:
        answer = history(Target.process(program.pid), "--all")
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
    assert answer["disorder"] == 0 and all(thread["overwritten"] == 0 for thread in answer["threads"])
    wanted: dict[str, list[tuple[int, str]]] = defaultdict(list)
    got: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for address, thread, kind in truth:
        wanted[address].append((int(thread), kind))
    for event in answer["events"]:
        address, kind = (event["block"], "f") if event["event"] == "free" else (event["gave"], "a")
        if address in wanted and any("hand+" in frame["text"] for frame in event["stack"]):
            got[address].append((event["thread"], kind))
    assert got == wanted


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("threads", [2, 4])
def test_no_event_contradicts_another(threads: int, allocator: str, directory: Path) -> None:
    """Threads that free each other's blocks as fast as they can: no block is given twice or freed twice."""
    rounds = int(os.environ.get("KARST_ORDER_ROUNDS", "500000"))
    with running(f"--recorder={rounds // 10000 + 1}M", program=(CALLS, "swap", str(threads), str(rounds)),
                 directory=directory, allocator=allocator) as program:
        answer = history(Target.process(program.pid), "--last", "1")
    assert answer["disorder"] == 0
    assert all(thread["overwritten"] == 0 for thread in answer["threads"])
    assert answer["kept"] == pytest.approx(2 * threads * rounds, abs=200)


def test_history_of_one_address_size_and_thread(directory: Path) -> None:
    with running("--recorder=4M", program=(CALLS, "hand", "2", "2000"), directory=directory) as program:
        target = Target.process(program.pid)
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        address = truth[-1][0]
        events = history(target, address, "--all")["events"]
        assert len(events) == sum(line[0] == address for line in truth)
        inside = history(target, hex(int(address, 16) + 8), "--all")["events"]
        assert len(inside) == len(events)
        thread = int(truth[-1][1])
        assert {event["thread"] for event in history(target, "--thread", str(thread), "--all")["events"]} == {thread}
        sized = history(target, "--size", "30:31", "--all")["events"]
        assert sized and {event["size"] for event in sized} <= {30, 31}
        assert history(target, "--last", "5")["shown"] == 5
        block = target.json("block", address)
        told = next(fact["text"] for fact in block["facts"] if fact["name"] == "history")
        assert told.startswith(f"{len(events)} events kept") and f"by thread {events[-1]['thread']} at hand+" in told
        text = target.run("history", address, "--last", "3").stdout
        assert f"3 of {len(events)} events shown" in text and "hand+" in text


def test_history_of_a_core(directory: Path) -> None:
    with running("--recorder=4M", "--mark", program=(CALLS, "hand", "2", "3000"), directory=directory) as program:
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        core = core_of(program)
    address = truth[-1][0]
    events = history(Target.core(core), address, "--all")["events"]
    assert [(event["thread"], event["event"]) for event in events] == [
        (int(thread), "free" if kind == "f" else "alloc") for at, thread, kind in truth if at == address]


def test_wrap_around_is_told(directory: Path) -> None:
    with running("--recorder=64K", program=(CALLS, "hand", "1", "50000"), directory=directory) as program:
        target = Target.process(program.pid)
        answer = history(target, "--all")
        assert 3000 < answer["kept"] <= 4096 + 8
        lost = sum(thread["overwritten"] for thread in answer["threads"])
        assert lost + answer["kept"] == pytest.approx(100_000, abs=100)
        assert "older events were overwritten" in target.run("history").stdout
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        last = [event["block"] or event["gave"] for event in answer["events"]][-200:]
        assert [line[0] for line in truth[-150:]] == [address for address in last if address in
                                                      {line[0] for line in truth}][-150:]


def test_history_after_a_kill(directory: Path) -> None:
    rings = directory / "rings"
    with running("--recorder=1M", f"--recorder-dir={rings}", program=(CALLS, "hand", "2", "5000"),
                 directory=directory) as program:
        live = history(Target.process(program.pid), "--all")
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        os.kill(program.pid, signal.SIGKILL)
        program.process.wait(timeout=10)
    done = karst("history", "--files", rings, "--all", "--json")
    assert done.returncode == 0, done.stderr
    dead = json.loads(done.stdout)
    assert [event["stack"] for event in dead["events"]] == [event["stack"] for event in live["events"]]
    assert dead["events"] == live["events"] and dead["kept"] == live["kept"]
    assert karst("history", "--files", rings, truth[-1][0], "--all").stdout.count("hand+") == \
        sum(line[0] == truth[-1][0] for line in truth)


def test_forked_children_start_clean(directory: Path) -> None:
    with running("--recorder=1M", program=(CALLS, "fork"), directory=directory) as program:
        children = [int(line.split()[1]) for line in program.lines if line.startswith("child")]
        assert len(children) == 2
        own = history(Target.process(program.pid), "--size", "2000:4000", "--all")["events"]
        assert [event["size"] for event in own] == [*range(2000, 2100), 4000]
        for child in children:
            events = history(Target.process(child), "--size", "2000:4000", "--all")
            assert [event["size"] for event in events["events"]] == [3000, 3001, 3002, 3003, 3004]
            assert {event["thread"] for event in events["events"]} == {child}
