"""What holds for the system's Python holds for those of other Debian suites, and for those that $KARST_PYTHONS
names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from karst_command import TESTS
from karst_python_damage import KINDS, assert_damage_found, assert_undamaged_healthy
from karst_python_objects import assert_nested_arenas, assert_objects_each_way, assert_pools_each_way
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
@pytest.mark.parametrize("kind", KINDS)
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


@each_python
def test_lines(python: Python) -> None:
    """Of each instruction of some thousand functions."""
    done = subprocess.run([TESTS / "unit" / "test_python_lines"], env={**os.environ, "KARST_PYTHON": python.path},
                          stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0 and ", 0 wrong" in done.stdout, done.stdout
