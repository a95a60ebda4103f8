"""What is asked of: no program, dead, running, several, cores one after the other, memory that GDB alone reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gdb_runner import gdb, gdbserver
from karst_command import TESTS, Target
from karst_programs import gcore, kernel_cores_land_here, started

DEBUGGED = TESTS / "debugged"


def test_no_inferior(directory: Path) -> None:
    answers = gdb([], ["karst summary", "print $_karst_size(1)"], directory)
    for said in answers.said:
        assert "no process" in said.one_line()


def test_program_that_was_not_started(directory: Path) -> None:
    assert "no process" in gdb([DEBUGGED], ["karst summary"], directory).said[0].one_line()


def test_dead_inferior(directory: Path) -> None:
    commands = ["break use_block", "run loop", "karst summary --json", "kill", "karst summary", "print $_karst_size(1)"]
    answers = gdb([DEBUGGED], commands, directory)
    assert answers.of("karst summary --json").json()["allocators"]
    assert "no process" in answers.of("karst summary").one_line()
    assert "no process" in answers.of("print $_karst_size(1)").one_line()


def test_running_inferior(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        commands = ["karst summary --json", "continue &", "karst summary", "print $_karst_size(1)", "interrupt",
                    "python import time; time.sleep(0.5)", "detach"]
        answers = gdb(["-iex", "set pagination off", "-p", str(program.pid)], commands, directory)
    assert answers.of("karst summary --json").json()["allocators"]
    for command in ("karst summary", "print $_karst_size(1)"):
        assert answers.of(command).one_line().strip() == "the process is running: interrupt it first"


def test_answers_are_fresh(directory: Path) -> None:
    """What was learned is dropped when the program runs or its memory is changed."""
    commands = ["break use_block", "run loop", "output size", "output $_karst_usable(block)", "continue",
                "output size", "output $_karst_usable(block)", "karst check --json",
                "set var *((unsigned long *) block - 1) = 0xffffffffffffff1", "karst check --json",
                "print (char *) malloc(777)", "output $_karst_usable($)", "kill"]
    answers = gdb([DEBUGGED], commands, directory)
    sizes = [int(said.good()) for said in answers.all("output size")]
    usable = [int(said.good()) for said in answers.all("output $_karst_usable(block)")]
    assert sizes == [100, 200] and usable == [104, 200]
    healthy, damaged = (said.json() for said in answers.all("karst check --json"))
    assert healthy["healthy"] and not damaged["healthy"]
    assert answers.of("output $_karst_usable($)").good() == "792"


def test_each_inferior_has_its_own_heap(directory: Path) -> None:
    commands = ["set detach-on-fork off", "set follow-fork-mode parent", "break use_block",
                "run fork", "inferior", "output fork_result", "output $_karst_usable(block)", "inferior 2",
                "continue", "inferior 2", "output fork_result", "output $_karst_usable(block)", "karst info --json",
                "inferior 1", "karst info --json", "kill inferiors 1 2"]
    answers = gdb([DEBUGGED], commands, directory)
    parents, childs = (int(said.good()) for said in answers.all("output $_karst_usable(block)"))
    assert parents >= 11111 and childs >= 22222 and parents < 22222, answers.output
    first, second = (said.json()["target"]["pid"] for said in answers.all("karst info --json"))
    assert first != second


def test_core_after_core(core: Path, directory: Path) -> None:
    with started([DEBUGGED, "many", "1000"], directory) as program:
        other = gcore(program.pid, directory)
    commands = [f"core-file {core}", "karst summary --json", f"core-file {other}", "karst summary --json",
                "core-file", "karst summary --json"]
    answers = gdb(["-ex", f"file {DEBUGGED}"], commands, directory)
    first, second, none = answers.all("karst summary --json")
    assert first.json()["total"] != second.json()["total"]
    assert "no process" in none.one_line()


@pytest.mark.skipif(not kernel_cores_land_here(), reason="GDB's own cores have their notes at the end")
def test_truncated_core(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        core = program.kernel_core()
    whole = core.stat().st_size
    for size in (whole - 50_000, whole * 2 // 3):  # in the stack; in the libraries
        with open(core, "r+b") as file:
            file.truncate(size)
        told = Target.core(core, "-e", DEBUGGED).run("summary", "--json")
        said, info = gdb([DEBUGGED, core], ["karst summary --json", "karst info"], directory).said
        assert "missing" in info.good()
        assert said.good() == told.stdout != ""


def test_gdbserver(directory: Path) -> None:
    """Through gdbserver: threads, variables and memory that changes."""
    with started([DEBUGGED], directory) as program, \
            gdbserver(["--attach", "127.0.0.1:0", str(program.pid)], directory) as port:
        maps = Path(f"/proc/{program.pid}/maps").read_text()
        commands = ["set karst direct off", f"target remote 127.0.0.1:{port}", "thread 3",
                    "frame function handle_request", "karst refs kept", "karst block buf",
                    "karst check --json", "set var *((unsigned long *) buf - 1) = 0xffffffffffffff1",
                    "karst check --json", "detach", "karst summary"]
        answers = gdb([DEBUGGED], commands, directory)
        assert Path(f"/proc/{program.pid}/maps").read_text() == maps, "to read the stack does not make it grow"
    assert re.search(r"thread 3, frame \d, buf in handle_request", answers.of("karst block buf").good())
    healthy, damaged = (said.json()["healthy"] for said in answers.all("karst check --json"))
    assert healthy and not damaged
    assert "no process" in answers.of("karst summary").one_line()


def test_lent_memory_around_holes(directory: Path) -> None:
    """Pieces of any size and place, in any order: the bytes up to the first page that is not there."""
    script = directory / "memory.py"
    script.write_text("""
import random, gdb
from karst_gdb import memory
chance, size = random.Random(3), 1 << 20
pages = [chance.random() < 0.8 for _ in range(size // 4096)]
content = bytes(chance.randrange(256) for _ in range(size))
mapped = [(0, 100), (100, 130), (135, 140), (141, 200), (220, 256)]  # pages
mappings = [memory.Mapping(start * 4096, end * 4096, 3) for start, end in mapped]

class Inferior:
    def read_memory(self, address, length):
        assert any(start * 4096 <= address < end * 4096 for start, end in mapped), "never outside the mappings"
        if not all(is_there(page) for page in range(address // 4096, (address + length - 1) // 4096 + 1)):
            raise gdb.MemoryError("Cannot access memory")
        return memoryview(content)[address:address + length]

def is_there(page):
    return pages[page] and any(start <= page < end for start, end in mapped)

lent = memory.Memory(Inferior(), mappings)
for turn in range(5000):
    length = chance.choice((1, 8, 100, 4096, 20000, 70000))
    address = chance.randrange(size - length - 65536)
    end = address
    while end < address + length and is_there(end // 4096):
        end = min((end | 4095) + 1, address + length)
    assert bytes(lent.read(address, length)) == content[address:end], (hex(address), length)
print("all alike")
""")
    answers = gdb([], [f"source {script}"], directory)
    assert answers.said[0].good() == "all alike\n", answers.output


def test_symbols_that_gdb_knows(core: Path, directory: Path) -> None:
    """GDB keeps the symbols that it loaded; the engine alone finds none in an empty directory."""
    commands = ["karst info --json", f"set debug-file-directory {directory}", "set karst symbols on",
                "karst info --json"]
    answers = gdb([DEBUGGED, core], commands, directory)
    alone = Target.core(core, "-e", DEBUGGED, "--debug-dir", str(directory)).json_text("info")
    assert "by symbol" not in alone
    assert "by symbol" in answers.said[-1].good() and "debug info" in answers.said[-1].good()
