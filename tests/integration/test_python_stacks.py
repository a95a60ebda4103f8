"""Python stacks are what traceback says in the process itself: alive and from a core, without debug symbols."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from karst_command import KARST, TESTS, Target
from karst_programs import gcore, started
from karst_python_stacks import assert_interpreters, assert_locals, assert_stacks, assert_stacks_alive_and_from_core
from karst_pythons import Python, system_python


def test_stacks(directory: Path) -> None:
    assert_stacks_alive_and_from_core(system_python(), directory)


def test_locals(directory: Path) -> None:
    assert_locals(system_python(), directory)


def test_system_python_is_stripped() -> None:
    """Else these tests would not show what a user has."""
    path = Path(system_python().path).resolve()
    sections = subprocess.run(["readelf", "-S", path], check=True, capture_output=True, text=True).stdout
    if ".symtab" in sections:
        pytest.skip("this Python has its symbols")
    assert ".dynsym" in sections


def test_no_python_says_so(directory: Path) -> None:
    with started(["sleep", "1000"], directory, ready=False) as program:
        done = Target.process(program.pid).run("py-stack")
    assert done.returncode == 2
    assert "no Python in process" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_looking_for_python_reads_little(directory: Path) -> None:
    """A process stands still meanwhile: where no interpreter can be, what looks like one is not followed."""
    log = directory / "log"
    with started([TESTS / "triples"], directory) as program:
        done = subprocess.run(["strace", "-f", "-e", "trace=pread64,process_vm_readv", "-o", log, KARST, "-p",
                               str(program.pid), "py-stack"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no Python in process" in done.stderr
    reads = [line for line in log.read_text().splitlines() if "pread64(" in line or "process_vm_readv(" in line]
    assert 2 < len(reads) < 200, f"{len(reads)} reads for 20,000 places that look like an interpreter"


def test_one_thread(directory: Path) -> None:
    with system_python().running("stacks.py", directory) as program:
        target = Target.process(program.pid)
        (runtime,) = target.json("py-stack", "--thread", str(program.pid))["runtimes"]
        assert [thread["tid"] for thread in runtime["threads"]] == [program.pid]
        text = target.run("py-stack", "--limit", "3").stdout
        assert "frames are not shown; --all shows all" in text
        done = target.run("py-stack", "--thread", "1")
        assert done.returncode == 2 and "no Python thread 1" in done.stderr


def test_other_name_and_file_gone(directory: Path) -> None:
    """An executable that has Python in it and is not called so; and its core where that file is missing."""
    executable = directory / "service"
    shutil.copy(Path(system_python().path).resolve(), executable)
    python = Python(str(executable), system_python().version)
    with python.running("stacks.py", directory) as program:
        assert_stacks(Target.process(program.pid), program, python)
        core = gcore(program.pid, directory)
        executable.unlink()
        assert_stacks(Target.core(core), program, python)
        (objects,) = Target.core(core).json("py-objects", "--all")["runtimes"]
        assert objects["lists_found"] and objects["total"]["tracked"] > 5000


def test_interpreters(directory: Path) -> None:
    assert_interpreters(system_python(), directory)


def test_unknown_version_says_which(directory: Path) -> None:
    """A copy of the interpreter that calls itself 3.99."""
    python = system_python()
    program = Path(python.path).resolve().read_bytes()
    wanted = f"\0{python.version}\0".encode()
    if program.count(wanted) != 1:
        pytest.skip("this Python has its version elsewhere")
    other = directory / "python3.99"
    other.write_bytes(program.replace(wanted, wanted.replace(f".{python.minor}.".encode(), b".99.")))
    other.chmod(0o755)
    with Python(str(other), "3.99").running("stacks.py", directory) as running:
        target = Target.process(running.pid)
        for verb in ("py-stack", "py-objects", "pools"):
            done = target.run(verb)
            assert done.returncode == 2 and "CPython 3.99." in done.stderr and "not known" in done.stderr
        assert [row["name"] for row in target.json("summary")["allocators"]] == ["glibc"]
        assert "not known" in target.run("info").stdout
