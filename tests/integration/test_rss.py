"""`karst rss` against /proc, and against a trial of this kernel that is made here in another way."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from karst_command import KARST, Target, karst
from karst_programs import Program, started

KB = 1024
PAGE = mmap.PAGESIZE

# Forks twice, so that three processes share a text of 8 MB; the second child writes to a quarter of it.
FAMILY = """
import os, sys, time
shared = bytearray(b"x") * (8 << 20)
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        if number == 1:
            for place in range(0, 2 << 20, 4096):
                shared[place] = 121
            grandchild = os.fork()
            if grandchild:
                os.write(1, b"grandchild %d\\n" % grandchild)
        time.sleep(600)
        os._exit(0)
    os.write(1, b"child%d %d\\n" % (number, pid))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(directory: Path) -> Iterator[Program]:
    with started([sys.executable, "-c", FAMILY], directory) as program:
        program.wait_line("grandchild")
        # What one of them still writes to, the others share no more: nothing moves once all of them sleep.
        for pid in (program.pid, *program.values().values()):
            Program(program.process, directory, pid).wait_state("S")
        yield program


def rollup(pid: int, name: str = "smaps_rollup") -> dict[str, int]:
    """The file's figures in bytes, those of all mappings added up."""
    sums: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
        key, _, value = line.partition(":")
        if value.endswith(" kB"):
            sums[key] = sums.get(key, 0) + int(value.split()[0]) * KB
    return sums


def source(answer: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in answer["sources"] if row["source"] == name)


def test_figures_are_those_of_proc(family: Program) -> None:
    answer = Target.process(family.pid).json("rss")
    told, status = rollup(family.pid), rollup(family.pid, "status")
    assert source(answer, "smaps_rollup")["bytes"] == answer["rss_bytes"] == told["Rss"]
    assert source(answer, "status")["bytes"] == status["VmRSS"]
    statm = Path(f"/proc/{family.pid}/statm").read_text().split()
    assert source(answer, "statm")["bytes"] == int(statm[1]) * PAGE
    assert answer["vss_bytes"] == int(statm[0]) * PAGE == status["VmSize"]
    stat = Path(f"/proc/{family.pid}/stat").read_text().rpartition(")")[2].split()
    assert source(answer, "stat")["bytes"] == int(stat[24 - 3]) * PAGE
    for row in answer["sources"]:
        assert row["difference_bytes"] == row["bytes"] - told["Rss"]
    assert answer["private_dirty_bytes"] == told["Private_Dirty"] and answer["swap_pss_bytes"] == told["SwapPss"]
    assert answer["shared_dirty_bytes"] == told["Shared_Dirty"]
    # Who else maps the libraries' pages just now makes a difference to these.
    assert answer["private_clean_bytes"] + answer["shared_clean_bytes"] == told["Private_Clean"] + told["Shared_Clean"]
    assert answer["pss_bytes"] == pytest.approx(told["Pss"], abs=told["Private_Clean"] + told["Shared_Clean"])
    assert answer["uss_bytes"] == answer["private_clean_bytes"] + answer["private_dirty_bytes"]
    assert (answer["anonymous_bytes"], answer["swap_bytes"]) == (status["RssAnon"], status["VmSwap"])
    assert (answer["file_bytes"], answer["shmem_bytes"]) == (status["RssFile"], status["RssShmem"])


def test_rss_is_what_private_and_shared_make(family: Program) -> None:
    answer = Target.process(family.pid).json("rss")
    assert answer["uss_bytes"] + answer["shared_clean_bytes"] + answer["shared_dirty_bytes"] == answer["rss_bytes"]


TRIAL = """
import mmap, sys, threading
def statm(): return int(open("/proc/self/statm").read().split()[1])
def stat(): return int(open("/proc/self/stat").read().rpartition(")")[2].split()[21])
def steps(figure):
    area = mmap.mmap(-1, 20 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    moved = 0
    for place in range(0, 20 * 4096, 4096):
        before = figure()
        area[place] = 1
        moved += figure() > before
    return moved
def work():
    for figure in (statm, stat):
        steps(figure)
        print(figure.__name__, steps(figure) >= 15)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_which_are_exact_on_this_kernel(family: Program) -> None:
    done = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, check=True, timeout=60)
    tried = dict(line.split() for line in done.stdout.splitlines())
    answer = Target.process(family.pid).json("rss")
    assert source(answer, "smaps_rollup")["exact"] is True
    for name in ("statm", "stat"):
        assert str(source(answer, name)["exact"]) == tried[name], f"{name}: {done.stdout}"
        if source(answer, name)["exact"]:
            assert source(answer, name)["difference_bytes"] == 0
        else:
            bound = answer["kernel"]["bound_bytes"]
            assert abs(source(answer, name)["difference_bytes"]) <= bound
            # include/linux/percpu_counter.h: batches are of 32 pages, or twice the CPUs if that is more.
            assert answer["kernel"]["batch_pages"] in (max(32, 2 * answer["kernel"]["cpus"]), 64)


def test_tree(family: Program) -> None:
    children = family.values()
    rows = Target.process(family.pid).json("rss", "--tree")["tree"]
    assert [row["pid"] for row in rows] == [family.pid, children["child0"], children["child1"], children["grandchild"]]
    assert rows[3]["parent"] == children["child1"]
    text = 8 << 20
    # Nobody but the second child's family wrote to the text: it alone has a quarter for itself.
    assert rows[0]["forked_bytes"] >= text and rows[1]["forked_bytes"] >= text
    for row in rows:
        assert row["private_dirty_bytes"] == rollup(row["pid"])["Private_Dirty"]
        assert row["vss_bytes"] == rollup(row["pid"], "status")["VmSize"] >= row["rss_bytes"]
        assert row["forked_bytes"] <= row["shared_clean_bytes"] + row["shared_dirty_bytes"]
        assert row["uss_bytes"] < text / 2


def test_tree_is_a_table_of_each(family: Program) -> None:
    """VSS, RSS, PSS and USS of each process are also in the text, with the bytes of the JSON."""
    target = Target.process(family.pid)
    rows = {row["pid"]: row for row in target.json("rss", "--tree")["tree"]}
    lines = [line.split() for line in target.run("rss", "--tree", "--bytes").stdout.splitlines()]
    assert lines[0][:5] == ["pid", "VSS", "RSS", "PSS", "USS"], lines[0]
    shown = {int(line[0]): [int(word.replace(",", "")) for word in line[1:5]]
             for line in lines if line[0].isdigit()}
    assert set(shown) == set(rows)
    for pid, figures in shown.items():
        vss, _, pss, uss = figures
        row = rows[pid]
        # Who else maps the libraries' pages just now makes a difference to these, too.
        clean = row["uss_bytes"] - row["private_dirty_bytes"] + row["shared_clean_bytes"]
        assert vss == row["vss_bytes"] and uss == pytest.approx(row["uss_bytes"], abs=clean)
        assert uss <= pss <= vss


def test_tree_adds_up_shared_memory_once(family: Program) -> None:
    answer = Target.process(family.pid).json("rss", "--tree")
    totals = answer["totals"]
    assert (totals["processes"], totals["unread"]) == (4, 0)
    for key in ("pss_bytes", "uss_bytes", "swap_pss_bytes"):
        assert totals[key] == sum(row[key] for row in answer["tree"])
    # 8 MB, and 2 MB that were written to: once each, though four processes map them.
    assert totals["rss_bytes"] - totals["pss_bytes"] > 3 * (6 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_without_the_right_to_look(family: Program) -> None:
    """What /proc shows to all is told, and why there is no more."""
    done = subprocess.run(["runuser", "-u", "nobody", "--", "cat", f"/proc/{family.pid}/smaps_rollup"],
                          capture_output=True, check=False)
    if done.returncode == 0:
        pytest.skip("this system lets anybody read smaps_rollup")
    reader = ["runuser", "-u", "nobody", "--", KARST]
    if subprocess.run([*reader, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("nobody may not run the command here")
    done = subprocess.run([*reader, "-p", str(family.pid), "rss"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "another user" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "Permission denied" in done.stdout and "statm" in done.stdout and "   ?  " in done.stdout


def test_one_line_where_it_cannot_be_told(family: Program, directory: Path) -> None:
    for arguments, word in ((("-p", "2"), "thread of the kernel"), (("-p", "999999"), "no process 999999"),
                            (("-c", os.fspath(directory / "none")), "none")):
        kthreadd = Path("/proc/2/comm")
        if arguments == ("-p", "2") and not (kthreadd.exists() and kthreadd.read_text() == "kthreadd\n"):
            continue  # a namespace has its own processes alone
        done = karst(*arguments, "rss")
        assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
