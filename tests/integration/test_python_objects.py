"""pymalloc's pools and Python's objects are what CPython counts itself: sys._debugmallocstats(), gc.get_objects();
alive and from a core, without debug symbols."""

from __future__ import annotations

from pathlib import Path

from karst_command import Target
from karst_python_objects import (
    assert_nested_arenas,
    assert_objects_each_way,
    assert_pools_each_way,
    mallocstats,
)
from karst_pythons import system_python


def test_pools(directory: Path) -> None:
    assert_pools_each_way(system_python(), directory)


def test_objects(directory: Path) -> None:
    assert_objects_each_way(system_python(), directory)


def test_nested_arenas(directory: Path) -> None:
    assert_nested_arenas(system_python(), directory)


def test_debug_hooks(directory: Path) -> None:
    """Blocks dressed by the debug hooks: their addresses are what the program has, 24 bytes less than the block."""
    with system_python().running("objects.py", directory, environment={"PYTHONMALLOC": "debug"}) as program:
        target = Target.process(program.pid)
        classes, _ = mallocstats(directory)
        live = [block for block in target.blocks("--arena", "pymalloc/main", "--state", "live")]
        assert len(live) == sum(used for _, used, _ in classes.values())
        assert {block.size - block.usable for block in live} == {24}
        assert {block.address % 16 for block in live} == {0}
        assert "debug hooks" in target.run("info").stdout


def test_without_pymalloc(directory: Path) -> None:
    with system_python().running("objects.py", directory, environment={"PYTHONMALLOC": "malloc"}) as program:
        names = [row["name"] for row in Target.process(program.pid).json("summary")["allocators"]]
    assert names == ["glibc"]
