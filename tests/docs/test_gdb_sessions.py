"""The sessions in GDB that the pages show are what GDB and karst say now, addresses and sizes aside."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys

import pytest
from karst_command import ROOT

sys.path.append(str(ROOT / "docs"))
from gdb_sessions import PAGES, SESSIONS, text_of  # noqa: E402
from generate import normalised  # noqa: E402

SHOWN = {match[1]: match[2] for name in PAGES for match in re.finditer(
    r"<!-- gdb: ([^>]*) -->\n```text\n(.*?)```\n", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)}


def system() -> tuple[str, str]:
    version = subprocess.run(["gdb", "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return os.confstr("CS_GNU_LIBC_VERSION") or "", version.rsplit(" ", 1)[-1]


def test_all_are_shown() -> None:
    assert SHOWN.keys() == SESSIONS.keys()


@pytest.mark.parametrize("name", SESSIONS)
def test_session_is_not_stale(name: str) -> None:
    if system() != ("glibc 2.36", "13.1"):
        pytest.skip("the pages show glibc 2.36 and GDB 13")
    difference = difflib.unified_diff(normalised(SHOWN[name]), normalised(text_of(SESSIONS[name])), "docs", "now",
                                      lineterm="")
    assert not (text := "\n".join(difference)), f"a session is stale, run `make docs`:\n{text}"
