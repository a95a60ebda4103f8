"""Which line of Python asks for the one large realloc? With the library from the start, and attached without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import Answers, gdb
from karst_command import BUILD, ROOT
from karst_programs import started

PYTHON = "/usr/bin/python3"
MANIFEST = ROOT / "tests" / "programs" / "manifest.py"
LINE = next(number for number, text in enumerate(MANIFEST.read_text().splitlines(), 1) if "new += data[a:b]" in text)


def wanted_size(directory: Path) -> int:
    with started([PYTHON, MANIFEST], directory) as program:
        assert program.wait_line("met").split()[1] == "1"
        return program.values()["wanted"]


def check_stop(answers: Answers, size: int, stop: str) -> None:
    """One stop, at the one call, on its caller's frame, and the line of Python that made it."""
    told = re.search(r"^karst trap 1: realloc\(0x[0-9a-f]+, (\d+)\).*, called at (0x[0-9a-f]+)$",
                     answers.all(stop)[0].good(), re.MULTILINE)
    assert told is not None and int(told.group(1)) == size
    assert int(answers.of("print/x $pc").good().split("=")[1], 16) == int(told.group(2), 16)
    assert re.search(r"^#\d+ .* PyUnicode_Append ", answers.of("bt").good(), re.MULTILINE)
    assert "karst" not in answers.of("bt").text
    stack = answers.of("karst py-stack --json").json()["runtimes"][0]["threads"][0]["frames"]
    assert [(frame["function"], Path(frame["file"]).name) for frame in stack[:2]] == \
        [("bodies", MANIFEST.name), ("main", MANIFEST.name)]
    assert stack[0]["line"] == LINE
    assert answers.of("print $_karst_trap_size").good().split("=")[1].strip() == str(size)


ASKED = ["bt", "print/x $pc", "print $_karst_trap_size", "karst py-stack --json", "karst trap list --json"]


def test_attached(directory: Path) -> None:
    with started([PYTHON, MANIFEST, "--wait"], directory) as program:
        size = program.values()["wanted"]
        commands = [f"attach {program.pid}", f"karst trap add realloc {size}", "shell touch go", "continue", *ASKED,
                    "continue"]
        answers = gdb([], commands, directory)
        check_stop(answers, size, "continue")
        row, = answers.of("karst trap list --json").json()["traps"]
        assert (row["by"], row["hits"], row["stops"]) == ("detour", 1, 1)
        assert "exited normally" in answers.output
        assert program.wait_line("met") == "met 1"


@pytest.mark.parametrize("settings", [[], ["set startup-with-shell off"]], ids=["shell", "no shell"])
def test_from_the_start(directory: Path, settings: Sequence[str]) -> None:
    size = wanted_size(directory)
    run = f"karst run --trap 'realloc {size} skip=1' -- {MANIFEST}"  # the first finds out the size
    # A GDB of another suite is started with a PYTHONHOME of its own.
    commands = [*settings, "unset environment PYTHONHOME", "set environment KARST_TRAP nothing of ours", run, *ASKED, "show environment LD_PRELOAD",
                "continue"]
    answers = gdb([PYTHON], commands, directory)
    check_stop(answers, size, run)
    row, = answers.of("karst trap list --json").json()["traps"]
    assert (row["by"], row["hits"], row["stops"]) == ("library", 2, 1)
    assert str(BUILD) not in answers.of("show environment LD_PRELOAD").text
    assert "met 1" in answers.output and "exited normally" in answers.output


def test_armed_while_it_runs(directory: Path) -> None:
    """The library was there, with nothing asked of it."""
    environment = {"LD_PRELOAD": str(BUILD / "libkarst-preload.so")}
    with started([PYTHON, MANIFEST, "--wait"], directory, environment) as program:
        size = program.values()["wanted"]
        commands = [f"attach {program.pid}", f"karst trap add realloc {size}", "shell touch go", "continue", *ASKED,
                    "continue"]
        answers = gdb([], commands, directory)
        check_stop(answers, size, "continue")
        assert answers.of("karst trap list --json").json()["traps"][0]["by"] == "library"
        assert program.wait_line("met") == "met 1"
