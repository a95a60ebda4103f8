"""`karst pools --pages`: which pages of all heaps a fork still shares, and what copied the others; against /proc."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from karst_command import Target
from karst_programs import Program, gcore, started
from karst_pythons import system_python, told

PAGE = 4096
PRESENT, EXCLUSIVE = 1 << 63, 1 << 56
WORKERS = ("idle", "reader", "collector", "writer")


@dataclass
class Family:
    """The program, its workers by name, and the pages by what the parent says is on them."""

    program: Program
    workers: dict[str, int]
    pages: dict[str, set[int]]

    def own(self, worker: str, kind: str) -> int:
        """How many of these pages are the worker's own, by its pagemap."""
        with open(f"/proc/{self.workers[worker]}/pagemap", "rb", buffering=0) as file:
            return sum(self._entry(file, page) & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE
                       for page in self.pages[kind])

    @staticmethod
    def _entry(file: Any, page: int) -> int:
        file.seek(page * 8)
        return int(struct.unpack("Q", file.read(8))[0])

    def ask(self, worker: str) -> dict[str, Any]:
        (runtime,) = Target.process(self.workers[worker]).json("pools", "--pages", "--all")["runtimes"]
        return runtime


@pytest.fixture(params=["", "freeze"], ids=["thawed", "frozen"])
def family(request: pytest.FixtureRequest, directory: Path) -> Iterator[Family]:
    with system_python().running("forked_pages.py", directory, *filter(None, [request.param])) as program:
        workers = {line.split()[1]: int(line.split()[2]) for line in program.lines if line.startswith("child")}
        assert tuple(workers) == WORKERS
        pages = {row["kind"]: set(row["pages"]) for row in told(program, "pages")}
        pages["texts"] -= pages["collector"]
        pages["large"] -= pages["collector"] | pages["texts"]
        yield Family(program, workers, pages)


def entries(pid: int, start: int, end: int) -> list[int]:
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(start // PAGE * 8)
        return [entry for entry, in struct.iter_unpack("Q", file.read((end - start) // PAGE * 8))]


def heap_of(pid: int) -> dict[str, int]:
    """The figures of [heap] in smaps, in bytes."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    piece = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text.partition("[heap]\n")[2], flags=re.MULTILINE)[0]
    return {key: int(size) * 1024 for key, size in re.findall(r"^(\w+): +(\d+) kB$", piece, re.MULTILINE)}


def test_figures_are_those_of_proc(family: Family) -> None:
    for worker in WORKERS:
        answer, pid = family.ask(worker), family.workers[worker]
        for row in answer["extents"]:
            start = int(row["address"], 16)
            told_pages = entries(pid, start, start + row["size"])
            present = [entry for entry in told_pages if entry & PRESENT]
            own = sum(1 for entry in present if entry & EXCLUSIVE) * PAGE
            assert row["own_bytes"] == own, (worker, row)
            assert row["own_bytes"] + row["shared_bytes"] == row["resident_bytes"] <= len(present) * PAGE
            for share in ("own", "shared"):
                assert sum(row[share].values()) == row[f"{share}_bytes"]
        groups = {row["memory"]: row for row in answer["groups"]}
        smaps = heap_of(pid)
        assert groups["glibc heaps"]["own_bytes"] == smaps["Private_Clean"] + smaps["Private_Dirty"]
        assert groups["glibc heaps"]["shared_bytes"] == smaps["Shared_Clean"] + smaps["Shared_Dirty"]
        for key in ("resident_bytes", "own_bytes", "shared_bytes"):
            assert answer["total"][key] == sum(row[key] for row in answer["groups"])
            assert answer["total"][key] == sum(row[key] for row in answer["extents"])


def test_what_copied_them(family: Family) -> None:
    """Each worker's one deed, told by what is on the pages that it copied."""
    frozen = len(family.pages["collector"]) < 100
    copied = {worker: family.ask(worker)["total"]["own"] for worker in WORKERS}
    texts, large, items = (len(family.pages[kind]) * PAGE for kind in ("texts", "large", "items"))
    assert large > 10 << 20 and texts > 2 << 20 and items > 256 << 10

    # To look at texts copies pages with counts alone, in pymalloc's arenas and in malloc's heap.
    assert family.own("reader", "texts") * PAGE > 0.98 * texts
    assert family.own("reader", "large") * PAGE > 0.98 * large
    assert 0.98 * (texts + large) < copied["reader"]["counts"] < 1.1 * (texts + large)
    groups = {row["memory"]: row for row in family.ask("reader")["groups"]}
    assert groups["glibc heaps"]["own"]["counts"] > 0.98 * large

    # To collect copies the headers' pages, and no text; not those of gc.freeze().
    headers = family.own("collector", "collector") * PAGE
    assert headers <= copied["collector"]["collector"] <= headers + 16 * PAGE
    assert frozen or headers > 2 << 20
    assert family.own("collector", "large") * PAGE < 0.05 * large

    # To turn a list around copies its items alone, in a mapping of their own.
    assert family.own("writer", "items") * PAGE > 0.98 * items
    assert family.own("writer", "texts") * PAGE < 0.1 * texts
    (block,) = [row for row in family.ask("writer")["extents"]
                if row["kind"] == "mapped" and row["own"]["writes"] > 0.9 * items]
    assert block["text"] == "items of list, 40,000 items" and block["size"] >= items
    for worker in ("idle", "reader", "collector"):
        (same,) = [row for row in family.ask(worker)["extents"] if row["address"] == block["address"]]
        assert same["own_bytes"] <= 2 * PAGE, worker

    assert all(bytes_ < 0.1 * large for bytes_ in copied["idle"].values()), copied["idle"]


def test_text_and_limits(family: Family) -> None:
    target = Target.process(family.workers["writer"])
    shown = target.run("pools", "--pages", "--all").stdout
    assert re.search(r"^0x[0-9a-f]+ +glibc mapped .* items of list, 40,000 items$", shown, re.MULTILINE), shown
    assert "shown" not in shown
    short = target.run("pools", "--pages", "--limit", "1").stdout
    assert re.search(r"^1 of \d+ extents shown; --all shows the others$", short, re.MULTILINE), short


def test_where_it_cannot_be_told(directory: Path) -> None:
    with system_python().running("pinned_arenas.py", directory) as program:
        core = gcore(program.pid, directory)
    done = Target.core(core).run("pools", "--pages")
    assert done.returncode == 2 and "which pages are shared can't be told of" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
    with started(["sleep", "1000"], directory, ready=False) as program:
        done = Target.process(program.pid).run("pools", "--pages")
        assert done.returncode == 2 and "no Python in process" in done.stderr and len(done.stderr.splitlines()) == 1
