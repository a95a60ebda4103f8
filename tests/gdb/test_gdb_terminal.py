"""karst on a terminal, as a person has it: repetition, styles, pages, width, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import BASE, PLUGIN, SECONDS
from karst_command import TESTS, Target
from karst_programs import started

DEBUGGED = TESTS / "debugged"


class Terminal:
    """A GDB on a terminal of its own, as a person has it."""

    PROMPT = "(gdb) "

    def __init__(self, words: Sequence[str | os.PathLike[str]], directory: Path) -> None:
        master, slave = pty.openpty()
        self.master = master
        environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull,
                       "HOME": str(directory)}
        environment.pop("NO_COLOR", None)
        more = ["-iex", "set height 0", "-iex", "set width 100", "-ex", f"source {PLUGIN}"]
        self.process = subprocess.Popen(
            [*BASE, *more, *map(os.fspath, words)], stdin=slave, stdout=slave, stderr=slave,
            cwd=directory, env=environment, start_new_session=True)
        os.close(slave)
        self.read_until(self.PROMPT)

    def read_until(self, end: str, seconds: float = SECONDS) -> str:
        text, stop = "", time.monotonic() + seconds
        while not plain(text).endswith(end):
            left = stop - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise TimeoutError(f"GDB did not come to {end!r}: {text[-2000:]!r}")
            text += os.read(self.master, 65536).decode(errors="replace")
        return text

    def type(self, line: str, end: str = PROMPT) -> str:
        """What follows a line."""
        os.write(self.master, line.encode() + b"\n")
        return self.read_until(end)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)
        os.close(self.master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]", "", text)


@pytest.fixture
def terminal(core: Path, directory: Path):
    opened = Terminal([DEBUGGED, core], directory)
    yield opened
    opened.close()


def block_addresses(text: str) -> list[str]:
    return re.findall(r"^(0x[0-9a-f]+) ", plain(text).replace("\r", ""), re.MULTILINE)


def test_enter_goes_on(terminal: Terminal, core: Path) -> None:
    told = [row["address"] for row in
            Target.core(core, "-e", DEBUGGED).json("blocks", "--state", "live", "--limit", "100")["blocks"]]
    assert block_addresses(terminal.type("karst blocks --state live")) == told[:20]
    assert block_addresses(terminal.type("")) == told[20:40]
    assert block_addresses(terminal.type("")) == told[40:60]
    assert block_addresses(terminal.type("karst blocks --state live")) == told[:20], "typed again: from the start"
    assert block_addresses(terminal.type("karst blocks --state live -n 5")) == told[:5]
    assert block_addresses(terminal.type("")) == told[5:10]
    assert block_addresses(terminal.type("karst blocks --state live -n 5 --skip 50")) == told[50:55]
    assert block_addresses(terminal.type("")) == told[55:60]
    first = terminal.type("karst summary")
    assert "glibc" in plain(first)
    assert "glibc" not in plain(terminal.type("")), "Enter does not walk the heap again"


def test_styles_follow_gdb(terminal: Terminal) -> None:
    assert "\x1b[34m0x" in terminal.type("karst blocks --limit 2")
    terminal.type("set style address foreground magenta")
    assert "\x1b[35m0x" in terminal.type("karst blocks --limit 2")
    for off in ("set style enabled off", "set karst color off"):
        terminal.type(off)
        assert "\x1b[3" not in terminal.type("karst blocks --limit 2")
    terminal.type("set karst color on")
    assert "\x1b[35m0x" in terminal.type("karst blocks --limit 2")


def test_pipes_get_plain_text(terminal: Terminal) -> None:
    text = terminal.type("pipe karst blocks --limit 2 | cat -v | sed 's/^/piped /'")
    assert re.search(r"^piped 0x[0-9a-f]+ ", plain(text).replace("\r", ""), re.MULTILINE), text
    assert "^[" not in text


def test_pages(core: Path, directory: Path) -> None:
    terminal = Terminal([DEBUGGED, core], directory)
    try:
        terminal.type("set height 12")
        more = "--Type <RET> for more, q to quit, c to continue without paging--"
        first = terminal.type("karst blocks --all", end=more)
        assert 5 < len(block_addresses(first)) < 12
        text = terminal.type("q")
        assert not block_addresses(text) and "Quit" in plain(text)
        assert "glibc" in plain(terminal.type("karst summary", end=more)), "all is well after it"
    finally:
        terminal.close()


def test_narrow_terminal(directory: Path) -> None:
    """GDB's own width is kept to; what is left out for it is said."""
    with started([DEBUGGED], directory) as program:
        terminal = Terminal(["-p", str(program.pid)], directory)
        try:
            terminal.type("set width 40")
            for words in ("karst summary", "karst arenas", "karst blocks --limit 5", "karst maps"):
                said = plain(terminal.type(words)).replace("\r", "").removeprefix(words)
                assert "process" in said or "arena" in said or "address" in said, said
                assert max(map(len, said.splitlines())) <= 40, said
            assert "left out to fit" in plain(terminal.type("karst arenas"))
        finally:
            terminal.close()


def test_narrow_list_of_traps(directory: Path) -> None:
    """Nothing is left out of it without a word, and nothing at all where there is room."""
    trap = "malloc,calloc,realloc 1048576:2097152 skip=3 count=2"
    with started([DEBUGGED], directory) as program:
        terminal = Terminal(["-p", str(program.pid)], directory)
        try:
            terminal.type(f"karst trap add {trap}")
            wide = plain(terminal.type("karst trap list")).replace("\r", "")
            assert f"{trap}  on " in wide and "hits" in wide and "to fit" not in wide
            terminal.type("set width 60")
            said = plain(terminal.type("karst trap list")).replace("\r", "").removeprefix("karst trap list")
            assert max(map(len, said.splitlines())) <= 60 and "(shortened to fit; --json has all)" in said, said
            terminal.type("set width 40")
            said = plain(terminal.type("karst trap list")).replace("\r", "").removeprefix("karst trap list")
            assert max(map(len, said.splitlines())) <= 40 and "left out to fit: by, hits" in said, said
            terminal.type("karst trap remove")
        finally:
            terminal.close()


# ---- interrupts ----------------------------------------------------------------------------------------


def test_interrupt_in_the_middle(directory: Path) -> None:
    """SIGINT comes when the first line was read of millions; GDB stays whole and goes on."""
    with started([DEBUGGED, "many", "1500000"], directory) as program:
        words = [*BASE, "-batch", "-ex", f"source {PLUGIN}", "-p", str(program.pid), "-ex", "echo begins\\n",
                 "-ex", "karst blocks --all --json", "-ex", "echo ends\\n", "-ex", "karst blocks --limit 1 --json",
                 "-ex", "print $_karst_size($_)", "-ex", "info threads"]
        gdb_process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True, cwd=directory)
        assert gdb_process.stdout is not None
        lines: list[str] = []
        for line in gdb_process.stdout:
            lines.append(line)
            if line.startswith('{"address"') and sum(row.startswith('{"address"') for row in lines) == 1:
                gdb_process.send_signal(signal.SIGINT)
        assert gdb_process.wait(timeout=SECONDS) == 0
    text = "".join(lines[-12:])
    listed = sum(line.startswith('{"address"') for line in lines)
    assert 1 < listed < 1500000
    assert any(line.endswith("Quit\n") for line in lines[-12:]), text
    assert "Traceback" not in text and "Exception" not in text, text
    after = lines[lines.index("ends\n") + 1:]
    assert json.loads(after[0])["matched"] >= 1500000, "the next command works"
    assert after[1].startswith("$1 = ") and any("* 1 " in line for line in after), text
