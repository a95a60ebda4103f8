"""Python tasks in a kernel's dump: pools, objects and stacks are what the interpreter said of itself in the guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import FIVE_LEVELS, SUITES, Dump
from karst_drgn import DrgnTarget, run_script
from karst_python_objects import assert_pools, assert_single_objects, assert_types
from karst_python_stacks import assert_stacks
from karst_pythons import system_python, told
from python_guest import GuestProgram

BY_STRUCTURE = pytest.mark.parametrize("options", [[], ["--no-symbols"]], ids=["symbols", "structure"])
# Where all is asked. What other kernels do to a task's memory shows in fewer questions.
THOROUGH = FIVE_LEVELS if FIVE_LEVELS in SUITES else SUITES[0]


@pytest.fixture
def thorough(dump: Dump) -> Dump:
    if dump.suite != THOROUGH:
        pytest.skip(f"asked on {THOROUGH}'s kernel")
    return dump


def task(dump: Dump, name: str, *options: str) -> tuple[DrgnTarget, Any]:
    program = GuestProgram.of(dump.truth, name)
    return DrgnTarget(dump.program, "--pid", str(program.pid), *options), program


def test_pools(dump: Dump, directory: Path) -> None:
    """sys._debugmallocstats(): each class, each total, and no finding."""
    target, _ = task(dump, "objects")
    dump.truth.write_files("objects", directory)
    assert_pools(target, directory)


def test_types(dump: Dump) -> None:
    """gc.get_objects()"""
    target, program = task(dump, "objects")
    assert_types(target, program)


def test_by_structure_alone(thorough: Dump, directory: Path) -> None:
    target, program = task(thorough, "objects", "--no-symbols")
    thorough.truth.write_files("objects", directory)
    assert_pools(target, directory)
    assert_types(target, program)


def test_single_objects(thorough: Dump) -> None:
    """id(), sys.getsizeof(), and who refers to what."""
    target, program = task(thorough, "objects")
    assert_single_objects(target, program, system_python())


@BY_STRUCTURE
def test_stacks(dump: Dump, options: list[str]) -> None:
    """traceback.extract_stack(), of each thread."""
    target, program = task(dump, "stacks", *options)
    assert_stacks(target, program, system_python())


def test_files_of_the_guest_are_missing(thorough: Dump, directory: Path) -> None:
    """As where the dump is from another machine: the interpreter's memory alone."""
    target, program = task(thorough, "stacks", "--sysroot", str(directory))
    assert_stacks(target, program, system_python())


def test_helpers(thorough: Dump, directory: Path) -> None:
    _, program = task(thorough, "stacks")
    text = run_script(thorough.program, f"""
import json
from karst_drgn import python_threads, python_types, task_of
task = task_of(prog, {program.pid})
threads = {{row.tid: [[frame.file, frame.line, frame.function.rsplit(".", 1)[-1]] for frame in row.frames]
           for row in python_threads(task)}}
print(json.dumps([threads, {{row.name: row.tracked for row in python_types(task)}}]))
""", directory)
    threads, types = json.loads(text)
    stacks = told(program, "stack")
    assert len(stacks) == 11 and types["function"] > 100
    for stack in stacks:
        assert threads[str(stack["tid"])] == stack["frames"]


def test_a_task_without_python_says_so(thorough: Dump) -> None:
    for verb in ("py-stack", "py-objects", "pools"):
        assert "no Python in process" in thorough.task("ledger").one_line(verb)
