"""Traps where GDB has several processes, or threads that run on while others are stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gdb_runner import Answers, gdb
from karst_command import TESTS
from karst_preload import CALLS
from karst_programs import started

AWKWARD = TESTS / "awkward"

TOLD = re.compile(r"^karst trap 1: malloc\((\d+)\)(?: = 0x[0-9a-f]+)?, thread (\d+), called at 0x[0-9a-f]+\n#\d+ .* make ", re.MULTILINE)


def test_the_librarys_trap_in_a_child_that_is_followed(directory: Path) -> None:
    """The child is another inferior of GDB's: the stop is told there, `bt` is clean, and steps go on in the caller."""
    commands = ["set follow-fork-mode child", "karst run --trap 'malloc 3000:3001'", "bt", "next", "frame", "karst trap list",
                "continue", "python print(gdb.selected_inferior().num, gdb.selected_inferior().pid)", "kill"]
    answers = gdb([AWKWARD], ["set args forks", *commands], directory)
    first, second = (TOLD.search(answers.of(word).good()) for word in (commands[1], "continue"))
    assert first is not None and second is not None, answers.output
    assert [told[1] for told in (first, second)] == ["3000", "3001"]
    assert answers.of(commands[-2]).good() == f"2 {first[2]}\n"
    assert re.match(r"#\d+ .* make .*\n#\d+ .* forks ", answers.of("bt").good())
    assert re.match(r"#0 .*make ", answers.of("frame").good())


def test_the_librarys_trap_in_a_child_beside_its_parent(directory: Path) -> None:
    commands = ["set detach-on-fork off", "set schedule-multiple on", "karst run --trap 'malloc 3000'", "bt", "next", "frame",
                "kill inferiors 1 2"]
    answers = gdb([AWKWARD], ["set args forks", *commands], directory)
    assert TOLD.search(answers.of(commands[2]).good())
    assert re.match(r"#\d+ .* make .*\n#\d+ .* forks ", answers.of("bt").good())
    assert re.match(r"#0 .*make ", answers.of("frame").good())


# Of all code of files, as it is but for breakpoints.
TEXT = ("python import hashlib, re; inferior = gdb.selected_inferior(); print(hashlib.sha256(b''.join(bytes("
        "inferior.read_memory(int(start, 16), int(end, 16) - int(start, 16))) for start, end in re.findall("
        "r'^(\\w+)-(\\w+) r-xp .* /', open(f'/proc/{inferior.pid}/maps').read(), re.M))).hexdigest())")
WHO = "python print(gdb.selected_inferior().num)"


def told_sizes(answers: Answers) -> list[str]:
    return [size for said in answers.all("continue") for size in re.findall(r"^karst trap \d+: malloc\((\d+)\)", said.text, re.M)]


def test_a_detours_trap_in_a_child_beside_its_parent(directory: Path) -> None:
    """Each has its detours, and its traps: they count, and are taken out, by themselves."""
    commands = ["set detach-on-fork off", "set follow-fork-mode child", "tbreak main", "run", TEXT,
                "karst trap add malloc 3000/3001", "karst trap add malloc 4000 count=1", "continue", WHO, "bt", "next", "frame",
                "karst trap list --json", "karst trap remove 1", "karst trap remove", TEXT, "karst trap list", "continue",
                "inferior 1", "karst trap list --json", "continue", "karst trap list --json", "karst trap remove", TEXT, "detach"]
    answers = gdb([AWKWARD], ["set args forks", *commands], directory)
    assert [said.error for said in answers.said if said.error] == []
    assert told_sizes(answers) == ["3000", "4000"]
    assert answers.of(WHO).good() == "2\n"
    assert re.match(r"#\d+ .* make .*\n#\d+ .* forks ", answers.of("bt").good())
    assert re.match(r"#0 .*make ", answers.of("frame").good())
    states = [[(trap["number"], trap["state"], trap["stops"]) for trap in said.json()["traps"]]
              for said in answers.all("karst trap list --json")]
    assert states == [[(1, "on", 1), (2, "on", 0)], [(1, "on", 0), (2, "on", 0)], [(1, "on", 0), (2, "spent", 1)]]
    assert answers.of("karst trap list").good() == "no traps\n"
    assert len({said.good() for said in answers.all(TEXT)}) == 1


def test_a_detours_trap_in_a_child_that_is_followed(directory: Path) -> None:
    """GDB lets go of the parent; the traps go on in the child, and what was skipped before is skipped."""
    commands = ["set follow-fork-mode child", "tbreak main", "run", TEXT, "karst trap add malloc 3000:4000 skip=1",
                "karst trap add malloc,calloc 7777", "continue", WHO, "bt", "karst trap list --json", "karst trap remove 1",
                "karst trap list --json", "karst trap remove", TEXT, "continue"]
    answers = gdb([AWKWARD], ["set args forks", *commands], directory)
    assert [said.error for said in answers.said if said.error] == []
    assert told_sizes(answers) == ["3001"]
    assert answers.of(WHO).good() == "2\n"
    assert re.match(r"#\d+ .* make .*\n#\d+ .* forks ", answers.of("bt").good())
    before, after = ([(trap["number"], trap["hits"], trap["stops"]) for trap in said.json()["traps"]]
                     for said in answers.all("karst trap list --json"))
    assert (before, after) == ([(1, 2, 1), (2, 0, 0)], [(2, 0, 0)])
    assert len({said.good() for said in answers.all(TEXT)}) == 1
    assert answers.output.rstrip().endswith("exited normally]")


def test_the_trap_of_a_thread_is_not_its_childs(directory: Path) -> None:
    """The child's only thread has the same stack, and another id."""
    commands = ["set follow-fork-mode child", "tbreak main", "run", "python thread = gdb.selected_thread().ptid[1]",
                "python gdb.execute(f'karst trap add malloc 3000/3001 thread={thread}')", "continue"]
    answers = gdb([AWKWARD], ["set args forks", *commands], directory)
    assert [said.error for said in answers.said if said.error] == []
    assert "exited normally" in answers.output and "karst trap" not in answers.of("continue").good()


@pytest.mark.parametrize("settings", [["set schedule-multiple on"], ["set follow-fork-mode child"]])
def test_the_librarys_trap_and_a_child_that_executes_another_program(directory: Path, settings: list[str]) -> None:
    """It has nothing where its parent has the trap's instruction. The library comes to it by the environment, with the trap."""
    commands = ["set detach-on-fork off", *settings, "karst run --trap 'any event=100' -- -c '/bin/cat /dev/null; exit 3'",
                "info inferiors"]
    commands += [step for _ in range(4) for step in ("continue", "inferior 1", "info inferiors")]
    answers = gdb(["/bin/sh"], commands, directory)
    assert "Cannot insert" not in answers.output + "".join(said.error or "" for said in answers.said), answers.output
    assert "exited with code 03" in answers.output
    assert "Exception" not in answers.output


LOADS = """
import ctypes, os, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
ctypes.CDLL("libz.so.1")
os._exit(5)
"""


def test_another_process_beside_one_with_a_trap(directory: Path) -> None:
    """It has nothing where the trap's breakpoint is, and loads a library, for which GDB sets all breakpoints anew."""
    with started(["/usr/bin/python3", "-c", LOADS], directory) as one, started(["/usr/bin/python3", "-c", LOADS], directory) as other:
        commands = [f"attach {one.pid}", "karst trap add malloc 54321", "add-inferior -no-connection", "inferior 2",
                    f"attach {other.pid}", "karst trap list", "karst trap add malloc 12345", "shell touch go", "continue",
                    "inferior 1", "karst trap list", "continue"]
        answers = gdb([], commands, directory)
        assert [said.error for said in answers.said if said.error] == []
        assert [said.good() for said in answers.all("karst trap list")][0] == "no traps\n"
        assert "malloc 54321" in answers.of("karst trap list").good()
        assert answers.output.count("exited with code 05") == 2


def test_non_stop(directory: Path) -> None:
    """The library's traps are told there too; detours are refused."""
    commands = ["set non-stop on", "karst run --trap 'malloc 150'", "bt", "karst trap add malloc 3"]
    answers = gdb([CALLS], ["set args sizes", *commands], directory)
    told = TOLD.search(answers.of(commands[1]).good())
    assert told is not None and told[1] == "150", answers.output
    assert re.match(r"#\d+ .* make ", answers.of("bt").good())
    assert "in non-stop mode" in answers.of(commands[-1]).one_line()
    assert "Exception" not in answers.output
