"""Traps where GDB has several processes, or threads that run on while others are stopped."""

from __future__ import annotations

import re
from pathlib import Path

from gdb_runner import gdb
from karst_command import TESTS
from karst_preload import CALLS

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


def test_a_detours_trap_in_a_child_beside_its_parent(directory: Path) -> None:
    """The child has the detour, but not the trap: it goes on to its end, and the parent stops."""
    commands = ["set detach-on-fork off", "set schedule-multiple on", "tbreak main", "run", "karst trap add malloc 3000/4000",
                "continue", "python ended = gdb.selected_inferior(); print(ended.num, ended.pid)", "inferior 1", "continue"]
    answers = gdb([AWKWARD], ["set args forks", *commands], directory)
    assert answers.of(commands[-3]).good() == "2 0\n"
    told = TOLD.search(answers.of("continue").good())
    assert told is not None and told[1] == "4000", answers.output


def test_non_stop(directory: Path) -> None:
    """The library's traps are told there too; detours are refused."""
    commands = ["set non-stop on", "karst run --trap 'malloc 150'", "bt", "karst trap add malloc 3"]
    answers = gdb([CALLS], ["set args sizes", *commands], directory)
    told = TOLD.search(answers.of(commands[1]).good())
    assert told is not None and told[1] == "150", answers.output
    assert re.match(r"#\d+ .* make ", answers.of("bt").good())
    assert "in non-stop mode" in answers.of(commands[-1]).one_line()
    assert "Exception" not in answers.output
