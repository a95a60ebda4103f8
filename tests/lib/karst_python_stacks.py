"""What `karst py-stack` has to say of tests/programs/stacks.py, on any Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from karst_command import Target
from karst_programs import Program, core_of
from karst_python_objects import each_way
from karst_pythons import Python, told

Frames = list[list[Any]]


def _frames(thread: dict[str, Any]) -> Frames:
    # traceback has the function's name, karst the qualified one where there is one.
    return [[frame["file"], frame["line"], frame["function"].rsplit(".", 1)[-1]] for frame in thread["frames"]]


def assert_stacks(target: Target, program: Program, python: Python) -> None:
    (runtime,) = target.json("py-stack", "--all")["runtimes"]
    assert runtime["version"] == python.version and not runtime["damaged"]
    threads = {thread["tid"]: thread for thread in runtime["threads"]}
    expected = {stack["tid"]: stack for stack in told(program, "stack")}
    (main,) = told(program, "main")
    assert set(threads) == {*expected, program.pid}
    assert len(expected) == 11
    for tid, stack in expected.items():
        assert _frames(threads[tid]) == stack["frames"], stack["name"]
        assert not threads[tid]["damaged"] and threads[tid]["frame_count"] == len(stack["frames"])
    assert _frames(threads[program.pid]) == main
    assert not any(thread["holds_gil"] for thread in threads.values()), "all of them sleep"


def assert_stacks_alive_and_from_core(python: Python, directory: Path) -> None:
    with python.running("stacks.py", directory) as program:
        for options in ([], ["--no-symbols"]):
            assert_stacks(Target.process(program.pid, *options), program, python)
        core = core_of(program)
        for options in ([], ["--no-symbols"]):
            assert_stacks(Target.core(core, *options), program, python)


def assert_locals(python: Python, directory: Path) -> None:
    with python.running("stacks.py", directory) as program:
        (runtime,) = Target.process(program.pid).json("py-stack", "--all", "--locals")["runtimes"]
    tids = {stack["name"]: stack["tid"] for stack in told(program, "stack")}
    threads = {thread["tid"]: thread["frames"] for thread in runtime["threads"]}

    def variables(name: str, frame: int) -> dict[str, tuple[str, str | None]]:
        return {one["name"]: (one["type"], one["value"]) for one in threads[tids[name]][frame]["locals"]}

    plain = variables("plain", 1)
    assert plain == {"number": ("int", "7"), "text": ("str", "'a text'"), "rest": (None, None),
                     "names": ("dict", "1 item"), "below": ("list", "2 items")}
    inner = variables("descriptor", 2)
    assert inner["self"] == ("__main__.Descriptor", None) and inner["captured"] == ("dict", "1 item")
    assert variables("in_class", 1)["__qualname__"] == ("str", "'in_class.<locals>.Body'")
    assert variables("in_code", 1)["one"] == ("int", "1")
    assert variables("recursive", 5)["depth"] == ("int", "4")


def assert_interpreters(python: Python, directory: Path) -> None:
    """A second interpreter: its thread, its objects and, from 3.12 on, its own allocator are there too."""
    with python.running("interpreters.py", directory) as program:
        for target in each_way(program):
            (runtime,) = target.json("py-stack")["runtimes"]
            assert runtime["interpreters"] == 2 and not runtime["damaged"]
            (second,) = [thread for thread in runtime["threads"] if thread["interpreter"]]
            assert [frame["function"] for frame in second["frames"]] == ["sub_function", "<module>"]
            (objects,) = target.json("py-objects", "--all")["runtimes"]
            (own,) = [row for row in objects["types"] if row["type"] == "__main__.Own"]
            assert own["objects"] == own["tracked"] == 500
            names = [row["name"] for row in target.json("summary")["allocators"]]
            assert names == ["glibc", "pymalloc"] + (["pymalloc #2"] if python.minor >= 12 else [])
            healthy, findings = target.check()
            assert healthy, findings
