"""What holds for the system's Python holds for those of other Debian suites, and for those that $KARST_PYTHONS
names."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from karst_command import BUILD, TESTS, Target
from karst_python_damage import DRESSED, KINDS, assert_damage_found, assert_undamaged_healthy
from karst_python_objects import assert_nested_arenas, assert_objects_each_way, assert_pools, assert_pools_each_way
from karst_python_stepped import assert_each_instruction
from karst_python_stacks import assert_interpreters, assert_locals, assert_stacks_alive_and_from_core
from karst_pythons import Python, other_pythons

each_python = pytest.mark.parametrize("python", other_pythons(), ids=lambda python: python.version)


@each_python
def test_stacks(python: Python, directory: Path) -> None:
    assert_stacks_alive_and_from_core(python, directory)


@each_python
def test_locals(python: Python, directory: Path) -> None:
    assert_locals(python, directory)


@each_python
def test_pools(python: Python, directory: Path) -> None:
    assert_pools_each_way(python, directory)


@each_python
def test_each_instruction(python: Python) -> None:
    assert_each_instruction(python, "pymalloc")


@each_python
def test_objects(python: Python, directory: Path) -> None:
    assert_objects_each_way(python, directory)


@each_python
def test_nested_arenas(python: Python, directory: Path) -> None:
    assert_nested_arenas(python, directory)


@each_python
@pytest.mark.parametrize("kind", [*KINDS, *DRESSED])
def test_damage(kind: str, python: Python, directory: Path) -> None:
    assert_damage_found(kind, python, directory)


@each_python
def test_healthy(python: Python, directory: Path) -> None:
    assert_undamaged_healthy(python, directory)


@each_python
def test_interpreters(python: Python, directory: Path) -> None:
    assert_interpreters(python, directory)


def test_there_are_others() -> None:
    """An empty matrix must not pass for a full one."""
    minors = {python.minor for python in other_pythons()}
    wanted = {int(minor) for minor in os.environ.get("KARST_MINORS", "9 13").split()}
    assert wanted and wanted <= minors, minors


def changed_copy(name: str, change: Callable[[bytes], bytes], directory: Path) -> str:
    """A command that runs a copy of one of these Pythons, changed."""
    command = BUILD / "distros" / f"python-{name}" / "python"
    if not command.exists():
        pytest.skip(f"Python {name} was not asked for")
    script = command.read_text()
    (path,) = re.findall(r"'(/[^']*/bin/python3\.\d+)'", script)
    other = directory / "python3"
    other.write_bytes(change(Path(path).read_bytes()))
    other.chmod(0o755)
    start = directory / "start"
    start.write_text(script.replace(path, str(other)))
    start.chmod(0o755)
    return str(start)


def cookie_of(program: bytes) -> int:
    """Where _Py_DebugOffsets begins."""
    (place,) = [found.start() for found in re.finditer(rb"xdebugpy..[\x0d-\x0f]\x03", program, re.DOTALL)]
    return place


def test_newer_version(directory: Path) -> None:
    """A 3.15 that calls itself 3.16: told, with the warning, as far as it describes itself."""
    def newer(program: bytes) -> bytes:
        minor = cookie_of(program) + 8 + 2
        program = program[:minor] + b"\x10" + program[minor + 1:]
        return re.sub(rb"\x003\.15(\.\d+\x00)", lambda found: b"\x003.16" + found[1], program)

    with Python(changed_copy("sid-3.15", newer, directory), "3.16").running("objects.py", directory) as running:
        target = Target.process(running.pid)
        (runtime,) = target.json("py-stack")["runtimes"]
        assert runtime["version"].startswith("3.16.") and runtime["version_known"] is False
        assert [frame["function"] for frame in runtime["threads"][0]["frames"]] == ["main", "<module>"]
        assert "this version is not known" in target.run("py-stack").stdout
        assert "this version is not known" in target.run("py-objects").stdout
        assert "is not known (known: 3.9 to 3.15)" in " ".join(target.run("info").stdout.split())
        assert_pools(target, directory)


def test_build_without_gil(directory: Path) -> None:
    """One that calls itself so (no such build is in a distribution): stacks, and what can't be told in one line."""
    def free_threaded(program: bytes) -> bytes:
        flag = cookie_of(program) + 16
        assert program[flag:flag + 8] == bytes(8)
        return program[:flag] + b"\x01" + program[flag + 1:]

    with Python(changed_copy("trixie-3.13", free_threaded, directory), "3.13").running("objects.py", directory) as running:
        target = Target.process(running.pid)
        (runtime,) = target.json("py-stack")["runtimes"]
        assert [frame["function"] for frame in runtime["threads"][0]["frames"]] == ["main", "<module>"]
        for words in (["pools"], ["pools", "--pages"], ["py-objects"], ["py-objects", "--where", "0x1000"]):
            done = target.run(*words)
            assert done.returncode == 2 and "mimalloc" in done.stderr and done.stderr.count("\n") == 1, (words, done)
            assert not done.stdout, words
        assert [row["name"] for row in target.json("summary")["allocators"]] == ["glibc"]
        assert "a build without GIL" in " ".join(target.run("info").stdout.split())


@each_python
def test_lines(python: Python) -> None:
    """Of each instruction of some thousand functions."""
    done = subprocess.run([TESTS / "unit" / "test_python_lines"], env={**os.environ, "KARST_PYTHON": python.path},
                          stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0 and ", 0 wrong" in done.stdout, done.stdout
