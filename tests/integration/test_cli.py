"""The command line at its edges: bad input is one line on standard error and exit status 2, a closed pipe is
no news, and a process that was looked at goes on, whatever became of karst."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from karst_command import KARST, TESTS, Target, karst
from karst_programs import Program, core_of, started


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line, which says what is wrong; before it, notes on what is odd about a core."""
    assert done.returncode == 2, f"{done.returncode}: {done.stdout} {done.stderr}"
    assert done.stdout == ""
    assert re.fullmatch(r"(note: [^\n]+\n)*karst: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s for: {what}")
        time.sleep(0.002)


@pytest.fixture
def program(directory: Path):
    with started([TESTS / "ledger", "--threads=2", "--slots=500", directory], directory) as running:
        yield running


@pytest.fixture
def core(program: Program) -> Path:
    return core_of(program)


# ---- words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["verb"]),
        (["-p", "1"], ["verb"]),
        (["sumary", "-p", "1"], ["sumary", "summary"]),
        (["-p", "1", "blokcs"], ["blokcs", "blocks"]),
        (["summary"], ["-p", "-c"]),
        (["summary", "--jsom", "-p", "1"], ["--jsom"]),
        (["summary", "-p"], ["-p"]),
        (["summary", "-p", "one"], ["one"]),
        (["summary", "-p", "-5"], ["-5"]),
        (["summary", "-p", "99999999999999999999"], ["99999999999999999999"]),
        (["block", "-p", "{pid}"], ["ADDRESS"]),
        (["block", "zzz", "-p", "{pid}"], ["zzz"]),
        (["block", "0x10", "-p", "{pid}"], ["0x10"]),
        (["holes", "--fit", "-1", "-p", "{pid}"], ["-1"]),
        (["holes", "--fit", "12q", "-p", "{pid}"], ["12q"]),
        (["bins", "nosucharena", "-p", "{pid}"], ["nosucharena"]),
        (["blocks", "--state", "dead", "-p", "{pid}"], ["dead"]),
        (["blocks", "too", "many", "words", "-p", "{pid}"], ["too"]),
    ],
)
def test_wrong_words(arguments: list[str], words: list[str], program: Program) -> None:
    done = karst(*(argument.format(pid=program.pid) for argument in arguments))
    assert_refused(done)
    assert any(word in done.stderr for word in words), done.stderr


# ---- files ----------------------------------------------------------------------------------------------


def test_missing_file(directory: Path) -> None:
    assert_refused(karst("-c", directory / "nothing", "summary"), "nothing", "No such file")


def test_text_is_no_core(directory: Path) -> None:
    (directory / "text").write_text("this is not a core\n" * 1000)
    assert_refused(karst("-c", directory / "text", "summary"), "not a core")


def test_empty_file_is_no_core(directory: Path) -> None:
    (directory / "empty").touch()
    assert_refused(karst("-c", directory / "empty", "summary"), "empty")


def test_program_is_no_core() -> None:
    assert_refused(karst("-c", TESTS / "ledger", "summary"), "not a core")


def test_directory_is_no_core(directory: Path) -> None:
    assert_refused(karst("-c", directory, "summary"), str(directory))


def test_unreadable_core(directory: Path, core: Path) -> None:
    core.chmod(0o000)
    if os.geteuid() != 0:
        assert_refused(karst("-c", core, "summary"), "Permission denied")
        return
    copy = reachable_karst(directory)
    done = subprocess.run(
        [*AS_NOBODY, copy, "-c", core, "summary"], capture_output=True, text=True, timeout=60, check=False
    )
    assert_refused(done, "Permission denied")


@pytest.mark.parametrize("keep", [16, 64, 500, 5000])
def test_core_cut_in_its_headers(keep: int, core: Path) -> None:
    os.truncate(core, keep)
    assert_refused(karst("-c", core, "summary"), "core")


def test_core_cut_in_its_memory(core: Path) -> None:
    """What is missing is unknown: it is said, and never taken for free or live memory."""
    whole = Target.core(core).json("summary")["total"]
    os.truncate(core, core.stat().st_size // 2)
    done = karst("-c", core, "summary", "--json")
    if done.returncode == 2:
        assert_refused(done)
        return
    assert "missing" in done.stdout, done.stdout
    part = Target.core(core).json("summary")["total"]
    assert part["live"]["bytes"] <= whole["live"]["bytes"]
    assert part["free"]["bytes"] <= whole["free"]["bytes"]


def test_names_that_command_the_terminal(core: Path, directory: Path) -> None:
    """A path may hold what a terminal obeys; in notes and errors, too, it shows as '?'."""
    other = shutil.copy(TESTS / "pointers", directory / "red\x1b[31m\nline")
    noted = Target.core(core, "-e", other).run("summary")
    refused = Target.core(core, "-e", f"{other}2").run("summary")
    assert noted.returncode == 0 and refused.returncode == 2
    for done in (noted, refused):
        assert "red?[31m?line" in done.stderr, done.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout + done.stderr), done


def test_core_that_is_being_written(core: Path) -> None:
    """Opened, then changed before the question is asked."""
    gdb = ["gdb", "-nx", "-q", "-batch", "-ex", "break karst_run", "-ex", "run", "-ex", f"shell touch {core}", "-ex", "continue"]
    done = subprocess.run([*gdb, "--args", KARST, "-c", core, "summary"], capture_output=True, text=True, timeout=60)
    assert "karst: the core file was changed after it was opened" in done.stderr, done.stdout + done.stderr
    assert "exited with code 02" in done.stdout


@pytest.mark.parametrize("verb", ["check", "summary"])
@pytest.mark.parametrize("where", ["/tmp", "/dev/shm"])
def test_core_cut_while_it_is_read(core: Path, where: str, verb: str) -> None:
    """Somebody's clean-up, or a copy that begins anew: what is mapped, or is read by system calls, is gone in the midst of
    a walk."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        subprocess.run(["cp", "--sparse=always", core, folder], check=True)
        cut_while_it_is_read(Path(folder) / core.name, verb)


def cut_while_it_is_read(core: Path, verb: str) -> None:
    cut = f"shell truncate -s 8192 {core}"
    gdb = ["gdb", "-nx", "-q", "-batch", "-ex", "set breakpoint pending on", "-ex", "handle SIGBUS nostop pass"]
    steps = ["break karst_session_need_heaps", "run", cut, "delete", "continue"]
    words = [argument for step in steps for argument in ("-ex", step)]
    done = subprocess.run([*gdb, *words, "--args", KARST, "-c", core, verb], capture_output=True, text=True, timeout=60)
    assert "karst: the core file was changed after it was opened" in done.stderr, done.stdout + done.stderr
    assert "exited with code 02" in done.stdout



def test_wrong_executable(core: Path) -> None:
    """Told, not silently used."""
    done = karst("-c", core, "-e", "/bin/true", "summary")
    told = done.stdout + done.stderr
    assert "/bin/true" in told and "build" in told, told


def test_executable_that_is_gone(directory: Path) -> None:
    """What a core says about its executable does not need it there."""
    copy = directory / "ledger-copy"
    shutil.copy(TESTS / "ledger", copy)
    with started([copy, "--threads=2", "--slots=500", directory], directory) as program:
        core = core_of(program)
        copy.unlink()
        assert Target.core(core).json("summary")["total"]["live"]["blocks"] > 0


# ---- processes ------------------------------------------------------------------------------------------

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def reachable_karst(directory: Path) -> Path:
    """A copy that another user can run."""
    for place in (directory, *directory.parents):
        if place.stat().st_uid == os.geteuid() and place.stat().st_mode & 0o001 == 0:
            place.chmod(place.stat().st_mode | 0o001)
    return Path(shutil.copy(KARST, directory / "karst"))


def test_dead_process() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(timeout=10)
    assert_refused(karst("-p", str(ended.pid), "summary"), str(ended.pid))


def test_zombie(directory: Path) -> None:
    child = subprocess.Popen(["true"])
    try:
        wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z", "a zombie")
        assert_refused(karst("-p", str(child.pid), "summary"), str(child.pid))
    finally:
        child.wait(timeout=10)


def test_kernel_thread() -> None:
    parent = 2  # of all kernel threads, where they are to be seen
    if not Path(f"/proc/{parent}/comm").exists() or Path(f"/proc/{parent}/comm").read_text() != "kthreadd\n":
        pytest.skip("no kernel thread to be seen here")
    assert_refused(karst("-p", str(parent), "summary"))


def test_somebody_elses_process(program: Program, directory: Path) -> None:
    if os.geteuid() == 0:
        command = [*AS_NOBODY, reachable_karst(directory), "-p", str(program.pid), "summary"]
    else:
        command = [KARST, "-p", "1", "summary"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert_refused(done, "root")


def test_process_under_a_debugger(program: Program) -> None:
    """GDB holds it already: karst says so, or reads it all the same; GDB keeps it."""
    debugger = subprocess.Popen(
        ["gdb", "-nx", "-q", "-p", str(program.pid), "-ex", "echo attached\\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert debugger.stdout is not None
        for line in debugger.stdout:
            if line.endswith("attached\n"):
                break
        done = karst("-p", str(program.pid), "summary", "--json")
        if done.returncode != 0:
            assert_refused(done, str(program.pid))
        assert program.status("TracerPid") == str(debugger.pid)
        assert program.state() == "t"
    finally:
        debugger.kill()
        debugger.wait(timeout=30)


def assert_free(program: Program) -> None:
    assert program.status("TracerPid") == "0"
    assert program.state() not in "Tt"


def test_process_goes_on(program: Program) -> None:
    for verb in ("info", "summary", "arenas", "bins", "holes", "pins", "check", "sizes", "maps"):
        done = Target.process(program.pid).run(verb)
        assert done.returncode == 0, f"{verb}: {done.stderr}"
        assert_free(program)


def test_stopped_process_stays_stopped(program: Program) -> None:
    os.kill(program.pid, signal.SIGSTOP)
    wait_until(lambda: program.state() == "T", "the process to stop")
    for verb in ("summary", "check"):
        assert Target.process(program.pid).run(verb).returncode == 0
        assert program.status("TracerPid") == "0"
        wait_until(lambda: program.state() == "T", "the process to be stopped as it was")
    os.kill(program.pid, signal.SIGCONT)
    wait_until(lambda: program.state() == "S", "the process to go on")


def processor_ticks(program: Program) -> int:
    fields = Path(f"/proc/{program.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def kill_while_it_holds(program: Program, verb: str) -> bool:
    """Whether karst was killed while it held the process; on a busy machine it may be done before we look."""
    walker = subprocess.Popen([KARST, "-p", str(program.pid), verb], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: program.state() == "t" or walker.poll() is not None, "karst to stop the process")
    finally:
        walker.kill()
    return walker.wait(timeout=60) == -signal.SIGKILL


def test_process_goes_on_after_karst_was_killed(directory: Path) -> None:
    command = [TESTS / "ledger", "--small", "--slots=400000", "--threads=2", "--hammers=2", directory]
    with started(command, directory) as program:
        for verb in ("check", "summary"):
            assert any(kill_while_it_holds(program, verb) for _ in range(20)), "karst was done too soon to be killed"
            wait_until(lambda: program.status("TracerPid") == "0", "the process to be let go of")
            ticks = processor_ticks(program)
            wait_until(lambda: processor_ticks(program) > ticks + 2, "the process to go on working")
            assert_free(program)


def test_process_that_is_read_while_it_runs(directory: Path) -> None:
    command = [TESTS / "ledger", "--hammers=2", "--slots=500", directory]
    with started(command, directory) as program:
        for verb in ("summary", "holes", "blocks", "check"):
            done = Target.process(program.pid, "--no-stop").run(verb)
            assert done.returncode in (0, 1), f"{verb}: {done.stderr}"
        assert_free(program)


# ---- output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["--all", "--all --json"])
def test_closed_pipe_is_no_news(options: str, program: Program) -> None:
    shell = f'set -o pipefail; "{KARST}" -p {program.pid} blocks {options} | head -n 1'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert_free(program)


def test_full_disk_is_told(program: Program) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [KARST, "-p", str(program.pid), "blocks", "--all"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert re.fullmatch(r"karst: [^\n]+\n", done.stderr), done.stderr


def test_silent_on_standard_error(program: Program) -> None:
    """Progress is for terminals."""
    assert Target.process(program.pid).run("check").stderr == ""


def test_options_before_and_after_the_verb(program: Program) -> None:
    before = karst("-p", str(program.pid), "--json", "summary").stdout
    after = karst("summary", "--json", "-p", str(program.pid)).stdout
    assert before == after != ""
