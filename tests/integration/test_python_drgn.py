"""Python stacks and objects through drgn: the verbs, and the helpers."""

from __future__ import annotations

import json
from pathlib import Path

from karst_drgn import DrgnTarget, run_script
from karst_programs import gcore
from karst_python_stacks import assert_stacks
from karst_pythons import system_python, told

SCRIPT = """
import json
from karst_drgn import python_referrers, python_threads, python_types
threads = {thread.tid: [[frame.file, frame.line, frame.function.rsplit(".", 1)[-1]] for frame in thread.frames]
           for thread in python_threads(prog)}
types = {row.name: row.tracked for row in python_types(prog)}
(frames,) = [row for row in python_threads(prog) if len(row.frames) > 250]
print(json.dumps([threads, types, frames.frames[0].from_c]))
"""
REFERRERS = """
from karst_drgn import python_referrers
print([row.text for row in python_referrers(prog, {address})])
"""


def test_stacks(directory: Path) -> None:
    python = system_python()
    with python.running("stacks.py", directory) as program:
        core = gcore(program.pid, directory)
        for target in (["-p", str(program.pid)], ["-c", core]):
            assert_stacks(DrgnTarget(target), program, python)
            threads, types, _ = json.loads(run_script(target, SCRIPT, directory))
            for stack in told(program, "stack"):
                assert threads[str(stack["tid"])] == stack["frames"]
            assert types["function"] > 100


def test_referrers(directory: Path) -> None:
    with system_python().running("objects.py", directory) as program:
        (ids,) = told(program, "ids")
        text = run_script(["-p", str(program.pid)], REFERRERS.format(address=ids["plain"]), directory)
        assert text.strip() == "['item 7 of list, 100 items']"
