"""What karst says of the tasks in a kernel's dump is what the guest said of itself: counters, residency, heaps, cores."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import FIVE_LEVELS, Dump
from elf_core import Core
from karst_command import ROOT, TESTS, Target
from karst_drgn import SCRIPT, DrgnTarget, drgn, run_script
from karst_heaps import totals_of_karst, totals_of_malloc
from karst_ledger import compare, read_ledger

PAGE = 4096
NAMES = ("ledger", "pages")


# ---- counters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_counters_are_exact(dump: Dump, name: str) -> None:
    answer = dump.task(name).json("rss")
    truth = dump.truth
    assert answer["rss_bytes"] == truth.kilobytes(f"{name}/smaps_rollup", "Rss") * 1024
    exact = {row["name"]: row["exact_bytes"] for row in answer["counters"]}
    assert exact["file"] + exact["anonymous"] + exact["shmem"] == answer["rss_bytes"]
    assert exact["swap"] == truth.kilobytes(f"{name}/smaps_rollup", "Swap") * 1024
    assert exact["anonymous"] == truth.kilobytes(f"{name}/smaps_rollup", "Anonymous") * 1024


@pytest.mark.parametrize("name", NAMES)
def test_each_file_shows_what_is_told_of_it(dump: Dump, name: str) -> None:
    answer, truth = dump.task(name).json("rss"), dump.truth
    sources = {row["source"]: row["exact"] for row in answer["sources"]}
    shown = {True: answer["rss_bytes"], False: answer["cached_bytes"]}
    assert shown[sources["smaps"]] == truth.kilobytes(f"{name}/smaps_rollup", "Rss") * 1024
    assert shown[sources["statm"]] == truth.statm_pages(name) * PAGE
    assert shown[sources["status"]] == truth.kilobytes(f"{name}/status", "VmRSS") * 1024
    assert shown[sources["stat"]] == truth.stat_pages(name) * PAGE


@pytest.mark.parametrize("name", NAMES)
def test_drift_is_told_and_within_its_bound(dump: Dump, name: str) -> None:
    answer = dump.task(name).json("rss")
    for counter in answer["counters"]:
        assert counter["drift_bytes"] == counter["cached_bytes"] - counter["exact_bytes"]
        assert abs(counter["drift_bytes"]) <= counter["bound_bytes"]
        assert -sum(counter["parts"].values()) == counter["drift_bytes"]
        if answer["scheme"] == "thread":
            assert {int(who) for who in counter["parts"]} <= set(dump.truth.threads(name))
        else:
            assert all(0 <= int(who) < 4 for who in counter["parts"])
    assert answer["drift_bytes"] == answer["cached_bytes"] - answer["rss_bytes"]


def test_there_is_drift_to_tell(dump: Dump) -> None:
    """Threads that stop at an odd number of faults leave some in the parts, on whatever CPUs they ran."""
    assert dump.task("pages").json("rss")["drift_bytes"] != 0


def test_all_tasks(dump: Dump) -> None:
    answer = dump.kernel().json("rss", "--all")
    rows = answer["tasks"]
    assert [row["rss_bytes"] for row in rows] == sorted((row["rss_bytes"] for row in rows), reverse=True)
    by_pid = {row["pid"]: row for row in rows}
    for name in NAMES:
        row = by_pid[dump.truth.pid(name)]
        assert row["name"] == name
        assert row["rss_bytes"] == dump.truth.kilobytes(f"{name}/smaps_rollup", "Rss") * 1024
    assert dump.truth.zombie() not in by_pid and 2 not in by_pid
    assert answer["matched"] == len(rows) and answer["rss_bytes"] == sum(row["rss_bytes"] for row in rows)
    assert answer["drift_bytes"] == sum(row["drift_bytes"] for row in rows)
    by_drift = dump.kernel().json("rss", "--sort", "drift", "--limit", "2")["tasks"]
    assert [abs(row["drift_bytes"]) for row in by_drift] == sorted(
        (abs(row["drift_bytes"]) for row in rows), reverse=True)[:2]


def test_helpers(dump: Dump, directory: Path) -> None:
    """The same from Python, with the kernel's own objects."""
    text = run_script(dump.program, """
from drgn.helpers.linux.pid import find_task
from karst_drgn import for_each_task_rss, mm_rss, task_residency
for one in for_each_task_rss(prog):
    alone = mm_rss(one.task.mm)
    assert alone.exact == one.rss.exact and alone.drift == one.rss.drift, one
    assert sum(row.rss for row in task_residency(one.task)) == one.rss.exact * 4096, one
    print(one.pid, one.rss.exact, one.task.comm.string_().decode())
""", directory)
    rows = {int(line.split()[0]): line.split()[1:] for line in text.splitlines()}
    for name in NAMES:
        pages = dump.truth.kilobytes(f"{name}/smaps_rollup", "Rss") // 4
        assert rows[dump.truth.pid(name)] == [str(pages), name]


# ---- residency ----------------------------------------------------------------------------------------


def smaps(dump: Dump, name: str) -> list[dict[str, Any]]:
    rows = []
    for text in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", dump.truth.sections[f"{name}/smaps"], flags=re.MULTILINE)[1:]:
        words = text.split("\n", 1)[0].split(None, 5)
        start, end = words[0].split("-")
        row: dict[str, Any] = {"start": f"0x{start}", "end": f"0x{end}", "name": words[5] if len(words) > 5 else None}
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE):
            row[key] = int(value) * 1024
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_residency_is_that_of_smaps(dump: Dump, name: str) -> None:
    answer = dump.task(name).json("residency", "--all")
    expected = smaps(dump, name)
    assert len(answer["mappings"]) == len(expected)
    for row, told in zip(answer["mappings"], expected):
        for key, other in (("start", "start"), ("end", "end"), ("name", "name"), ("rss_bytes", "Rss"),
                           ("anonymous_bytes", "Anonymous"), ("swap_bytes", "Swap"), ("huge_bytes", "AnonHugePages")):
            assert row[key] == told[other], f"{key}: {row} {told}"
    assert answer["total"]["rss_bytes"] == dump.truth.kilobytes(f"{name}/smaps_rollup", "Rss") * 1024


def test_kinds_of_pages(dump: Dump) -> None:
    regions = dump.truth.regions()
    rows = {int(row["start"], 16): row for row in dump.task("pages").json("residency")["mappings"]}

    def of(name: str, kind: str) -> int:
        return rows[regions[name][0]][f"{kind}_bytes"] // PAGE

    assert (of("zero", "rss"), of("zero", "zero")) == (10, 90)
    assert (of("none", "rss"), of("none", "no_access")) == (150, 150)
    assert (of("holes", "rss"), of("holes", "anonymous")) == (100, 100)
    assert (of("swapped", "rss"), of("swapped", "swap")) == (200, 200)
    assert (of("shared", "rss"), of("shared", "shmem")) == (80, 80)
    assert of("file", "anonymous") == 20 and of("file", "file") >= 40
    assert (of("hugezero", "rss"), of("hugezero", "zero")) == (0, 1024)
    assert of("huge", "rss") == 2048 and of("huge", "huge") == 2048


def test_residency_of_a_range(dump: Dump) -> None:
    start, _ = dump.truth.regions()["holes"]
    answer = dump.task("pages").json("residency", "--range", f"{start + PAGE:#x}:{start + 10 * PAGE:#x}")
    assert [int(row["start"], 16) for row in answer["mappings"]] == [start + PAGE]
    assert answer["total"]["rss_bytes"] == 3 * PAGE  # pages 3, 6 and 9


# ---- the heap -----------------------------------------------------------------------------------------


def test_heap_is_the_ledgers(dump: Dump, directory: Path) -> None:
    dump.truth.write_files("ledger", directory)
    task = dump.task("ledger")
    comparison = compare(read_ledger(directory), task.blocks())
    assert not (comparison.missing or comparison.other_usable or comparison.extra), comparison
    assert task.check() == (True, [])


def test_heap_without_symbols(dump: Dump, directory: Path) -> None:
    """Found by its structure, in memory that comes through page tables."""
    dump.truth.write_files("ledger", directory)
    task = dump.task("ledger")
    task.options.append("--no-symbols")
    comparison = compare(read_ledger(directory), task.blocks())
    assert not (comparison.missing or comparison.other_usable or comparison.extra), comparison


def test_totals_are_mallocs_own(dump: Dump, directory: Path) -> None:
    dump.truth.write_files("ledger", directory)
    karst, malloc = totals_of_karst(dump.task("ledger")), totals_of_malloc(directory)
    karst.pop("foreign")
    assert karst == malloc


def test_tcaches_of_all_threads(dump: Dump) -> None:
    owners = {row["owner"] for row in dump.task("ledger").json("bins", "--all")["bins"] if row["kind"] == "tcache"}
    assert owners == set(dump.truth.threads("ledger"))


def test_helpers_take_a_task(dump: Dump, directory: Path) -> None:
    pid = dump.truth.pid("ledger")
    text = run_script(dump.program, f"""
from karst_drgn import (find_heap_block, for_each_heap_arena, for_each_heap_block, heap_check, heap_holes, task_of)
task = task_of(prog, {pid})
for block in for_each_heap_block(task, "live"):
    print("block", hex(block.address), block.usable)
assert find_heap_block(task, block.address + 1) == block
assert find_heap_block(task, 16) is None
print("arenas", *(arena.name.replace(" ", "-") for arena in for_each_heap_arena(task)))
assert heap_check(task) == []
holes = heap_holes(task)
assert [hole.size for hole in holes] == sorted((hole.size for hole in holes), reverse=True)
print("holes", len(holes))
""", directory)
    dump.truth.write_files("ledger", directory)
    lines = [line.split() for line in text.splitlines()]
    found = {int(line[1], 16): int(line[2]) for line in lines if line[0] == "block"}
    assert found == {address: entry.usable for address, entry in read_ledger(directory).items()}
    assert ["arenas", "main", "thread-1", "thread-2", "thread-3"] in lines
    assert ["holes", str(dump.task("ledger").json("holes")["holes"])] in lines


def test_resident_bytes_are_those_of_smaps(dump: Dump) -> None:
    """What the engine is told of the main heap, which is one mapping, is its Rss."""
    brk = next(row for row in smaps(dump, "ledger") if row["name"] == "[heap]")
    main = next(row for row in dump.task("ledger").json("arenas")["arenas"] if row["name"] == "main")
    assert main["resident_bytes"] == brk["Rss"]


# ---- a core of a task ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cores(dump: Dump, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cores")
    written = {}
    for name in NAMES:
        written[name] = folder / f"{name}.core"
        answer = dump.task(name).json("gcore", str(written[name]))
        assert answer["threads"] == len(dump.truth.threads(name)) and answer["threads_without_registers"] == 0
        assert answer["swapped_bytes"] == dump.truth.kilobytes(f"{name}/smaps_rollup", "Swap") * 1024
        assert (answer["excluded_bytes"], answer["other_bytes"]) == (0, 0)
    return written


def test_core_has_the_same_heap(dump: Dump, cores: dict[str, Path], directory: Path) -> None:
    core = Target.core(cores["ledger"], "-e", TESTS / "ledger")
    assert list(core.blocks()) == list(dump.task("ledger").blocks())
    assert core.json("summary")["total"] == dump.task("ledger").json("summary")["total"]
    assert core.check() == (True, [])
    dump.truth.write_files("ledger", directory)
    karst, malloc = totals_of_karst(core), totals_of_malloc(directory)
    karst.pop("foreign")
    assert karst == malloc


GDB_QUESTIONS = """
import gdb
gdb.execute("set pagination off")
for thread in sorted(gdb.selected_inferior().threads(), key=lambda one: one.num):
    thread.switch()
    print("thread", thread.ptid[1], hex(int(gdb.parse_and_eval("$fs_base"))),
          int(gdb.parse_and_eval("tcache")) != 0, gdb.newest_frame().is_valid() and len(gdb.execute("bt", to_string=True)) > 40)
gdb.execute("karst blocks --all --json")
"""


def test_gdb_opens_the_core(dump: Dump, cores: dict[str, Path], directory: Path) -> None:
    script = directory / "ask.py"
    script.write_text(GDB_QUESTIONS)
    done = subprocess.run(["gdb", "-nx", "-q", "-batch", "-ex", f"source {ROOT / 'gdb/karst.py'}", "-ex", f"source {script}",
                           TESTS / "ledger", cores["ledger"]], capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.splitlines()
    threads = [line.split() for line in lines if line.startswith("thread ")]
    assert sorted(int(words[1]) for words in threads) == dump.truth.threads("ledger"), done.stdout + done.stderr
    assert all(words[3:] == ["True", "True"] for words in threads) and len({words[2] for words in threads}) == 4
    found = [json.loads(line) for line in lines if line.startswith('{"address"')]
    expected = [json.loads(line) for line in dump.task("ledger").json_text("blocks", "--all").splitlines()]
    assert found == expected


def test_core_holds_each_page(dump: Dump, cores: dict[str, Path]) -> None:
    """Each page's first word is its own address: also of pages without access; what is swapped out is not zeros."""
    core = Core(cores["pages"])
    regions = dump.truth.regions()
    for name, pages, step in (("huge", 2048, 1), ("small", 4096, 1), ("holes", 300, 3), ("none", 150, 1),
                              ("shared", 80, 1), ("file", 20, 1), ("zero", 10, 1)):
        start = regions[name][0]
        for number in range(0, pages, step):
            address = start + number * PAGE
            assert core.word(address) == address, f"{name}, page {number}"
    start = regions["swapped"][0]
    for number in range(400):
        expected = None if 100 <= number < 300 else start + number * PAGE
        assert core.word(start + number * PAGE) == expected, f"swapped, page {number}"
    assert core.word(regions["hugezero"][0] + PAGE) == 0
    assert core.word(regions["holes"][0] + PAGE) == 0 and core.word(regions["zero"][0] + 50 * PAGE) == 0
    assert core.path.stat().st_blocks * 512 < 1.2 * dump.truth.kilobytes("pages/smaps_rollup", "Rss") * 1024


def test_registers_of_running_threads(dump: Dump, directory: Path) -> None:
    """Of those that a processor ran when the dump was taken: they are not on their kernel stacks."""
    pids = list(dump.truth.values("spinning").values())
    text = run_script(dump.program, f"""
from karst_drgn import programs, task_of, task_vmas
from karst_drgn.registers import user_registers
for pid in {pids}:
    task = task_of(prog, pid)
    place, vmas = user_registers(task), task_vmas(task.mm)
    inside = [vma for vma in vmas if vma.start <= place.program_counter < vma.end]
    stack = [vma for vma in vmas if vma.start <= place.stack_pointer < vma.end]
    print(int(task.on_cpu), inside[0].name, inside[0].flags & 4, stack[0].name)
print(programs.vmcoreinfo(prog)["NUMBER(pgtable_l5_enabled)"])
""", directory)
    *lines, levels = text.splitlines()
    rows = [line.split(maxsplit=1) for line in lines]
    assert len(rows) == 3 and all(row[1] == "/bin/busybox 4 [stack]" for row in rows), text
    assert "1" in [row[0] for row in rows], text
    assert levels == ("1" if dump.suite == FIVE_LEVELS else "0")


# ---- what a dump lacks --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filtered(dump: Dump, tmp_path_factory: pytest.TempPathFactory) -> tuple[DrgnTarget, int, int]:
    """The dump without the page of a block of the ledger's heap: the task there, the block, the page's address."""
    folder = tmp_path_factory.mktemp("filtered")
    pid = dump.truth.pid("ledger")
    text = run_script(dump.program, f"""
from karst_drgn import for_each_heap_block, task_of
from karst_drgn.tables import PageTables
task = task_of(prog, {pid})
tables = PageTables(task.mm)
for block in for_each_heap_block(task, "live"):
    page = (block.address + 4096) & -4096
    runs = tables.walk(page, page + 4096) if page + 4096 <= block.address + block.usable else []
    if block.arena == "main" and runs and not runs[0].device:  # the page of zeros is everybody's
        break
print(block.address, page, runs[0].physical)
""", folder)
    block, page, physical = map(int, text.split())
    path = folder / "vmcore"
    Core(dump.vmcore).copy_without(physical, PAGE, path)
    yield DrgnTarget(["-c", path, "-s", dump.vmlinux], "--pid", str(pid)), block, page
    path.unlink()


def test_pages_left_out_are_no_zeros(filtered: tuple[DrgnTarget, int, int], directory: Path) -> None:
    task, block, page = filtered
    done = task.run("block", f"{block:#x}", "--dump", "64")
    assert done.returncode == 0 and "4.0 KB left out of the dump" in done.stderr, done
    answer = task.json("gcore", str(directory / "core"))
    assert answer["excluded_bytes"] == PAGE
    core = Core(directory / "core")
    assert core.word(page) is None and core.word(page - 8) is not None and core.word(page + PAGE) is not None


def test_refused_in_one_line(dump: Dump) -> None:
    kernel = dump.kernel()
    assert "whose heap? Give --pid" in kernel.one_line("summary")
    assert "which task? Give --pid" in kernel.one_line("residency")
    assert "2 (kthreadd) is a thread of the kernel" in kernel.one_line("--pid", "2", "summary")
    assert "2 (kthreadd) is a thread of the kernel" in kernel.one_line("--pid", "2", "rss")
    assert "no task 30000" in kernel.one_line("--pid", "30000", "holes")
    for verb in ("summary", "rss", "residency"):
        assert "(pages) has ended (a zombie" in kernel.one_line("--pid", str(dump.truth.zombie()), verb)
    thread = dump.truth.threads("ledger")[-1]
    assert f"is a thread of process {dump.truth.pid('ledger')} (ledger)" in kernel.one_line("--pid", str(thread), "info")
    assert "did you mean" in kernel.one_line("--pid", "1", "holess")
    assert "can't write" in dump.task("ledger").one_line("gcore", "/nonexistent/core")


def test_kernel_without_debug_information(dump: Dump) -> None:
    bare = DrgnTarget(["-c", dump.vmcore, "--no-default-symbols"])
    for words in (["rss"], ["--pid", "1", "summary"], ["--pid", "1", "gcore", "/tmp/never"]):
        assert "give its vmlinux by drgn -s VMLINUX" in bare.one_line(*words)


def test_dump_without_vmcoreinfo(dump: Dump, directory: Path) -> None:
    """QEMU's drgn refuses itself; another's it takes for a process's core."""
    path = directory / "vmcore"
    Core(dump.vmcore).copy_without_notes([b"VMCOREINFO"], path)
    done = drgn("-c", path, SCRIPT, "rss")
    assert done.returncode != 0 and "vmcoreinfo" in done.stderr and len(done.stderr.splitlines()) == 1, done
    Core(dump.vmcore).copy_without_notes([b"VMCOREINFO", b"QEMU"], path)
    bare = DrgnTarget(["-c", path, "--no-default-symbols"])
    for words in (["rss"], ["--pid", "1", "summary"], ["--pid", "1", "residency"], ["summary"]):
        assert "no VMCOREINFO" in bare.one_line(*words)
