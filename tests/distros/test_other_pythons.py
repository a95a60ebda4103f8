"""What holds for the system's Python holds for those of other Debian suites, and for those that $KARST_PYTHONS
names."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from karst_command import BUILD, TESTS, Target
from karst_python_damage import DRESSED, KINDS, assert_damage_found, assert_undamaged_healthy
from karst_python_objects import assert_nested_arenas, assert_objects_each_way, assert_pools, assert_pools_each_way
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
    assert {9, 13} <= minors, minors


def test_newer_version(directory: Path) -> None:
    """A 3.14 that calls itself 3.15: told, with the warning, as far as it describes itself."""
    script = (BUILD / "distros" / "python-sid" / "python").read_text()
    path = Path(re.findall(r"'(/[^']*/python3\.14)'", script)[0])
    program = path.read_bytes()
    (place,) = [found.end() for found in re.finditer(rb"xdebugpy.{2}\x0e\x03", program, re.DOTALL)]
    newer = program[:place - 2] + b"\x0f" + program[place - 1:]
    other = directory / "python3.15"
    other.write_bytes(re.sub(rb"\x003\.14(\.\d+\x00)", lambda found: b"\x003.15" + found[1], newer))
    other.chmod(0o755)
    start = directory / "start"
    start.write_text(script.replace(str(path), str(other)))
    start.chmod(0o755)
    with Python(str(start), "3.15").running("objects.py", directory) as running:
        target = Target.process(running.pid)
        (runtime,) = target.json("py-stack")["runtimes"]
        assert runtime["version"].startswith("3.15.") and runtime["version_known"] is False
        assert [frame["function"] for frame in runtime["threads"][0]["frames"]] == ["main", "<module>"]
        assert "this version is not known" in target.run("py-stack").stdout
        assert "this version is not known" in target.run("py-objects").stdout
        assert "is not known (known: 3.9 to 3.14)" in " ".join(target.run("info").stdout.split())
        assert_pools(target, directory)


@each_python
def test_lines(python: Python) -> None:
    """Of each instruction of some thousand functions."""
    done = subprocess.run([TESTS / "unit" / "test_python_lines"], env={**os.environ, "KARST_PYTHON": python.path},
                          stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0 and ", 0 wrong" in done.stdout, done.stdout
