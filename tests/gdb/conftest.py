"""What the tests in GDB share."""

from __future__ import annotations

from pathlib import Path

import pytest
from karst_command import TESTS
from karst_programs import gcore, started

DEBUGGED = TESTS / "debugged"


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a program with three threads, each in handle_request()."""
    directory = tmp_path_factory.mktemp("core")
    with started([DEBUGGED], directory) as program:
        return gcore(program.pid, directory)
