"""Traps where GDB has several processes, or threads that run on while others are stopped."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from gdb_runner import BASE, PLUGIN, Answers, gdb
from karst_command import TESTS
from karst_preload import CALLS
from karst_programs import started
from karst_prompt import Prompt, at_prompt
from test_gdb_detour import ends_well, text_of

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
    """Traps are told there too. This program has one thread, so all are stopped then, and traps can be changed."""
    commands = ["set non-stop on", "karst run --trap 'malloc 150'", "bt", "karst trap add malloc 3", "karst inject", "kill",
                "tbreak main", "run", TEXT, "karst trap add malloc 150 count=1", "continue", "karst trap list --json",
                "karst trap remove", TEXT]
    answers = gdb([CALLS], ["set args sizes", *commands], directory)
    for told in (TOLD.search(answers.of(word).good()) for word in (commands[1], "continue")):
        assert told is not None and told[1] == "150", answers.output
    assert re.match(r"#\d+ .* make ", answers.of("bt").good())
    assert answers.of(commands[3]).good() == "trap 2: malloc 3 (by libkarst-preload.so)\n"
    assert "in non-stop mode" in answers.of("karst inject").one_line()
    assert [(trap["state"], trap["stops"]) for trap in answers.of("karst trap list --json").json()["traps"]] == [("spent", 1)]
    assert len({said.good() for said in answers.all(TEXT)}) == 1
    assert "Exception" not in answers.output


class NonStop:
    """A GDB in non-stop mode, typed into."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self._asked = 0

    def type(self, line: str, answer: str) -> None:
        """answer: what a line is to begin with that comes after this."""
        shown = len(self.prompt.text)
        self.prompt.type(line)
        self.prompt.wait_for(rf"(?s:\A.{{{shown}}}.*)^{answer}")

    def running(self) -> int:
        self._asked += 1
        count = "sum(thread.is_running() for thread in gdb.selected_inferior().threads())"
        self.prompt.type(f"python print('running', {self._asked}, {count})")
        text = self.prompt.wait_for(rf"^running {self._asked} \d+$")
        return int(re.findall(rf"^running {self._asked} (\d+)$", text, re.M)[-1])

    def stop_all(self) -> None:
        self.prompt.type("interrupt -a")
        end = time.monotonic() + 60
        while self.running():
            assert time.monotonic() < end
            time.sleep(0.1)


def test_detours_in_non_stop_mode(directory: Path) -> None:
    """They are changed while all threads are stopped, and refused in one line while one runs."""
    with started([TESTS / "hammer", "2"], directory) as program:
        before = text_of(program.pid)
        options = ["-iex", "set pagination off", "-iex", "set non-stop on", "-ex", f"source {PLUGIN}", "-p", str(program.pid)]
        with at_prompt([*BASE, *options], directory, {}) as prompt:
            shown = NonStop(prompt)
            shown.stop_all()
            shown.type("karst trap add malloc 424242 count=1", "trap 1: malloc 424242")
            shown.type("continue -a &", r"karst trap 1: malloc\(424242\)")
            assert shown.running() == 1
            stopped = re.findall(r"^karst trap 1: .*, thread (\d+), called", prompt.text, re.M)[0]
            running, = {"1", "2"} - {"1" if int(stopped) == program.pid else "2"}
            shown.type(f"thread {running}", r"\[Switching to thread")
            shown.type("karst trap list", "the selected thread is running: select one that is stopped")
            shown.type(f"thread {3 - int(running)}", r"\[Switching to thread")
            shown.type("karst trap add malloc 3", "1 of 2 threads runs on, as in non-stop mode; all have to be stopped")
            shown.type("karst trap list", " *1 +malloc 424242 count=1 +spent +detour +1 +1$")
            shown.type("break *((char *) malloc + 4)", "karst: breakpoint 1 is off: it is within a detour")
            shown.stop_all()
            shown.type("karst trap add realloc 424242", "trap 2: realloc 424242")
            shown.type("karst trap remove 2", r"\(gdb\) ")
            shown.type("continue -a &", "Continuing")
            shown.type("detach", r"\[Inferior 1 .* detached\]")
            assert text_of(program.pid) == before
        ends_well(program)
