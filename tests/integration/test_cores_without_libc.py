"""Cores that lack libc's variables (cut off before them, or filtered): what can be walked is walked, every state
that is told is the right one, and what cannot be told is not told."""

from __future__ import annotations

from pathlib import Path

import pytest
from karst_libcs import SYSTEM
from karst_partial import PARTIAL, assert_told_when_cut, assert_told_without_variables


@pytest.mark.parametrize("name", PARTIAL)
def test_libcs_variables_left_out(name: str, directory: Path) -> None:
    assert_told_without_variables(SYSTEM, name, directory, [])


# Where an arena has several heaps, the first one, with the arena in it, stands behind the others: it is lost first.
@pytest.mark.parametrize("name", ["four-threads", "several-heaps"])
def test_cut_off(name: str, directory: Path) -> None:
    assert_told_when_cut(SYSTEM, name, directory)
