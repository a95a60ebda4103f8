"""The engine in GDB: sessions over what is selected, text to GDB's pager, Ctrl-C."""

from __future__ import annotations

import locale
import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, Optional

import gdb
import karst_engine
from karst_engine import Block, KarstError, State
from karst_terminal import Progress, interruptible, interrupts_wait

from karst_gdb import memory, registers
from karst_gdb.symbols import Symbols
from karst_gdb.target import CORE, PROCESS, Target

_CHUNK = 16 * 1024


# ---- sessions ----------------------------------------------------------------------------------------


class _Lent(karst_engine.Target):
    """Symbols and layouts that GDB knows."""

    def __init__(self, known: Symbols) -> None:
        self._symbol = interruptible(known.symbol)
        self._member = interruptible(known.member)

    def symbol(self, module: Optional[str], name: str) -> Optional[karst_engine.Symbol]:
        return self._symbol(module, name)

    def member(self, module: Optional[str], type_name: str, member: str) -> Optional[tuple[int, int]]:
        return self._member(module, type_name, member)


class _Remote(_Lent):
    """An inferior that only GDB can read."""

    def __init__(self, target: Target, known: Symbols) -> None:
        super().__init__(known)
        self.pid = target.pid
        self._mappings = memory.mappings()
        self._read = interruptible(memory.Memory(gdb.selected_inferior(), self._mappings).read)
        self._threads = registers.threads()

    def read(self, address: int, size: int) -> memoryview:
        return self._read(address, size)

    def mappings(self) -> Sequence[karst_engine.Mapping]:
        return self._mappings

    def threads(self) -> Sequence[karst_engine.Thread]:
        return self._threads


def _sysroot() -> Optional[str]:
    """GDB's, as the engine takes it."""
    path = _without_target(str(gdb.parameter("sysroot") or ""))
    return path if path and path.strip("/") else None


def _without_target(path: str) -> Optional[str]:
    """GDB writes "target:" before a path of the remote machine."""
    return (path[len("target:"):] if path.startswith("target:") else path) or None


def _unicode() -> bool:
    charset = str(gdb.parameter("host-charset") or "auto")
    if charset.startswith("auto"):
        charset = locale.nl_langinfo(locale.CODESET)
    return charset.upper().replace("-", "") == "UTF8"


class _Page:
    """Text on its way to GDB's pager, a chunk at a time."""

    def __init__(self, sequences: tuple[str, ...], progress: Progress) -> None:
        self._sequences = sequences
        self._progress = progress
        self._pieces: list[str] = []
        self._size = 0

    def write(self, style: int, text: str) -> bool:
        sequence = self._sequences[style]
        self._pieces.append(f"{sequence}{text}\x1b[m" if sequence else text)
        self._size += len(text)
        if self._size >= _CHUNK:
            self.flush()
        return True

    def flush(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._progress.wipe()
        interruptible(gdb.write)(text)


class Session:
    """A session of the engine over one inferior. Closing it while it works waits until it has ended."""

    def __init__(self, target: Target, known: Symbols, no_symbols: bool) -> None:
        self._progress = Progress()
        self._busy = False
        self._closing = False
        self._engine = self._open(target, known, no_symbols)

    def _open(self, target: Target, known: Symbols, no_symbols: bool) -> karst_engine.Session:
        options: dict[str, Any] = {"sysroot": _sysroot(), "no_symbols": no_symbols,
                                   "debug_directory": str(gdb.parameter("debug-file-directory") or "") or None,
                                   "no_stop": target.partly_running, "poll": self._progress.poll}
        try:
            if target.kind == CORE:
                executable = target.executable if os.access(target.executable, os.R_OK) else None
                with interrupts_wait():
                    return karst_engine.Session.open_core(target.core, executable=executable, lent=_Lent(known),
                                                          **options)
            if target.kind == PROCESS:
                threads = registers.threads()
                with interrupts_wait():
                    return karst_engine.Session.open_process(target.pid, threads=lambda: threads, lent=_Lent(known),
                                                             **options)
            remote = _Remote(target, known)
            with interrupts_wait():
                return karst_engine.Session.open_callbacks(remote, executable=_without_target(target.executable),
                                                           **options)
        except KarstError as error:
            raise gdb.GdbError(str(error)) from None
        finally:
            self._progress.wipe()

    @contextmanager
    def _working(self) -> Any:
        self._busy = True
        self._progress.begin()
        try:
            with interrupts_wait():
                yield
        except KarstError as error:
            raise gdb.GdbError(str(error)) from None
        finally:
            self._progress.wipe()
            self._busy = False
            if self._closing:
                self._engine.close()

    def run(self, words: Sequence[str], sequences: tuple[str, ...]) -> karst_engine.Answer:
        """Runs a verb, its text to GDB. What it can't answer fails with one line."""
        page = _Page(sequences, self._progress)
        with self._working():
            answer = self._engine.run(words, page.write, width=int(gdb.parameter("width") or 0), unicode=_unicode())
            page.flush()
        return answer

    def json(self, words: Sequence[str]) -> Any:
        with self._working():
            return self._engine.run_json(words)

    def find_block(self, address: int) -> Optional[Block]:
        """The block that holds address; None: it is in no heap."""
        try:
            with self._working():
                return self._find(address)
        except _NotThere:
            return None

    def _find(self, address: int) -> Block:
        try:
            return self._engine.find_block(address)
        except KarstError as error:
            if error.code == karst_engine.ErrorCode.NOT_FOUND:
                raise _NotThere from None
            raise

    def arena_name(self, block: Block) -> str:
        return self._engine.arena_name(block)

    def close(self) -> None:
        if self._busy:
            self._closing = True
        else:
            self._engine.close()


class _NotThere(Exception):
    pass


def state_name(block: Block) -> str:
    return State(block.state).name.lower()
