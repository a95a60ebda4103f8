"""A Python that is stopped behind each instruction of pymalloc that changed something."""

from __future__ import annotations

import os
import re
import subprocess

from karst_command import TESTS
from karst_pythons import PROGRAMS, Python


def assert_each_instruction(python: Python, allocator: str) -> None:
    """What the program holds is there, to the block, and nothing is called corrupt. Without the debug hooks next to nothing
    is suspect either: half an operation on a pool is known for what it is."""
    command = [TESTS / "unit" / "test_each_instruction", python.path, "-S", PROGRAMS / "stepped_python.py"]
    done = subprocess.run(command, env={**os.environ, "PYTHONMALLOC": allocator, "PYTHONDONTWRITEBYTECODE": "1"},
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(\d+) states of the heap, (\d+) of them suspect", done.stdout)
    assert len(counts) == 2 and all(int(states) > 100 for states, _ in counts), done.stdout
    assert allocator == "debug" or all(int(suspect) <= 2 for _, suspect in counts), done.stdout
