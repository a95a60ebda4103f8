"""Traps in a process without the library: detours in the text, and what the process is like afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import BASE, PLUGIN, gdb, gdbserver
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


def cycles(program: Program, steps: Sequence[str], count: int, directory: Path) -> None:
    """So many times; a GDB does up to ten."""
    for begun in range(0, count, 10):
        few_cycles(program, steps, min(count - begun, 10), directory)


def few_cycles(program: Program, steps: Sequence[str], count: int, directory: Path) -> None:
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


# ---- what is counted is what was called ----------------------------------------------------------------

CALLERS = TESTS / "callers"
JEMALLOC = Path("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")

# Traps and the program's own count of the calls that meet them. With skip= the process counts by itself.
COUNTED = {
    "malloc 100": "malloc_100",
    "malloc 100:200": "malloc_100_to_200",
    "malloc 90/150/210": "set",
    "calloc 4096": "calloc_4096",
    "realloc 777": "realloc_777",
    "realloc 4G:": "realloc_huge",
    "realloc 5G": "realloc_huge",
    "realloc 4G:6G": "realloc_huge",
    "reallocarray 4K": "reallocarray_4096",
    "memalign,posix_memalign,aligned_alloc 640": "memalign_640 * 3",
    "valloc 999": "valloc_999",
    "pvalloc 998": "pvalloc_998",
    "malloc 100 thread=$second": "second_thread_malloc_100",
    "malloc 100 caller=PROGRAM": "malloc_100",
    "free freed=$kept": "freed_kept",
    "frees freed=$kept": "freed_kept",
}


def value_of(text: str) -> int:
    return int(text.split("=")[1], 0)


def count_calls(directory: Path, environment: dict[str, str] | None = None) -> None:
    """Every trap of COUNTED at once."""
    with started([CALLERS, "go"], directory, environment) as program:
        kept = program.wait_line("kept").split()[1]
        second = max(int(name) for name in os.listdir(f"/proc/{program.pid}/task"))
        specs = {f"{spec} skip=1000000".replace("$kept", kept).replace("$second", str(second))
                 .replace("PROGRAM", CALLERS.name): counted for spec, counted in COUNTED.items()}
        commands = [f"attach {program.pid}", *[f"karst trap add {spec}" for spec in specs], "tbreak done",
                    "shell touch go", "continue", *[f"print counts.{counted}" for counted in specs.values()],
                    "karst trap list --json"]
        answers = gdb([], commands, directory)
        assert [said.error for said in answers.said if said.error] == []
        traps = {trap["text"]: trap for trap in answers.of("karst trap list --json").json()["traps"]}
        for spec, counted in specs.items():
            expected = value_of(answers.of(f"print counts.{counted}").good())
            assert expected > 0 or (environment and "pvalloc" in spec)
            assert (traps[spec]["hits"], traps[spec]["stops"]) == (expected, 0), spec
        assert program.process.wait(timeout=60) == 0


def test_counts_what_is_called(directory: Path) -> None:
    count_calls(directory)


@pytest.mark.skipif(not JEMALLOC.exists(), reason="libjemalloc2 is not installed")
def test_counts_in_front_of_libc(directory: Path) -> None:
    count_calls(directory, {"LD_PRELOAD": str(JEMALLOC)})


def test_counts_in_static_program(directory: Path) -> None:
    """Found by its symbols; where there is no room for counters, GDB counts, one stop a match."""
    with started([TESTS / "callers-static", "go"], directory) as program:
        commands = [f"attach {program.pid}", "karst trap add realloc 777 skip=30", "tbreak done", "shell touch go",
                    "continue", "karst trap disable", "continue", "print counts.realloc_777", "karst trap list --json"]
        answers = gdb([], commands, directory)
        assert "karst trap 1: realloc(0x" in answers.all("continue")[0].good()
        assert answers.of("karst trap list --json").json()["traps"][0]["hits"] == 31
        assert program.process.wait(timeout=60) == 0


# ---- what is refused, and what else happens ------------------------------------------------------------


@pytest.mark.parametrize("spec, says", [
    ("malloc 100 event=7", "event= needs libkarst-preload.so"),
    ("growth", "growth needs libkarst-preload.so"),
    ("double-free", "faults needs libkarst-preload.so"),
    ("malloc 100 action=core", "action= is for when no debugger is there"),
    ("malloc 100 thread=1", "no such thread"),
    ("malloc 100 caller=libnowhere.so", "no such module"),
    ("new 100", "no module defines it"),
    ("mallocs 100", "'mallocs' is unknown; did you mean malloc?"),
    ("malloc 1x", "'1x' is no size"),
    ("free 100", "no call can meet this"),
    ("free freed=nothing_here", "nothing_here"),
    ("", "which trap?"),
])
def test_refused(directory: Path, spec: str, says: str) -> None:
    with started([CALLERS, "go"], directory) as program:
        before = text_of(program.pid)
        command = f"karst trap add {spec}".strip()
        answers = gdb(["-p", str(program.pid)], [command, "karst trap list"], directory)
        assert says in answers.of(command).one_line()
        assert answers.of("karst trap list").good() == "no traps\n"
        assert text_of(program.pid) == before


def test_nothing_to_trap(directory: Path) -> None:
    commands = ["karst trap add malloc 1", "karst trap list", "karst trap remove 3", "karst trap remove x"]
    answers = gdb([CALLERS], commands, directory)
    assert "no process" in answers.of(commands[0]).one_line()
    assert "are no numbers of traps" in answers.of(commands[3]).one_line()


def test_refused_while_a_thread_runs(directory: Path) -> None:
    """In non-stop mode GDB stops one when it attaches."""
    with started([HAMMER, "2"], directory) as program:
        before = text_of(program.pid)
        commands = ["set non-stop on", f"attach {program.pid}", "karst trap add malloc 424242", "karst inject", "detach"]
        answers = gdb([], commands, directory)
        assert "1 of 2 threads runs on" in answers.of("karst trap add malloc 424242").one_line()
        assert "set non-stop off" in answers.of("karst inject").one_line()
        assert text_of(program.pid) == before


def test_breakpoints_in_the_way(directory: Path) -> None:
    """GDB's own breakpoints and a detour never share bytes, whichever comes first."""
    with started([CALLERS, "go"], directory) as program:
        before = text_of(program.pid)
        commands = [f"attach {program.pid}", "break *((char *) realloc + 2)", "karst trap add realloc 777", "delete",
                    "break *realloc", "karst trap add realloc 777", "break *((char *) realloc + 4)",
                    "karst trap list --json", "delete", "karst trap enable", "karst trap list --json", "detach"]
        answers = gdb([], commands, directory)
        added = answers.all("karst trap add realloc 777")
        assert "breakpoint 1 is within the 6 bytes" in added[0].one_line()
        added[1].good()
        states = [said.json()["traps"][0]["state"] for said in answers.all("karst trap list --json")]
        assert states == ["off", "on"]
        assert text_of(program.pid) == before


WAYS_OUT = {
    "the end of a batch": [],
    "detach": ["detach"],
    "detach inferiors": ["detach inferiors 1"],
    "quit": ["quit"],
    "another process": ["detach", "file"],
    "a hook that was there": ["detach"],
    "a hook that is redefined": ["define hook-detach\nend", "detach"],
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_text_is_what_it_was(directory: Path, way: str) -> None:
    """However GDB lets go of a process that is stopped at a trap, with several set."""
    with started([HAMMER, "3"], directory) as program:
        before = text_of(program.pid)
        hook = directory / "hook.gdb"
        hook.write_text("define hook-detach\necho mine\\n\nend\n" if "was there" in way else "")
        words = [*BASE, "-batch", "-ex", f"source {hook}",
                 "-ex", f"source {PLUGIN}", "-p", str(program.pid), "-ex", "karst trap add malloc 424242", "-ex",
                 "karst trap add calloc,free,realloc 5M:", "-ex", "continue"]
        for command in WAYS_OUT[way]:
            words += ["-ex", f"python gdb.execute({command!r})"]
        said = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=60, cwd=directory).stdout
        assert "karst trap 1: malloc(424242)" in said, said
        assert text_of(program.pid) == before, said
        assert ("mine" in said) == ("was there" in way), said
        ends_well(program)


def test_another_program_is_executed(directory: Path) -> None:
    commands = ["unset environment PYTHONHOME", "tbreak Py_BytesMain", "run -c \"import os; os.execv('/bin/true', ['true'])\"",
                "karst trap add malloc 100000000", "continue", "karst trap list"]
    answers = gdb(["/usr/bin/python3"], commands, directory)
    assert "executing new program" in answers.of("continue").good() + answers.output
    assert "exited normally" in answers.output
    assert "no process" in answers.of("karst trap list").one_line()


def test_backtrace_is_clean(directory: Path) -> None:
    """GDB knows the way from a detour to its caller at each of its instructions, which no file tells of."""
    with started([HAMMER, "1"], directory) as program:
        steps = [command for _ in range(12) for command in ("stepi", "bt")]
        commands = [f"attach {program.pid}", "karst trap add malloc 424242", "continue", "bt", "bt -no-filters", "frame 0",
                    *steps, "detach"]
        answers = gdb([], commands, directory)
        for said in answers.all("bt"):
            assert re.search(r"^#\d .* asked_for .*\n#\d .* hammer .*\n#\d .* main ", said.good(), re.MULTILINE)
            assert "??" not in said.text
        assert "#0 " in answers.all("bt -no-filters")[0].good()
        assert "#0 " not in answers.all("bt")[0].good()


@pytest.mark.parametrize("way", ["detour", "library"])
@pytest.mark.parametrize("command", ["next", "step", "until", "finish"])
def test_stepping_goes_on_in_the_caller(directory: Path, way: str, command: str) -> None:
    with started([HAMMER, "3"], directory) as program:
        inject = ["karst inject"] if way == "library" else []
        commands = [f"attach {program.pid}", *inject, "karst trap add malloc 424242 count=1", "continue", "bt", command,
                    "info frame", "backtrace 1", *(["karst eject"] if inject else ["karst trap remove"]), "detach"]
        answers = gdb([], commands, directory)
        assert [said.error for said in answers.said if said.error] == []
        assert re.match(r"#\d+ .*\basked_for \(", answers.of("bt").good()), answers.of("bt").text
        where = "hammer" if command == "finish" else "asked_for"
        assert re.match(rf"#0 .*\b{where} \(", answers.of("backtrace 1").good()), answers.of("backtrace 1").text
        assert "Stack level 0," in answers.of("info frame").good()
        ends_well(program)


@pytest.mark.parametrize("way", ["detour", "library"])
def test_a_step_that_another_stop_comes_before(directory: Path, way: str) -> None:
    """The step is not made, which is said, and the next one is."""
    signal_it = ("python import ctypes; ctypes.CDLL(None).syscall(234, gdb.selected_inferior().pid, "
                 "gdb.selected_thread().ptid[1], 10)")  # tgkill, SIGUSR1
    with started([HAMMER, "3"], directory) as program:
        inject = ["karst inject"] if way == "library" else []
        commands = [f"attach {program.pid}", "handle SIGUSR1 stop print nopass", *inject,
                    "karst trap add malloc 424242 count=1", "continue", signal_it, "next", "print $_siginfo.si_signo", "next", "bt 1",
                    *(["karst eject"] if inject else ["karst trap remove"]), "detach"]
        answers = gdb([], commands, directory)
        early, made = answers.all("next")
        assert early.one_line().startswith("the step was not begun")
        assert answers.of("print $_siginfo.si_signo").good() == "$1 = 10\n"
        assert made.error is None
        assert re.match(r"#0 .*\basked_for \(", answers.of("bt 1").good()), answers.of("bt 1").text
        ends_well(program)


def test_a_killed_debuggers_detour(directory: Path) -> None:
    """What a GDB that was killed left behind is found and taken out by the next one."""
    with started([HAMMER, "3"], directory) as program:
        before = text_of(program.pid)
        words = [*BASE, "-batch", "-ex", f"source {PLUGIN}", "-p", str(program.pid), "-ex",
                 "karst trap add malloc 424243 skip=7", "-ex", "karst trap add realloc,free,calloc 7M:", "-ex",
                 "shell kill -9 $PPID"]
        killed = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                timeout=60, cwd=directory)
        assert killed.returncode == -signal.SIGKILL
        assert text_of(program.pid) != before
        time.sleep(0.2)  # with the detours in, and nobody there
        answers = gdb(["-p", str(program.pid)], ["karst trap list", "detach"], directory)
        assert answers.said[0].good() == "karst: took out 3 detours that a debugger before left here\nno traps\n"
        assert text_of(program.pid) == before
        answers = gdb(["-p", str(program.pid)], ["karst trap add malloc 424242 skip=1", "continue", "detach"], directory)
        assert "malloc(424242)" in answers.of("continue").good()
        ends_well(program)


def test_through_gdbserver(directory: Path) -> None:
    with started([HAMMER, "3"], directory) as program:
        before = text_of(program.pid)
        for direct in ("on", "off"):
            with gdbserver(["--attach", "127.0.0.1:0", str(program.pid)], directory) as port:
                commands = [f"set karst direct {direct}", f"target remote 127.0.0.1:{port}",
                            "karst trap add malloc 424242 skip=1", "continue", "bt", "karst trap list --json", "detach"]
                answers = gdb([HAMMER], commands, directory)
            assert re.search(r"^karst trap 1: malloc\(424242\), thread \d+,", answers.of("continue").good(), re.MULTILINE)
            assert "asked_for" in answers.of("bt").good()
            assert answers.of("karst trap list --json").json()["traps"][0]["hits"] >= 2
            assert answers.of("detach").error is None
            assert text_of(program.pid) == before
        ends_well(program)


ENDING_THREAD = """
import os, signal, threading, time
def wait():
    while not os.path.exists("go"):
        time.sleep(0.01)
threads = [threading.Thread(target=wait) for _ in range(2)]
threads[0].start()
print("ready", flush=True)
threads[0].join()
os.kill(os.getpid(), signal.SIGUSR1)
threads[1].start()
threads[1].join()
kept = bytes(54321 - 33)
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_the_thread_of_a_trap_has_ended(directory: Path) -> None:
    """Its trap stays, meets nobody, also not the thread that gets its memory, and is in nobody's way."""
    with started(["/usr/bin/python3", "-c", ENDING_THREAD], directory) as program:
        thread = max(map(int, os.listdir(f"/proc/{program.pid}/task")))
        commands = [f"attach {program.pid}", f"karst trap add malloc 1: thread={thread} skip=1M", "handle SIGUSR1 nopass",
                    "shell touch go", "continue",
                    f"karst trap add malloc 2: thread={thread}", "karst trap add malloc,calloc 54321", "karst trap disable 1",
                    "karst trap enable 1", "continue", "karst trap list --json", "karst trap remove 1", "karst trap list --json"]
        answers = gdb([], commands, directory)
        assert "there is no such thread" in answers.said[5].one_line()
        assert [said.error for said in answers.said if said.error] == [answers.said[5].error]
        assert "54321" in answers.of("continue").good()
        assert [[(trap["number"], trap["state"]) for trap in said.json()["traps"]]
                for said in answers.all("karst trap list --json")] == [[(1, "on"), (2, "on")], [(2, "on")]]


FORKS = """
import os, sys, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
for number in range(3):
    child = os.fork()
    if child == 0:
        kept = [bytes(54321 - 33) for _ in range(10)]
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert os.spawnv(os.P_WAIT, "/bin/true", ["true"]) == 0
print("good", flush=True)
"""


def test_children_live_on(directory: Path) -> None:
    """A forked child meets the trap's conditions with nobody there, and does what it would have done."""
    with started(["/usr/bin/python3", "-c", FORKS], directory) as program:
        commands = [f"attach {program.pid}", "karst trap add malloc,calloc 54321", "shell touch go", "continue"]
        answers = gdb([], commands, directory)
        assert program.wait_line("good")
        assert "karst trap" not in answers.of("continue").good()
        assert program.process.wait(timeout=60) == 0


def test_a_child_that_is_followed(directory: Path) -> None:
    """The parent, which GDB lets go of, is what it was; the traps go on in the child, and are taken out when GDB ends."""
    with started(["/usr/bin/python3", "-c", FORKS.replace("os._exit(7)", "time.sleep(600)")], directory) as program:
        before = text_of(program.pid)
        commands = ["set follow-fork-mode child", f"attach {program.pid}", "karst trap add malloc,calloc 54321 count=3",
                    "shell touch go", "continue", "karst trap list --json", "python print(gdb.selected_inferior().pid)"]
        answers = gdb([], commands, directory)
        trap, = answers.of("karst trap list --json").json()["traps"]
        assert (trap["state"], trap["stops"]) == ("on", 1)
        child = int(answers.said[-1].good())
        try:
            assert "54321" in answers.of("continue").good() and child != program.pid
            assert text_of(program.pid) == before and text_of(child) == before
        finally:
            os.kill(child, signal.SIGKILL)


SPAWNS = """
import os, sys, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
assert os.spawnv(os.P_WAIT, "/bin/true", ["true"]) == 0
print("good", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("settings", [[], ["set detach-on-fork off"]])
def test_a_child_by_vfork_that_is_followed(directory: Path, settings: list[str]) -> None:
    """It runs in its parent's memory up to its exec: the traps are the parent's alone, whose text is at last what it was."""
    with started(["/usr/bin/python3", "-c", SPAWNS], directory) as program:
        before = text_of(program.pid)
        commands = ["set follow-fork-mode child", *settings, f"attach {program.pid}", "karst trap add malloc,calloc 54321",
                    "shell touch go", "continue", "python print(gdb.selected_inferior().pid)"]
        answers = gdb([], commands, directory)
        assert [said.error for said in answers.said if said.error] == [] and answers.said[-1].good() == "0\n"
        assert "Exception" not in answers.output and "karst:" not in answers.output
        assert program.wait_line("good")
        assert text_of(program.pid) == before
