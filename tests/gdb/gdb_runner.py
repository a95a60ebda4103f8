"""Real GDBs, one process a test, and what they say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karst_command import ROOT

HERE = Path(__file__).resolve().parent
PLUGIN = ROOT / "gdb" / "karst.py"
GDB = os.environ.get("KARST_GDB", "gdb")
SECONDS = 120.0
os.environ["DEBUGINFOD_URLS"] = ""  # GDB 10 has no setting for it
BASE = [GDB, "-nx", "-q", "-iex", "set confirm off"]


@dataclass(frozen=True)
class Said:
    """What a command said: its text, or the error that GDB showed for it."""

    command: str
    text: str
    error: str | None

    def json(self) -> Any:
        assert self.error is None, f"{self.command}: {self.error}"
        return json.loads(self.text)

    def one_line(self) -> str:
        """The error, which has to be there and to be one line."""
        assert self.error is not None, f"{self.command} did not fail: {self.text}"
        assert "\n" not in self.error.rstrip("\n"), self.error
        assert "Traceback" not in self.error and "Exception" not in self.error, self.error
        return self.error

    def good(self) -> str:
        assert self.error is None, f"{self.command}: {self.error}"
        return self.text


class Answers:
    def __init__(self, said: Sequence[Said], output: str) -> None:
        self.said = list(said)
        self.output = output

    def of(self, command: str) -> Said:
        """The last answer to a command."""
        return next(said for said in reversed(self.said) if said.command == command)

    def all(self, command: str) -> list[Said]:
        return [said for said in self.said if said.command == command]


def gdb(
    target: Sequence[str | os.PathLike[str]],
    commands: Sequence[str],
    directory: Path,
    *,
    plugin: Path | None = PLUGIN,
    environment: Mapping[str, str] | None = None,
) -> Answers:
    """A GDB on target (a program, a program and a core, -p PID ...) that runs commands after the plugin."""
    questions, answers = directory / "commands.json", directory / "answers.json"
    questions.write_text(json.dumps(list(commands)))
    words = [*BASE, "-batch"]
    if plugin is not None:
        words += ["-ex", f"source {plugin}"]
    words += [*map(os.fspath, target), "-ex", f"source {HERE / 'driver.py'}"]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
        cwd=directory,
        env={**os.environ, "KARST_COMMANDS": str(questions), "KARST_ANSWERS": str(answers), **(environment or {})},
    )
    assert answers.exists(), f"GDB ended with {done.returncode} before it answered:\n{done.stdout}"
    said = [
        Said(command, answer["text"], answer["error"])
        for command, answer in zip(commands, json.loads(answers.read_text()))
    ]
    return Answers(said, done.stdout)


def gdb_plain(words: Sequence[str], directory: Path) -> str:
    """All that a GDB in batch mode prints, errors too."""
    done = subprocess.run(
        [*BASE, "-batch", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        cwd=directory,
    )
    return done.stdout


@contextlib.contextmanager
def gdbserver(arguments: Sequence[str | os.PathLike[str]], directory: Path) -> Iterator[int]:
    """A gdbserver on arguments (a program, or --attach :0 PID); gives its port."""
    words = ["gdbserver", "--once", *map(os.fspath, arguments)]
    with open(directory / "gdbserver.log", "w+b") as log:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        try:
            yield _port(server, directory / "gdbserver.log")
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(timeout=20)


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end and server.poll() is None:
        found = re.search(r"Listening on port ([0-9]+)", log.read_text(errors="replace"))
        if found:
            return int(found.group(1))
        time.sleep(0.02)
    raise RuntimeError(f"gdbserver does not listen: {log.read_text(errors='replace')}")
