"""What karst says in GDB is what its command line says: alive, from the kernel's cores, from GDB's, and through
gdbserver."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gdb_runner import gdb, gdbserver
from karst_command import BUILD, ROOT, TESTS, Target, karst
from karst_programs import gcore, kernel_cores_land_here, started

DEBUGGED = TESTS / "debugged"

sys.path.append(str(ROOT / "helper" / "python"))
import karst_engine  # noqa: E402

karst_engine.load(str(BUILD / "libkarst.so"))
VERBS = [verb["name"] for verb in karst_engine.verbs()]


def questions(buffer: str) -> list[str]:
    """Every verb that needs no argument, and those that do with the address of a block."""
    return ["info", "summary", "arenas", "bins", "bins main", "blocks", "blocks --all", "blocks --state free --limit 3",
            "blocks --size 1K: --sort size", f"block {buffer}", "sizes", "holes", "holes --fit 123456", "pins",
            "check", f"refs {buffer}", "maps"]


def command_line(target: Target, asked: Sequence[str]) -> dict[str, str]:
    return {words: target.json_text(*words.split(), good=(0, 1)) for words in asked}


def in_gdb(target: Sequence[str | os.PathLike[str]], asked: Sequence[str], directory: Path,
           before: Sequence[str] = ()) -> dict[str, str]:
    commands = {words: f"karst {words} --json" for words in asked}
    answers = gdb(target, [*before, *commands.values()], directory)
    return {words: answers.of(command).good() for words, command in commands.items()}


def live_block(target: Target) -> str:
    """A block that a variable of the program points to."""
    rows = target.json("blocks", "--state", "live", "--size", "1K:", "--limit", "1")["blocks"]
    return rows[0]["address"]


def test_process(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        target = Target.process(program.pid)
        asked = questions(live_block(target))
        expected = command_line(target, asked)
        assert in_gdb(["-p", str(program.pid)], asked, directory) == expected
        program.wait_state("S")  # it goes on


@pytest.mark.skipif(not kernel_cores_land_here(), reason="the kernel writes cores elsewhere")
def test_kernel_core(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        core = program.kernel_core()
    target = Target.core(core, "-e", DEBUGGED)
    asked = questions(live_block(target))
    assert in_gdb([DEBUGGED, core], asked, directory) == command_line(target, asked)


def test_core_by_gdb(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        core = gcore(program.pid, directory)
    target = Target.core(core, "-e", DEBUGGED)
    asked = questions(live_block(target))
    assert in_gdb([DEBUGGED, core], asked, directory) == command_line(target, asked)


def test_core_that_is_written_anew(directory: Path) -> None:
    """As by the program's next crash, between two questions: no answer of two halves, and GDB lives on. Loaded again, it is
    as any other."""
    with started([DEBUGGED, directory], directory) as program:
        core = gcore(program.pid, directory)
    saved = core.with_name("saved")
    asked = ["karst summary", f"shell cp {core} {saved}; truncate -s 8192 {core}", "karst blocks --limit 3",
             f"shell cp {saved} {core}",
             "karst summary ", f"core-file {core}", "karst summary  "]
    answers = gdb([DEBUGGED, core], asked, directory)
    for command in ("karst blocks --limit 3", "karst summary "):
        assert "core file was changed after it was opened" in answers.of(command).one_line()
    assert answers.of("karst summary  ").good() == answers.of("karst summary").good()


def test_core_without_symbols(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        core = gcore(program.pid, directory)
    target = Target.core(core, "-e", DEBUGGED, "--no-symbols")
    asked = questions(live_block(target))
    found = in_gdb([DEBUGGED, core], asked, directory, before=["set karst symbols off"])
    assert found == command_line(target, asked)


def without(answer: Any, *keys: str) -> Any:
    """answer without what a remote target can't tell: these keys, and what is resident."""
    if isinstance(answer, dict):
        return {key: without(value, *keys) for key, value in answer.items()
                if key not in keys and "resident" not in key}
    if isinstance(answer, list):
        return [without(value, *keys) for value in answer]
    return answer


def rows(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_gdbserver_here(directory: Path) -> None:
    """A process behind gdbserver on this machine is read as the command line reads it."""
    with started([DEBUGGED], directory) as program:
        target = Target.process(program.pid)
        asked = questions(live_block(target))
        expected = command_line(target, asked)
        with gdbserver(["--attach", "127.0.0.1:0", str(program.pid)], directory) as port:
            found = in_gdb([DEBUGGED], asked, directory, before=[f"target remote 127.0.0.1:{port}"])
    assert found == expected


def test_gdbserver(directory: Path) -> None:
    """Through GDB alone."""
    with started([DEBUGGED], directory) as program:
        target = Target.process(program.pid)
        asked = [words for words in questions(live_block(target)) if words != "info"]
        expected = command_line(target, asked)
        with gdbserver(["--attach", "127.0.0.1:0", str(program.pid)], directory) as port:
            found = in_gdb([DEBUGGED], asked, directory,
                           before=["set karst direct off", f"target remote 127.0.0.1:{port}"])
    for words in asked:
        here, there = (without(rows(text[words]), "target", "limit_known") for text in (expected, found))
        assert there == here, words


def test_all_verbs_are_there(directory: Path) -> None:
    answers = gdb([], [f"help karst {verb}" for verb in VERBS], directory)
    for verb in VERBS:
        text = answers.of(f"help karst {verb}").good()
        for line in karst(verb, "--help").stdout.split("\n\n", 2)[2].rstrip().splitlines():
            assert line in text, f"help karst {verb} leaves out: {line}"
