"""`karst pools`: how full arenas are, what pins them, and what of them a fork still shares."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from karst_command import Target
from karst_python_objects import each_way, mallocstats
from karst_python_stepped import assert_each_instruction
from karst_pythons import system_python, told

PAGE = 4096
PRESENT, EXCLUSIVE = 1 << 63, 1 << 56


def pools(target: Target, *arguments: str) -> dict[str, Any]:
    (heap,) = target.json("pools", *arguments)["heaps"]
    return heap


def test_classes_are_cpythons_own(directory: Path) -> None:
    with system_python().running("objects.py", directory) as program:
        classes, totals = mallocstats(directory)
        for target in each_way(program):
            heap = pools(target, "--classes")
            assert {row["size"]: (row["pools"], row["live"], row["free"]) for row in heap["classes"]
                    if row["pools"]} == {size: row for size, row in classes.items() if row[0]}
            assert heap["total"]["live_bytes"] == totals["bytes in allocated blocks"]
            assert heap["total"]["unused_bytes"] == totals["bytes in available blocks"]
            (unused,) = [value for name, value in totals.items() if "unused pools" in name]
            assert heap["total"]["free_pools"] * heap["pool_size"] == unused
            lost = sum(row["lost_bytes"] for row in heap["classes"])
            assert lost == totals["bytes lost to pool headers"] + totals["bytes lost to quantization"]
            arenas = pools(target, "--all", "--sort", "address")["arenas"]
            for key in ("pools", "free_pools", "live_blocks", "live_bytes", "unused_bytes"):
                assert sum(row[key] for row in arenas) == heap["total"][key]


def test_pins(directory: Path) -> None:
    with system_python().running("pinned_arenas.py", directory) as program:
        (pins,) = told(program, "pins")
        for target in each_way(program):
            heap = pools(target, "--all")
            # A str of a subclass has its characters in a block of their own.
            pinned = [row for row in heap["arenas"]
                      if "__main__.Text" in {kind["type"] for kind in row["live"]} <= {"__main__.Text", None}]
            assert pinned, "an arena each for some of the texts"
            assert heap["pinned"]["arenas"] >= len(pinned)
            assert [row["live_bytes"] for row in heap["arenas"]] == sorted(row["live_bytes"] for row in heap["arenas"])
            met = []
            for row in pinned:
                blocks = pools(target, "--blocks", row["address"])["blocks"]
                assert len(blocks) == row["live_blocks"] == sum(kind["blocks"] for kind in row["live"]) < 10
                met += [int(block["object"], 16) for block in blocks if block["type"]]
            assert set(met) <= set(pins) and len(set(met)) == len(met)


def test_holes_and_pins_as_everywhere(directory: Path) -> None:
    """The few objects between free pools are pins, and what they keep apart are holes."""
    with system_python().running("pinned_arenas.py", directory) as program:
        (pinned,) = told(program, "pins")
        for target in each_way(program):
            live = sorted(block.address for block in target.blocks("--arena", "pymalloc/main", "--state", "live"))
            found = []
            for pin in target.json("pins", "--arena", "pymalloc/main", "--limit", "100")["pins"]:
                inside = [address for address in live if int(pin["address"], 16) <= address <= int(pin["last"], 16)]
                assert len(inside) == pin["blocks"] and inside[0] == int(pin["address"], 16)
                assert inside[-1] == int(pin["last"], 16) and pin["gained_bytes"] >= 16384
                found += inside
            # A text of a subclass has the collector's header before it.
            assert {address - 16 for address in pinned} <= set(found), (pinned, found)
            answer = target.json("holes", "--arena", "pymalloc/main", "--limit", "1000")
            (pymalloc,) = [row for row in target.json("summary")["allocators"] if row["name"] == "pymalloc"]
            assert answer["free_bytes"] + answer["outside"]["free_bytes"] == pymalloc["free"]["bytes"]
            big = [hole for hole in answer["biggest"] if hole["size"] >= 65536]
            assert len(big) >= len(pinned)
            for hole in big:
                start = int(hole["address"], 16)
                assert hole["usable_bytes"] == hole["size"]
                assert not [address for address in live if start <= address < start + hole["size"]]


def own_pages(pid: int, start: int, end: int) -> int:
    """Bytes in pages that this process alone maps, by /proc/PID/pagemap."""
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(start // PAGE * 8)
        data = file.read((end - start) // PAGE * 8)
    entries = struct.unpack(f"{len(data) // 8}Q", data)
    return PAGE * sum(1 for entry in entries if entry & PRESENT and entry & EXCLUSIVE)


def test_forked_workers(directory: Path) -> None:
    """The old story: to free caches in the workers, or only to look at what is in them, takes memory."""
    with system_python().running("forked_caches.py", directory) as program:
        children = {line.split()[1]: int(line.split()[2]) for line in program.lines if line.startswith("child")}
        own, cache = {}, 0
        for name, pid in {**children, "parent": program.pid}.items():
            heap = pools(Target.process(pid), "--all")
            for row in heap["arenas"]:
                start = int(row["address"], 16)
                assert row["own_bytes"] == own_pages(pid, start, start + heap["arena_size"]), name
                assert row["own_bytes"] <= row["resident_bytes"] <= heap["arena_size"]
            own[name] = heap["total"]["own_bytes"]
            cache = max(cache, heap["total"]["live_bytes"])
        assert own["idle"] < cache / 10, "still shared"
        assert own["reader"] > cache * 0.9, "each page of the cache was copied by counting references"
        assert own["clearer"] > own["idle"], "freeing wrote to pages that were shared"

        # To look at it all does not copy it: process_vm_readv() would.
        target = Target.process(children["idle"])
        target.json("py-objects", "--all")
        target.json("refs", "0x1000")
        assert pools(target)["total"]["own_bytes"] < cache / 10

        tree = {row["pid"]: row for row in Target.process(program.pid).json("rss", "--tree")["tree"]}
        assert set(tree) == {program.pid, *children.values()}
        idle, reader, clearer = (tree[children[name]] for name in ("idle", "reader", "clearer"))
        assert reader["uss_bytes"] - idle["uss_bytes"] > cache * 0.8
        assert clearer["uss_bytes"] > idle["uss_bytes"]
        for row in tree.values():
            assert row["uss_bytes"] <= row["pss_bytes"] <= row["rss_bytes"] <= row["vss_bytes"]
        total = sum(row["pss_bytes"] for row in tree.values())
        assert total < sum(row["rss_bytes"] for row in tree.values())


def test_a_process_without_pools_says_so(directory: Path) -> None:
    with system_python().running("objects.py", directory, environment={"PYTHONMALLOC": "malloc"}) as program:
        done = Target.process(program.pid).run("pools")
        assert done.returncode == 2 and "PYTHONMALLOC=malloc" in done.stderr
        (runtime,) = Target.process(program.pid).json("py-objects", "--all")["runtimes"]
        assert {row["type"]: row["objects"] for row in runtime["types"]}["__main__.Plain"] > 100


@pytest.mark.parametrize("allocator", ["pymalloc", "debug"])
def test_each_instruction(allocator: str) -> None:
    assert_each_instruction(system_python(), allocator)
