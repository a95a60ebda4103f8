"""Traps by detours, and the preload library put in, in programs that run on other glibcs, by their own loaders: GDB then
knows no file of theirs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from karst_command import ROOT
from karst_libcs import Libc
from karst_programs import started
from test_other_glibc import LIBCS

sys.path.append(str(ROOT / "tests" / "gdb"))
from gdb_runner import gdb  # noqa: E402
from test_gdb_detour import ends_well, text_of  # noqa: E402

STOP = r"^karst trap 1: malloc\(424242\)( = 0x[0-9a-f]+)?, thread \d+, called at 0x"


@pytest.fixture(params=LIBCS)
def libc(request: pytest.FixtureRequest) -> Libc:
    return LIBCS[request.param]


@pytest.mark.parametrize("threads", ["1", "3"])
def test_detour(libc: Libc, threads: str, directory: Path) -> None:
    with started(libc.command("hammer", threads), directory) as program:
        before = text_of(program.pid)
        cycle = [f"attach {program.pid}", "karst trap add alloc 424242", "karst trap add free freed=0x10", "continue",
                 "karst trap remove", "detach"]
        answers = gdb([], cycle * 5, directory)
        assert [said.error for said in answers.said if said.error] == []
        assert all(re.search(STOP, said.text, re.MULTILINE) for said in answers.all("continue"))
        assert text_of(program.pid) == before
        ends_well(program)


def test_inject(libc: Libc, directory: Path) -> None:
    if libc.minor < 34:
        pytest.skip("the library needs symbol versions of glibc 2.34")
    with started(libc.command("hammer", "3"), directory) as program:
        before = text_of(program.pid)
        cycle = [f"attach {program.pid}", "karst inject", "karst trap add malloc 424242", "continue", "karst eject", "detach"]
        answers = gdb([], cycle * 3, directory)
        assert [said.error for said in answers.said if said.error] == []
        assert all(re.search(STOP, said.text, re.MULTILINE) for said in answers.all("continue"))
        assert {name: digest for name, digest in text_of(program.pid).items() if "karst" not in name} == before
        ends_well(program)
