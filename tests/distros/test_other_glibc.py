"""The same on the glibc of other Debian suites, whose programs run through that glibc's own loader: the
ledger's blocks, malloc's totals, the corruption catalogue. `make test-distros` gets what is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from karst_catalogue import CASES, assert_case_found, assert_twin_healthy
from karst_command import BUILD, TESTS
from karst_heaps import HEAPS, assert_exact, assert_hammered, assert_healthy, assert_totals
from karst_libcs import Libc, Ways, unpacked_libc
from karst_partial import PARTIAL, assert_told_when_cut, assert_told_without_variables

LIBCS = {path.parent.name: unpacked_libc(path.parent) for path in sorted(BUILD.glob("distros/*/version"))}
NAMES = [name for name, heap in HEAPS.items() if heap.program == "ledger"]
ENDS = ["process", "core"]


@pytest.fixture(params=LIBCS)
def libc(request: pytest.FixtureRequest) -> Libc:
    return LIBCS[request.param]


@pytest.fixture
def ways(libc: Libc) -> Ways:
    return {"debug info": ["--debug-dir", str(libc.debug_directory)], "no symbols": ["--no-symbols"]}


def test_there_are_others() -> None:
    """An empty matrix must not pass for a full one."""
    minors = {libc.minor for libc in LIBCS.values()}
    assert {31, 41} < minors and max(minors) >= 43, LIBCS


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", NAMES)
def test_live_blocks(libc: Libc, name: str, end: str, directory: Path, ways: Ways) -> None:
    assert_exact(HEAPS[name], libc, end, directory, ways)


@pytest.mark.parametrize("name", NAMES)
def test_healthy(libc: Libc, name: str, directory: Path, ways: Ways) -> None:
    assert_healthy(HEAPS[name], libc, directory, ways)


@pytest.mark.parametrize("name", [name for name in NAMES if not HEAPS[name].others])
def test_totals_are_mallocs_own(libc: Libc, name: str, directory: Path, ways: Ways) -> None:
    assert_totals(HEAPS[name], libc, directory, ways)


@pytest.mark.parametrize("end", ENDS)
def test_threads_inside_malloc(libc: Libc, end: str, directory: Path, ways: Ways) -> None:
    assert_hammered(libc, end, directory, ways)


def test_each_instruction(libc: Libc) -> None:
    command = [str(TESTS / "unit/test_each_instruction"), *libc.command("stepped")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("name", CASES)
def test_damage_is_found(libc: Libc, name: str, directory: Path) -> None:
    assert_case_found(libc, name, "core", directory)


@pytest.mark.parametrize("name", CASES)
def test_healthy_twin(libc: Libc, name: str, directory: Path) -> None:
    assert_twin_healthy(libc, name, "core", directory)


@pytest.mark.parametrize("name", [name for name, heap in PARTIAL.items() if heap.program == "ledger"])
def test_libcs_variables_left_out(libc: Libc, name: str, directory: Path) -> None:
    assert_told_without_variables(libc, name, directory, ["--debug-dir", str(libc.debug_directory)])


def test_cut_off(libc: Libc, directory: Path) -> None:
    assert_told_when_cut(libc, "four-threads", directory)
