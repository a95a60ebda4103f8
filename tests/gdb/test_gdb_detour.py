"""Traps in a process without the library: detours in the text, and what the process is like afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import gdb
from karst_command import TESTS
from karst_programs import Program, started

HAMMER = TESTS / "hammer"
# How often a process is attached to, trapped and let go: a slice in CI, 100 by `make test-attach`.
CYCLES = int(os.environ.get("KARST_CYCLES", "10"))


def text_of(pid: int) -> dict[str, str]:
    """A digest of each executable mapping of a file, to the end of its last page."""
    found = {}
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            words = line.split()
            if "x" in words[1] and len(words) > 5 and words[5].startswith("/"):
                start, end = (int(word, 16) for word in words[0].split("-"))
                memory.seek(start)
                found[f"{words[5]} {start:#x}"] = hashlib.sha256(memory.read(end - start)).hexdigest()
    return found


def ends_well(program: Program) -> None:
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait_line("good")
    assert program.process.wait(timeout=60) == 0


def cycles(program: Program, steps: Sequence[str], count: int, directory: Path) -> str:
    """GDB's own output, after each cycle found the process running on and its text unchanged."""
    commands = []
    for _ in range(count):
        commands += [f"attach {program.pid}", *steps]
    answers = gdb([], commands, directory)
    for said in answers.said:
        assert said.error is None, f"{said.command}: {said.error}"
    trapped = [said.text for said in answers.said if said.command == "continue"]
    assert len(trapped) == count * list(steps).count("continue")
    for text in trapped:
        assert re.search(r"^karst trap \d+: malloc\(424242\), thread \d+, called at 0x", text, re.MULTILINE), text
        assert re.search(r"^#1 .* asked_for ", text, re.MULTILINE), text
    return answers.output


PROGRAMS = [["1"], ["4"], ["1", "--signals"], ["3", "--alternate"]]


@pytest.mark.parametrize("arguments", PROGRAMS, ids=" ".join)
def test_lives_on(directory: Path, arguments: list[str]) -> None:
    """Attached, trapped or not, and left, by all ways out."""
    with started([HAMMER, *arguments], directory) as program:
        before = text_of(program.pid)
        add = "karst trap add malloc 424242"
        all_functions = "karst trap add alloc 424242"
        for steps in ([add, "continue", "karst trap remove", "detach"], [add, "detach"], [all_functions, "continue", "detach"],
                      [add, "karst trap add realloc,calloc 4000:5000", "continue", "karst trap remove 1", "detach"]):
            cycles(program, steps, max(CYCLES // 4, 1), directory)
            assert text_of(program.pid) == before, steps
            assert program.process.poll() is None
        ends_well(program)
