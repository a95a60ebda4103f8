"""The preload library put into running processes, and taken out again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import BASE, gdb
from karst_command import BUILD, TESTS
from karst_programs import Program, started
from test_gdb_detour import CYCLES, HAMMER, JEMALLOC, PROGRAMS, ends_well, text_of

PYTHON = "/usr/bin/python3"
LIBRARY = "libkarst-preload.so"
TRAP = "karst trap add malloc 424242"

SECCOMP = """
import ctypes, struct, time
allow = struct.pack("<HBBI", 6, 0, 0, 0x7fff0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
code = ctypes.create_string_buffer(allow)
program = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
print("ready", flush=True)
time.sleep(600)
"""


def is_mapped(program: Program) -> bool:
    return LIBRARY in Path(f"/proc/{program.pid}/maps").read_text()


def relro_of(pid: int) -> list[str]:
    """Mappings of files with what may be done with them: what was read-only is so again."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [" ".join([line.split()[0], line.split()[1], line.split()[5]]) for line in lines
            if len(line.split()) > 5 and line.split()[5].startswith("/")]


def cycle(program: Program, steps: Sequence[str], count: int, directory: Path) -> None:
    """So many times; a GDB does up to ten."""
    for begun in range(0, count, 10):
        few_cycles(program, steps, min(count - begun, 10), directory)


def few_cycles(program: Program, steps: Sequence[str], count: int, directory: Path) -> None:
    before, protected = text_of(program.pid), relro_of(program.pid)
    answers = gdb([], [command for _ in range(count) for command in (f"attach {program.pid}", *steps)], directory)
    for said in answers.said:
        assert said.error is None, f"{said.command}: {said.error}"
    for said in answers.all("continue"):
        assert ": malloc(424242) = 0x" in said.text and " asked_for " in said.text, said.text
    assert program.process.poll() is None
    if "karst eject" in steps:
        assert text_of(program.pid) == before
        assert relro_of(program.pid) == protected


@pytest.mark.parametrize("arguments", PROGRAMS, ids=" ".join)
def test_lives_on(directory: Path, arguments: list[str]) -> None:
    """A program that is in the allocator all the time: library in, trapped or not, and out again."""
    with started([HAMMER, *arguments], directory) as program:
        for steps in (["karst inject", TRAP, "continue", "karst eject", "detach"],
                      ["karst inject", "karst eject", "detach"]):
            cycle(program, steps, max(CYCLES // 2, 1), directory)
        ends_well(program)


def test_stays(directory: Path) -> None:
    """GDB goes away and another one comes: the trap in between hurts nobody, and eject needs no memory of inject."""
    with started([HAMMER, "3"], directory) as program:
        before = text_of(program.pid)
        cycle(program, ["karst inject", TRAP, "detach"], 1, directory)
        assert is_mapped(program)
        answers = gdb(["-p", str(program.pid)], ["karst inject", "continue", "bt", "karst trap list --json", "karst eject",
                                                 "karst eject"], directory)
        assert answers.all("karst inject")[0].good() == f"{LIBRARY} is in already\n"
        assert "asked_for" in answers.of("continue").good()
        assert "karst" not in answers.of("bt").good()
        assert answers.of("karst trap list --json").json()["traps"][0]["by"] == "library"
        assert "words set back" in answers.all("karst eject")[0].good()
        assert "is not in this process" in answers.all("karst eject")[1].one_line()
        assert not is_mapped(program)
        assert text_of(program.pid) == before
        ends_well(program)


@pytest.mark.skipif(not JEMALLOC.exists(), reason="libjemalloc2 is not installed")
def test_with_jemalloc(directory: Path) -> None:
    with started([HAMMER, "3"], directory, {"LD_PRELOAD": str(JEMALLOC)}) as program:
        cycle(program, ["karst inject", TRAP, "continue", "karst eject", "detach"], 2, directory)
        ends_well(program)


def test_detours_become_the_librarys(directory: Path) -> None:
    with started([HAMMER, "2"], directory) as program:
        cycle(program, [TRAP, "karst inject", "continue", "karst eject", "detach"], 2, directory)
        ends_well(program)


def test_of_a_sleeping_process(directory: Path) -> None:
    """One that may never call the allocator again: nothing has to be waited for. The recorder is on from then."""
    script = "import time; print('ready', flush=True)\nwhile True: time.sleep(0.2); kept = 'x' * 54321"
    with started([PYTHON, "-c", script], directory) as program:
        commands = [f"attach {program.pid}", "karst inject --recorder=64K", "karst trap add malloc 54370", "continue",
                    "karst history --last 5 --json", "karst py-stack", "karst eject", "detach"]
        answers = gdb([], commands, directory)
        assert ": malloc(54370) = 0x" in answers.of("continue").good()
        assert "54370" in answers.of("karst history --last 5 --json").good()
        assert "<module> at <string>:2" in answers.of("karst py-stack").good()
        assert not is_mapped(program)
        assert program.process.poll() is None


def test_marks_of_a_running_process(directory: Path) -> None:
    """Blocks from then on are marked: a double free is caught at the call, with both sites; those before are fine."""
    with started([TESTS / "twice"], directory) as program:
        commands = [f"attach {program.pid}", "karst inject --mark", "karst trap add faults", "shell touch go", "continue",
                    "karst sites --json", "karst eject", "detach"]
        answers = gdb([], commands, directory)
        told = re.search(r"^karst trap 1: double free: free\((0x[0-9a-f]+)\), block \1 of 777 bytes, allocated at "
                         r"(0x[0-9a-f]+), first freed at (0x[0-9a-f]+), thread", answers.of("continue").good(), re.MULTILINE)
        assert told is not None
        assert " release_again " in answers.of("continue").text
        sites = {row["bytes"] for row in answers.of("karst sites --json").json()["sites"]}
        assert sites == {55, 99}
        assert "words set back" in answers.of("karst eject").good()
        assert not is_mapped(program)
        assert program.process.poll() is None


def test_parts_turned_on_one_after_the_other(directory: Path) -> None:
    """What is on stays on, and sites are stacks from when that is asked for."""
    with started([HAMMER, "2"], directory) as program:
        steps = ["karst inject --recorder=64K", TRAP, "continue", "karst inject --mark", "continue",
                 "karst inject --stacks=6", "continue", "continue", "karst info --json", "karst sites --stacks --all --json",
                 "karst history --last 1 --json", "karst eject", "detach"]
        answers = gdb([], [f"attach {program.pid}", *steps], directory)
        marker = answers.of("karst info --json").json()["marker"]
        assert (marker["recorder_bytes"], marker["marks"], marker["stacks"]) == (64 << 10, True, True)
        stacks = [site["stack"] for site in answers.of("karst sites --stacks --all --json").json()["sites"]]
        assert any(len(stack) > 1 and any("start_thread" in frame["text"] for frame in stack) for stack in stacks)
        assert answers.of("karst history --last 1 --json").json()["shown"] == 1
        assert "words set back" in answers.of("karst eject").good()
        ends_well(program)


def test_a_killed_debuggers_breakpoint_in_the_loader(directory: Path) -> None:
    """GDB's own, for libraries that are loaded, is in the text while the process runs; dlopen would run into it."""
    with started([HAMMER, "3"], directory) as program:
        before = text_of(program.pid)
        words = [*BASE, "-batch", "-p", str(program.pid), "-ex", "continue"]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
            end = time.monotonic() + 60
            while text_of(program.pid) == before and time.monotonic() < end:
                time.sleep(0.02)
            killed.kill()
        assert text_of(program.pid) != before
        answers = gdb(["-p", str(program.pid)], ["karst inject --mark", "detach", f"attach {program.pid}",
                                                 "karst inject", TRAP, "continue", "karst eject", "detach"], directory)
        assert answers.said[0].one_line().startswith("a debugger that was killed left a breakpoint in the loader")
        assert [said.error for said in answers.said[1:] if said.error] == []
        assert "asked_for" in answers.of("continue").good()
        assert f"{LIBRARY} is out: " in answers.of("karst eject").good()
        assert text_of(program.pid) == before
        os.kill(program.pid, signal.SIGCONT)  # of its stops of threads, too, one may be left
        ends_well(program)


def test_signals_all_the_time(directory: Path) -> None:
    """GDB stops for SIGUSR1, and gives up a call in the middle if it comes to another thread: not in these. Afterwards it
    stops as before."""
    with started([TESTS / "awkward", "signals"], directory) as program:
        steps = ["karst inject --mark --stacks=4", "karst eject"] * 3
        answers = gdb([], [f"attach {program.pid}", "info signals", *steps, "info signals", "continue",
                           "handle SIGUSR1 nostop", "detach"], directory)
        assert [said.error for said in answers.said if said.error] == []
        before, after = answers.all("info signals")
        assert after.text == before.text
        assert "received signal SIGUSR1" in answers.output
        assert program.process.poll() is None and not is_mapped(program)


@pytest.mark.parametrize(("option", "says"), [
    ("--stacks=-1", "'-1' is no number of frames; 1 to 64"), ("--stacks=65", "1 to 64"), ("--stacks=many", "1 to 64"),
    ("--stacks=8", "give --mark or --recorder with it"), ("--recorder=0", "'0' is no size"),
    ("--recorder=1M:2M", "'1M:2M' is no size"), ("--recoder", "did you mean --recorder"), ("more", "more"),
])
def test_wrong_words_leave_the_process_alone(directory: Path, option: str, says: str) -> None:
    with started([HAMMER, "1"], directory) as program:
        answers = gdb(["-p", str(program.pid)], [f"karst inject {option}"], directory)
        assert says in answers.said[0].one_line()
        assert not is_mapped(program)


def test_the_process_ends_meanwhile(directory: Path) -> None:
    """It calls the allocator no more."""
    answers = gdb([TESTS / "callers"], ["tbreak done", "run", "karst inject"], directory)
    assert "ended before it got" in answers.of("karst inject").one_line()


def test_is_refused(directory: Path) -> None:
    with started([TESTS / "callers-static", "go"], directory) as program:
        answers = gdb(["-p", str(program.pid)], ["karst inject"], directory)
        assert "a static program can't load a library" in answers.said[0].one_line()
    with started([PYTHON, "-c", SECCOMP], directory) as program:
        answers = gdb(["-p", str(program.pid)], ["karst inject", "karst eject"], directory)
        assert "seccomp" in answers.said[0].one_line()
        assert "is not in this process" in answers.said[1].one_line()
    with started([HAMMER, "1"], directory, {"LD_PRELOAD": str(BUILD / LIBRARY)}) as program:
        answers = gdb(["-p", str(program.pid)], ["karst inject", "karst eject", "karst inject --nothing"], directory)
        assert "is in already" in answers.said[0].good()
        assert "was there from the start" in answers.said[1].one_line()
        assert "--nothing" in answers.said[2].one_line()
        ends_well(program)
    assert "no process" in gdb([HAMMER], ["karst inject"], directory).said[0].one_line()
