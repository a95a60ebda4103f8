"""The engine, libkarst.so, in Python: a thin typed layer over helper/include/karst.h that the plugins share.

    with Session.open_core("core", executable="a.out") as session:
        session.run(["summary"], lambda style, text: print(text, end=""))

Nothing is loaded before the first call. Errors of the engine are KarstError; what a callback raises ends the
engine's work and comes out of the call that the callback was made in.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

from karst_lend import Caught, Lister, Mapping, Symbol, Target, Thread, fill_thread, lend
from karst_library import (API_VERSION, BLOCKS, NO_INDEX, POLL, THREAD, UNKNOWN, WRITE, Block, EngineMissing, ErrorCode,
                           KarstError, Permission, RawError, RawOptions, RawOutput, State, Style, error_of, load)

__all__ = ["API_VERSION", "NO_INDEX", "UNKNOWN", "Answer", "Block", "EngineMissing", "ErrorCode", "KarstError",
           "Mapping", "Permission", "Session", "State", "Style", "Symbol", "Target", "Thread", "check_action", "check_words",
           "did_you_mean", "help_text", "load", "prepare_ring_directory", "read_ring_bytes", "read_stack_depth", "read_trap",
           "say_why", "verbs", "version"]


class Answer(NamedTuple):
    status: int  # 0: done and healthy, 1: check found something
    last_address: int  # of the last block shown, 0: none


def version() -> str:
    return load().karst_version().decode()


def verbs() -> list[dict[str, Any]]:
    """All verbs: name, group, summary, help, arguments and options, as karst_verbs_json() has them."""
    text = load().karst_verbs_json()
    if text is None:
        raise KarstError(ErrorCode.MEMORY, "out of memory")
    return json.loads(text)


def help_text(verb: str, width: int = 0, unicode: bool = True) -> str:
    """What `karst VERB --help` says; it needs no target."""
    pieces: list[str] = []
    caught = Caught()
    _run(None, [verb, "--help"], lambda style, text: pieces.append(text), caught, width, unicode)
    return "".join(pieces)


def check_words(words: Sequence[str]) -> None:
    """Fails if a verb's words are wrong, which can be told before there is a target."""
    caught = Caught()
    try:
        _run(None, words, lambda style, text: None, caught, 0, True)
    except KarstError as error:
        if error.code == ErrorCode.USAGE:
            raise


def did_you_mean(typed: str, words: Sequence[str]) -> str:
    """"; did you mean X?" with the one of words that a mistyped one may have meant; "" if none is near."""
    names = [os.fsencode(word) for word in words]
    found = load().karst_nearest_word(os.fsencode(typed), (ctypes.c_char_p * len(names))(*names), len(names))
    return f"; did you mean {os.fsdecode(found)}?" if found is not None else ""


def read_trap(text: str, size: int) -> bytes:
    """A trap as people write it, as the bytes of a struct karst_trap (karst-abi.h), which has that size."""
    trap, error = ctypes.create_string_buffer(size), RawError()
    if not load().karst_read_trap(os.fsencode(text), trap, size, ctypes.byref(error)):
        raise error_of(error)
    return trap.raw


def say_why(why: bytes) -> str:
    """What a struct karst_why (karst-abi.h) tells, in one line."""
    text = ctypes.create_string_buffer(1000)
    if not load().karst_say_why(why, len(why), text, len(text)):
        raise KarstError(ErrorCode.FORMAT, f"why a thread stopped is told in {len(why)} bytes: another version")
    return text.value.decode("utf-8", "replace")


# ---- what the preload library is asked for ----------------------------------------------------------

_PATH_MAX = 4096  # linux/limits.h


def _checked(done: bool, error: RawError) -> None:
    if not done:
        raise error_of(error)


def read_ring_bytes(text: str) -> int:
    """The value of --recorder as typed."""
    number, error = ctypes.c_uint64(), RawError()
    _checked(load().karst_read_ring_bytes(os.fsencode(text), ctypes.byref(number), ctypes.byref(error)), error)
    return number.value


def read_stack_depth(text: str) -> int:
    """The value of --stacks as typed."""
    number, error = ctypes.c_uint32(), RawError()
    _checked(load().karst_read_stack_depth(os.fsencode(text), ctypes.byref(number), ctypes.byref(error)), error)
    return number.value


def check_action(text: str) -> None:
    """The value of --action as typed."""
    error = RawError()
    _checked(load().karst_check_action(os.fsencode(text), ctypes.byref(error)), error)


def prepare_ring_directory(directory: str) -> str:
    """The absolute path of --recorder-dir, which is made if it is not there."""
    path, error = ctypes.create_string_buffer(_PATH_MAX), RawError()
    _checked(load().karst_prepare_ring_directory(os.fsencode(directory), path, len(path), ctypes.byref(error)), error)
    return os.fsdecode(path.value)


# ---- sessions ---------------------------------------------------------------------------------------

Write = Callable[[Style, str], Optional[bool]]
Poll = Callable[[str, int, int], Optional[bool]]

_STYLES = list(Style)


def _run(
    handle: Optional[int], words: Sequence[str], write: Write, caught: Caught, width: int, unicode: bool
) -> Answer:
    def write_text(_context: Any, style: int, text: int, size: int) -> bool:
        return write(_STYLES[style], ctypes.string_at(text, size).decode("utf-8", "replace")) is not False

    library, error, last_address = load(), RawError(), ctypes.c_uint64()
    encoded = (ctypes.c_char_p * (len(words) + 1))(*[os.fsencode(word) for word in words], None)
    output = RawOutput(write=WRITE(caught.guard(write_text, False)), width=width, unicode=unicode)
    status = library.karst_run(
        handle, len(words), encoded, ctypes.byref(output), ctypes.byref(last_address), ctypes.byref(error)
    )
    caught.check(error if status == 2 else None)
    if status == 2:
        raise error_of(error)
    return Answer(status, last_address.value)


class Session:
    """A target and the heaps in it. To be closed; used by one thread at a time."""

    def __init__(self, handle: int, caught: Caught, kept: Sequence[Any]) -> None:
        self._library = load()
        self._handle: Optional[int] = handle
        self._caught = caught
        self._kept = kept  # what C points to
        self._busy = False

    @classmethod
    def open_core(cls, path: str, **options: Any) -> Session:
        """A core file; options as _options() below has them."""
        return cls._open("karst_open_core", os.fsencode(path), (), Caught(), options)

    @classmethod
    def open_process(cls, pid: int, **options: Any) -> Session:
        return cls._open("karst_open_process", pid, (), Caught(), options)

    @classmethod
    def open_callbacks(cls, target: Target, **options: Any) -> Session:
        """Memory and symbols that target lends, for as long as the session lives."""
        caught = Caught()
        callbacks = lend(target, caught)
        return cls._open("karst_open_callbacks", ctypes.byref(callbacks), (callbacks, target), caught, options)

    @classmethod
    def _open(
        cls, function: str, what: Any, kept: Sequence[Any], caught: Caught, options: dict[str, Any]
    ) -> Session:
        library, error = load(), RawError()
        made = cls._options(caught, **options)
        handle = getattr(library, function)(what, ctypes.byref(made), ctypes.byref(error))
        if not handle:
            caught.check(error)
            raise error_of(error)
        session = cls(handle, caught, [*kept, made])
        try:
            caught.check()
        except BaseException:
            session.close()
            raise
        return session

    @staticmethod
    def _options(
        caught: Caught,
        executable: Optional[str] = None,
        sysroot: Optional[str] = None,
        debug_directory: Optional[str] = None,
        no_stop: bool = False,
        no_symbols: bool = False,
        poll: Optional[Poll] = None,
        threads: Optional[Callable[[], Sequence[Thread]]] = None,
        lent: Optional[Target] = None,
    ) -> RawOptions:
        """poll(what, done, total) is called a few times a second; returning False ends the work. threads:
        those that a debugger which is attached knows; lent: its symbols and layouts, where files have none."""

        def poll_engine(_context: Any, what: bytes, done: int, total: int) -> bool:
            if poll is not None and poll(what.decode(), done, total) is False:
                raise KarstError(ErrorCode.INTERRUPTED, "interrupted")
            return True

        def encode(path: Optional[str]) -> Optional[bytes]:
            return None if path is None else os.fsencode(path)

        made = RawOptions(
            executable=encode(executable),
            sysroot=encode(sysroot),
            debug_directory=encode(debug_directory),
            no_stop=no_stop,
            no_symbols=no_symbols,
            poll=POLL(caught.guard(poll_engine, False)),  # always: it is where Ctrl-C comes in
        )
        if threads is not None:
            made.thread = THREAD(caught.guard(Lister(threads, fill_thread), False))
        if lent is not None:
            made.lent = ctypes.pointer(lend(lent, caught))
        return made

    def _enter(self) -> int:
        if self._handle is None:
            raise ValueError("the session is closed")
        if self._busy:
            raise RuntimeError("the session is at work; a callback can't ask it")
        return self._handle

    def run(self, words: Sequence[str], write: Write, *, width: int = 0, unicode: bool = True) -> Answer:
        """Runs a verb, words[0], with its options and arguments. write(style, text) returning False ends it.
        KarstError when it could not be answered."""
        handle = self._enter()
        self._busy = True
        try:
            return _run(handle, words, write, self._caught, width, unicode)
        finally:
            self._busy = False

    def run_text(self, words: Sequence[str], *, width: int = 0, unicode: bool = True) -> tuple[Answer, str]:
        """run() with the text collected."""
        pieces: list[str] = []
        answer = self.run(words, lambda style, text: pieces.append(text), width=width, unicode=unicode)
        return answer, "".join(pieces)

    def run_json(self, words: Sequence[str]) -> Any:
        """What a verb says with --json, as Python has it."""
        return json.loads(self.run_text([*words, "--json"])[1])

    def for_each_block(self, visit: Callable[[Any], Optional[bool]]) -> None:
        """Calls visit with arrays of Block in the order of addresses; False ends it."""

        def take_blocks(_context: Any, blocks: int, count: int) -> bool:
            return visit((Block * count).from_address(blocks)) is not False

        handle, error = self._enter(), RawError()
        self._busy = True
        try:
            walked = load().karst_for_each_block(
                handle, BLOCKS(self._caught.guard(take_blocks, False)), None, ctypes.byref(error)
            )
        finally:
            self._busy = False
        self._caught.check(None if walked else error)
        if not walked:
            raise error_of(error)

    def find_block(self, address: int) -> Block:
        """The block whose bytes hold address; KarstError NOT_FOUND says what it is in instead."""
        handle, block, error = self._enter(), Block(), RawError()
        self._busy = True
        try:
            found = load().karst_find_block(handle, address, ctypes.byref(block), ctypes.byref(error))
        finally:
            self._busy = False
        self._caught.check(None if found else error)
        if not found:
            raise error_of(error)
        return block

    def allocator_name(self, block: Block) -> str:
        return load().karst_allocator_name(self._enter(), ctypes.byref(block)).decode("utf-8", "replace")

    def arena_name(self, block: Block) -> str:
        """"" if it is in none."""
        return load().karst_arena_name(self._enter(), ctypes.byref(block)).decode("utf-8", "replace")

    def bin_name(self, block: Block) -> str:
        """"" if it is in none."""
        return load().karst_bin_name(self._enter(), ctypes.byref(block)).decode("utf-8", "replace")

    def close(self) -> None:
        """Lets the target go. More than once does no harm."""
        if self._handle is not None:
            handle = self._enter()
            self._handle = None
            self._library.karst_close(handle)
            self._kept = ()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and not self._busy:
            self.close()
