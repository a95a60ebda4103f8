"""Terminals narrower than 80 columns: what every verb says fits, and no address is cut without a sign. The programs and
most of the questions are those of the verbs' pages."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from karst_command import BUILD, KARST, ROOT, karst

sys.path.append(str(ROOT / "docs"))
import generate  # noqa: E402

WIDTHS = (40, 60, 79)
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
ADDRESS = re.compile(r"0x[0-9a-f]{9,}(?!…)")  # a shortened one shows it
DUMP = re.compile(r"^  0x[0-9a-f]+ ( [0-9a-f]{2})+ .*$", re.MULTILINE)

# What the pages do not ask; KIND as there.
MORE = {"": ["arenas", "map", "maps", "maps --list", "info", "sizes", "pins", "rss --tree", "holes --bytes", "summary --bytes"],
        generate.MARKED: ["sites --stacks", "history --last 3 --stacks", "info", "block {label}"],
        generate.PYTHON: ["summary", "bins", "arenas", "holes", "pins", "map", "info"],
        generate.JEMALLOC: ["summary", "arenas", "bins", "holes", "map", "check"]}


def questions(kind: str) -> list[str]:
    asked = [question for session in generate.SESSIONS.values() for question in session
             if generate.kind_of(question) == kind and "--json" not in question]
    return [question.removeprefix(kind) for question in asked] + MORE.get(kind, [])


def at_terminal(columns: int, *words: str) -> str:
    """What karst says on a terminal that is so wide, without colours."""
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with subprocess.Popen([KARST, *words], stdin=subprocess.DEVNULL, stdout=other, stderr=subprocess.STDOUT,
                          env={**environment, "LC_ALL": "C.UTF-8", "TERM": "xterm"}) as process:
        os.close(other)
        said = b""
        with contextlib.suppress(OSError):  # nobody is left on the other side
            while piece := os.read(terminal, 65536):
                said += piece
        os.close(terminal)
        assert process.wait() in (0, 1), said
    return ESCAPE.sub("", said.decode()).replace("\r", "")


def too_long(text: str, columns: int) -> list[str]:
    """But for a single word, a path, that no line could hold."""
    return [line for line in text.splitlines() if len(line) > columns and len(line.split()) > 1]


@dataclass(frozen=True)
class Asked:
    words: list[str]
    piped: str


@pytest.fixture(scope="module", params=generate.KINDS, ids=lambda kind: kind.rstrip(": ") or "plain")
def answers(request: pytest.FixtureRequest) -> Iterator[list[Asked]]:
    """What is said of a program that waits, where width is no matter."""
    generate.compile_mailbox(BUILD)
    with generate.waiting(generate.command_of(request.param, BUILD)) as (pid, _, addresses):
        asked = [["-p", str(pid), *generate.words_of(question, addresses)] for question in questions(request.param)]
        yield [Asked(words, karst(*words).stdout) for words in asked]


@pytest.mark.parametrize("columns", WIDTHS)
def test_all_fits(answers: list[Asked], columns: int) -> None:
    noted = 0
    for asked in answers:
        said = at_terminal(columns, *asked.words)
        assert said and not too_long(said, columns), (asked.words, too_long(said, columns))
        if "map" not in asked.words:  # its rows begin elsewhere
            addresses = set(ADDRESS.findall(DUMP.sub("", said)))
            assert addresses <= set(ADDRESS.findall(asked.piped)), (asked.words, said)
        noted += "to fit" in said
        assert "to fit;" not in asked.piped
    assert noted or columns > 40 or len(answers) < 3
