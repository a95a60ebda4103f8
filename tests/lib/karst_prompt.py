"""A program at a terminal of its own, typed into."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SECONDS = 120.0
# Colours, moves of the cursor, modes of the keypad, titles.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[ -/]*[0-~]")


class Prompt:
    """What was shown so far is `text`, without escapes."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._raw = b""

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self._raw.decode(errors="replace")).replace("\r", "")

    def type(self, line: str) -> None:
        os.write(self._terminal, line.encode() + b"\r")

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> str:
        """Reads on until a line matches; everything up to now."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text, re.MULTILINE):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._terminal], [], [], left)[0]:
                raise TimeoutError(f"no {pattern!r} in {seconds:.0f} s:\n{self.text[-3000:]}")
            try:
                piece = os.read(self._terminal, 65536)
            except OSError:  # nobody is left on the other side
                piece = b""
            if not piece:
                raise RuntimeError(f"it ended before {pattern!r}:\n{self.text[-3000:]}")
            self._raw += piece
        return self.text


@contextlib.contextmanager
def at_prompt(command: Sequence[str | os.PathLike[str]], directory: Path, environment: Mapping[str, str],
              columns: int = 200) -> Iterator[Prompt]:
    """Starts command on a terminal, in directory, which is also its home; ends it after the block."""
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 100, columns, 0, 0))
    process = subprocess.Popen([os.fspath(word) for word in command], cwd=directory, stdin=other, stdout=other, stderr=other,
                               start_new_session=True,
                               env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "HOME": str(directory), **environment})
    os.close(other)
    try:
        yield Prompt(terminal)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        os.close(terminal)
