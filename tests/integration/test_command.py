"""The karst command as one meets it: words, options, mistakes, terminals, pipes, Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from karst_command import KARST, ROOT, karst
from karst_programs import Program, kernel_cores_land_here, started

HOLES = """
kept = [bytes(size) for size in range(600, 20000)]
del kept[::2]
print("ready", flush=True)
import time
time.sleep(600)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    directory = tmp_path_factory.mktemp("command")
    with started(["/usr/bin/python3", "-c", HOLES], directory, {"PYTHONMALLOC": "malloc"}) as running:
        yield running


def on_terminal(columns: int, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run karst on a terminal of so many columns."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    environment = {**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm", **environment}
    process = subprocess.Popen([KARST, *arguments], stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    text = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # nobody is left on the other side
            break
        if not piece:
            break
        text += piece
    os.close(main)
    return process.wait(timeout=60), text.decode().replace("\r\n", "\n")


def completed(*words: str) -> list[str]:
    """What bash offers for the last word behind `karst`."""
    script = """source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _karst; printf '%s\n' "${COMPREPLY[@]}" """
    done = subprocess.run(["bash", "-c", script, "bash", ROOT / "helper" / "cli" / "karst.bash", KARST, *words],
                          capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(("line", "offers"), [
    ("su", ["summary"]),
    ("help bl", ["blocks", "block"]),
    ("-p 1 py-", ["py-stack", "py-objects"]),
    ("-c core blocks --st", ["--state"]),
    ("blocks --state ca", ["cached"]),
    ("blocks --sort ", ["address", "size"]),
    ("blocks --state = l", ["live"]),  # bash makes three words of --state=l
    ("--color a", ["auto", "always"]),
    ("--state f", ["free"]),
    ("-c ", [""]),  # files, by bash itself
    ("map -o pict", [""]),
    ("blocks nothing", [""]),
    ("run --re", ["--recorder", "--recorder-dir"]),
    ("run --mark --action c", ["core"]),
    ("run --mark -- sh -", [""]),
])
def test_completion_in_the_shell(line: str, offers: list[str]) -> None:
    assert completed(*line.split(" ")) == offers


def test_completion_names_processes_and_commands(program: Program) -> None:
    assert str(program.pid) in completed("-p", "")
    assert "1" not in completed("--pid", "2")
    assert "setsid" in completed("run", "--mark", "setsi")
    assert "setsid" in completed("run", "--mark", "--", "setsi")


@pytest.mark.parametrize("words", [[], ["run"], ["blocks"], ["map"], ["history"]])
def test_completion_knows_all_options(words: list[str]) -> None:
    """Those of the help, of the target and of the verb."""
    told = karst(*words, "--help").stdout
    if words != ["run"]:
        told += karst("--help").stdout.partition("Overview")[0].partition("Target")[2]
    helped = set(re.findall(r"^  (?:-\w, |    )(--[a-z-]+)", told, re.MULTILINE))
    assert set(completed(*words, "--")) == helped | {"--help"} | ({"--json", "--bytes"} if words != ["run"] else set())


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and not done.stdout, (done.returncode, done.stdout)
    assert done.stderr.startswith("karst: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no verb"),
        (["sumary", "-p", "1"], "did you mean summary?"),
        (["summary"], "-p PID or -c CORE"),
        (["-p", "1", "-c", "core", "summary"], "two targets"),
        (["-p", "x", "summary"], "'x' is no process id"),
        (["-p", "-5", "summary"], "no process id"),
        (["summary", "-c"], "-c needs a value"),
        (["summary", "--core"], "--core needs a value"),
        (["summary", "--no-stop=1", "-p", "1"], "takes no value"),
        (["-c", "/nowhere/core", "summary"], "/nowhere/core"),
        (["-c", "/etc/passwd", "summary"], "not a core file"),
        (["-c", "/", "summary"], "/"),
        (["-p", "4194304", "summary"], "no process 4194304"),
        (["-p", "1", "blocks", "--limt", "3"], "did you mean --limit?"),
        (["--limt", "3", "blocks", "-p", "1"], "did you mean --limit?"),
        (["-p", "1", "block"], "block needs ADDRESS"),
        (["--color", "sometimes", "summary"], "auto, always or never"),
        (["help", "blok"], "did you mean block?"),
    ],
)
def test_mistakes_cost_one_line(arguments: list[str], says: str) -> None:
    assert says in one_line(karst(*arguments))


def test_help_needs_no_target() -> None:
    listing = karst("--help")
    assert listing.returncode == 0 and not listing.stderr
    for verb in ("summary", "arenas", "bins", "info", "blocks", "block", "sizes", "holes", "pins", "check"):
        assert f"  {verb} " in listing.stdout
        told = karst(verb, "--help")
        assert told.returncode == 0 and told.stdout.startswith(f"karst {verb}")
        assert told.stdout == karst("help", verb).stdout == karst("-h", verb).stdout
    assert karst("--version").stdout.startswith("karst ")
    assert max(len(line) for line in listing.stdout.splitlines()) <= 80


def test_options_stand_anywhere(program: Program) -> None:
    pid = str(program.pid)
    wanted = json.loads(karst("-p", pid, "blocks", "--limit", "3", "--state", "free", "--json").stdout)
    assert len(wanted["blocks"]) == 3
    for words in (
        ["--json", "--state=free", "--limit", "3", "blocks", "-p", pid],
        ["-jn3", "-p" + pid, "blocks", "-s", "free"],
        ["--stat", "free", "blocks", "--pid=" + pid, "-jn", "3", "--color", "never"],
        ["-p", pid, "--json", "-n3", "-sfree", "--", "blocks"],
    ):
        done = karst(*words)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == wanted, words


def test_text_and_json_say_the_same_numbers(program: Program) -> None:
    pid = str(program.pid)
    total = json.loads(karst("-p", pid, "summary", "--json").stdout)["total"]
    text = karst("-p", pid, "summary", "--bytes").stdout
    for state in ("live", "cached", "free", "top"):
        line = next(line for line in text.splitlines() if line.startswith(state))
        assert f"{total[state]['blocks']:,}" in line and f"{total[state]['bytes']:,}" in line


def test_silent_on_standard_error(program: Program) -> None:
    for verb in ("summary", "bins", "blocks", "check"):
        assert karst("-p", str(program.pid), verb).stderr == ""


def test_terminals(program: Program) -> None:
    pid = str(program.pid)
    for columns in (40, 60, 80, 120):
        for words in (["arenas"], ["bins"], ["blocks"], ["summary"], ["sizes"]):
            status, text = on_terminal(columns, "-p", pid, *words, "--color", "never")
            assert status == 0 and "\033" not in text
            if columns >= 80:  # below that a row of figures may need more
                assert max(len(line) for line in text.splitlines()) <= columns, (words, columns)
    assert "(left out to fit: " in on_terminal(60, "-p", pid, "arenas", "--color", "never")[1]
    plain = karst("-p", pid, "arenas", environment={"COLUMNS": "40"}).stdout
    assert "left out" not in plain and "address" in plain  # a pipe is as wide as it needs to be


def test_no_line_is_wider_than_the_terminal(tmp_path: Path) -> None:
    many = HOLES.replace("del kept", "small = [[str(number)] for number in range(50000)]\ndel small[::2], kept")
    with started(["/usr/bin/python3", "-c", many], tmp_path) as running:
        for words in ("summary", "arenas", "bins", "holes", "pins", "pools", "py-objects", "py-stack", "map", "maps", "rss",
                      "runs", "runs --classes", "sizes", "blocks", "info"):
            status, text = on_terminal(80, "-p", str(running.pid), *words.split(), "--color", "never")
            lines = [line.rpartition("\r")[2] for line in text.splitlines()]  # a \r clears a line of progress
            assert status == 0 and max(map(len, lines)) <= 80, (words, text)


def test_help_fits_a_terminal() -> None:
    for words in ([], ["run"], ["blocks"], ["map"], ["history"]):
        status, text = on_terminal(80, *words, "--help", "--color", "never") if words != ["run"] else \
            on_terminal(80, "run", "--help")
        assert status == 0 and max(map(len, text.splitlines())) <= 80, words


def test_colour(program: Program) -> None:
    pid = str(program.pid)
    assert "\033[" in on_terminal(80, "-p", pid, "summary")[1]
    assert "\033[" not in on_terminal(80, "-p", pid, "summary", NO_COLOR="1")[1]
    assert "\033[" not in on_terminal(80, "-p", pid, "summary", TERM="dumb")[1]
    assert "\033[" not in karst("-p", pid, "summary").stdout
    assert "\033[" in karst("-p", pid, "summary", "--color", "always").stdout


def test_ascii_where_the_locale_is(program: Program) -> None:
    for words in (["bins"], ["holes"], ["summary"]):
        status, text = on_terminal(60, "-p", str(program.pid), *words, LC_ALL="C")
        assert status == 0 and text.isascii()


def test_a_reader_who_had_enough(program: Program) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [KARST, "-p", str(program.pid), "blocks", "--all"], stdout=write, stderr=subprocess.PIPE
    ) as process:
        os.close(write)
        assert os.read(read, 100)
        os.close(read)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


def test_a_full_disk_is_told(program: Program) -> None:
    with open("/dev/full", "wb") as full:
        for words in (["summary"], ["blocks", "--all"], ["check", "--json"]):
            done = subprocess.run(
                [KARST, "-p", str(program.pid), *words], stdout=full, stderr=subprocess.PIPE, text=True
            )
            assert done.returncode == 2 and "No space left" in done.stderr


def drain(read: int) -> None:
    while os.read(read, 65536):
        pass


@contextlib.contextmanager
def unread(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Karst with more to say than a pipe takes, at work, and the pipe that nobody reads yet."""
    read, write = os.pipe()
    process = subprocess.Popen([KARST, *arguments], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    try:
        assert select.select([read], [], [], 60)[0]
        assert process.poll() is None
        yield process, read
    finally:
        os.close(read)
        process.kill()
        process.communicate()


def test_a_slow_reader_does_not_hold_the_process(program: Program) -> None:
    with unread("-p", str(program.pid), "blocks", "--all") as (process, read):
        assert program.state() in "RS"
        drain(read)
        assert process.wait(timeout=60) == 0


def test_interrupt(program: Program) -> None:
    with unread("-p", str(program.pid), "--no-stop", "blocks", "--all") as (process, read):
        process.send_signal(signal.SIGINT)
        drain(read)
        assert process.communicate(timeout=60)[1].endswith(b"karst: interrupted\n")
        assert process.returncode == 2
        assert program.state() in "RS"


@pytest.mark.skipif(not kernel_cores_land_here(), reason="needs a core with its notes in front")
def test_remarks_are_notes_for_people_and_keys_for_programs(directory: Path) -> None:
    with started(["/usr/bin/python3", "-c", HOLES], directory, {"PYTHONMALLOC": "malloc"}) as running:
        core = running.kernel_core()
    with open(core, "r+b") as file:
        file.truncate(core.stat().st_size - 16384)  # of the stack
    text = karst("-c", core, "summary")
    assert text.returncode == 0 and text.stderr.startswith("note: "), text.stderr
    assert "missing" in text.stdout
    done = karst("-c", core, "summary", "--json")
    target = json.loads(done.stdout)["target"]
    assert done.stderr == "" and target["missing_memory"] and target["remarks"]
