"""Damaged pools: each kind is found and named, alive and from a core, and the same program healthy yields nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from karst_python_damage import DRESSED, KINDS, assert_damage_found, assert_undamaged_healthy
from karst_pythons import system_python


@pytest.mark.parametrize("kind", [*KINDS, *DRESSED])
def test_damage(kind: str, directory: Path) -> None:
    assert_damage_found(kind, system_python(), directory)


def test_healthy(directory: Path) -> None:
    assert_undamaged_healthy(system_python(), directory)
