"""What all tests share. Programs and the engine are built by `make test` before pytest starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory of the test's own, gone after it: cores are large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
