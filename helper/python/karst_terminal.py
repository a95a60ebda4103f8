"""What the plugins share of a terminal: Ctrl-C while the engine works, and a line of progress.

While the engine works, SIGINT waits: Python would raise a KeyboardInterrupt at any line, also at the first one of a
callback, where nothing catches it. The engine's poll looks whether one is waiting, and callbacks let it through while
they are in the debugger: at a pager's prompt, in a slow read."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

_INTERRUPT = {signal.SIGINT}
_PROGRESS_AFTER = 1.0  # seconds


@contextmanager
def interrupts_wait() -> Any:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what waited is raised here


def interruptible(function: Callable[..., Any]) -> Callable[..., Any]:
    """function with interrupts let through."""

    def call(*arguments: Any) -> Any:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPT)
            return function(*arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPT)

    return call


class Progress:
    """A line on the terminal for what takes longer than a second."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._shown = 0

    def begin(self) -> None:
        self._since = time.monotonic()

    def poll(self, what: str, done: int, total: int) -> bool:
        """For the engine: false once an interrupt waits."""
        if os.isatty(2) and os.isatty(1) and time.monotonic() - self._since >= _PROGRESS_AFTER:
            text = f"{what}: {100 * min(done, total) // total} % of {total / 2**30:.1f} GB" if total \
                else f"{what}: {done / 2**30:.1f} GB"
            text = text[:max(os.get_terminal_size(2).columns - 1, 0) or None]  # what goes on below is not wiped by \r
            os.write(2, b"\r" + text.ljust(self._shown).encode())
            self._shown = max(self._shown, len(text))
        return signal.SIGINT not in signal.sigpending()

    def wipe(self) -> None:
        if self._shown:
            os.write(2, b"\r" + b" " * self._shown + b"\r")
            self._shown = 0
