"""What all tests share. Programs and the engine are built by `make test` before pytest starts."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the test's own, gone after it: cores are large. Not pytest's: what is under that is closed to
    other users whenever another pytest starts, and some tests run as one."""
    path = Path(tempfile.mkdtemp(prefix="karst-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
