"""Each case of the corruption catalogue is found under its right code at the right block, alive and from a
core without symbols; nothing else is called corrupt, the blocks around are all reported; and its healthy
twin gives no finding."""

from __future__ import annotations

from pathlib import Path

import pytest
from karst_catalogue import CASES, assert_case_found, assert_twin_healthy
from karst_libcs import SYSTEM


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("name", CASES)
def test_found(name: str, end: str, directory: Path) -> None:
    assert_case_found(SYSTEM, name, end, directory)


@pytest.mark.parametrize("end", ["process", "core"])
@pytest.mark.parametrize("name", CASES)
def test_healthy_twin(name: str, end: str, directory: Path) -> None:
    assert_twin_healthy(SYSTEM, name, end, directory)
