"""The engine, libkarst.so, in Python: a thin typed layer over helper/include/karst.h that the plugins share.

    with Session.open_core("core", executable="a.out") as session:
        session.run(["summary"], lambda style, text: print(text, end=""))

Nothing is loaded before the first call. Errors of the engine are KarstError; what a callback raises ends the
engine's work and comes out of the call that the callback was made in.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

API_VERSION = 2
UNKNOWN = 2**64 - 1  # "can't be told" where the engine has bytes
NO_INDEX = 2**32 - 1  # no arena, no bin
_REGISTERS_MAX = 40


class ErrorCode(enum.IntEnum):
    NONE = 0
    USAGE = 1
    NOT_FOUND = 2
    PERMISSION = 3
    FORMAT = 4
    UNSUPPORTED = 5
    INTERRUPTED = 6
    SYSTEM = 7
    MEMORY = 8


class State(enum.IntEnum):
    LIVE = 0
    FREE = 1
    CACHED = 2
    TOP = 3
    METADATA = 4
    UNKNOWN = 5


class Style(enum.IntEnum):
    PLAIN = 0
    TITLE = 1
    ADDRESS = 2
    SYMBOL = 3
    FILE = 4
    GOOD = 5
    WARNING = 6
    BAD = 7
    DIM = 8


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2
    EXECUTE = 4
    SHARED = 8


class KarstError(Exception):
    """The engine could not do it; str() is one line for a person."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class EngineMissing(KarstError):
    """There is no libkarst.so, or it is of another version."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.NOT_FOUND, text)


@dataclass(frozen=True)
class Mapping:
    start: int
    end: int
    permissions: int  # of Permission
    name: Optional[str] = None  # path, "[heap]" ...; None: anonymous
    file_offset: int = 0
    inode: int = 0


@dataclass(frozen=True)
class Thread:
    tid: int
    thread_pointer: int = 0  # fs base on x86-64; 0: unknown
    stack_pointer: int = 0
    program_counter: int = 0
    signal: int = 0
    registers: Sequence[int] = ()  # in the order of user_regs_struct
    name: str = ""


@dataclass(frozen=True)
class Symbol:
    address: int  # thread-local: offset in the module's block
    size: int = 0
    thread_local: bool = False


class Target:
    """What a debugger lends: derive from it. An answer of None is "not known"."""

    pid = 0
    page_size = 4096

    def read(self, address: int, size: int) -> Any:
        """Up to size bytes from address on: bytes, or anything with a buffer. What is not there ends it."""
        raise NotImplementedError

    def mappings(self) -> Sequence[Mapping]:
        raise NotImplementedError

    def threads(self) -> Sequence[Thread]:
        return ()

    def symbol(self, module: Optional[str], name: str) -> Optional[Symbol]:
        return None

    def member(self, module: Optional[str], type_name: str, member: str) -> Optional[tuple[int, int]]:
        """Offset and size of a member of a struct."""
        return None

    def resident(self, start: int, end: int) -> Optional[int]:
        """Bytes of [start, end) that are resident."""
        return None


class Answer(NamedTuple):
    status: int  # 0: done and healthy, 1: check found something
    last_address: int  # of the last block shown, 0: none


# ---- karst.h ----------------------------------------------------------------------------------------


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("text", ctypes.c_char * 1000)]


class _Mapping(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("file_offset", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("permissions", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
    ]


class _Thread(ctypes.Structure):
    _fields_ = [
        ("tid", ctypes.c_int64),
        ("thread_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("program_counter", ctypes.c_uint64),
        ("signal", ctypes.c_int32),
        ("register_count", ctypes.c_uint32),
        ("registers", ctypes.c_uint64 * _REGISTERS_MAX),
        ("name", ctypes.c_char * 16),
    ]


class _Symbol(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("size", ctypes.c_uint64), ("thread_local", ctypes.c_bool)]


class Block(ctypes.Structure):
    """struct karst_block. Inside for_each_block() only valid during the call; Block.from_buffer_copy(block)
    keeps one."""

    start: int
    size: int
    address: int
    usable: int
    arena: int
    bin: int
    heap: int
    state: int  # of State
    flags: int

    _fields_ = [
        ("start", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("usable", ctypes.c_uint64),
        ("arena", ctypes.c_uint32),
        ("bin", ctypes.c_uint32),
        ("heap", ctypes.c_uint16),
        ("state", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
    ]


_READ = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t)
_MAPPING = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(_Mapping))
_THREAD = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(_Thread))
_SYMBOL = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Symbol)
)
_MEMBER = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint64),
)
_RESIDENT = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
_POLL = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
_BLOCKS = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


class _Callbacks(ctypes.Structure):
    _fields_ = [
        ("context", ctypes.c_void_p),
        ("page_size", ctypes.c_uint64),
        ("pid", ctypes.c_int64),
        ("read", _READ),
        ("mapping", _MAPPING),
        ("thread", _THREAD),
        ("symbol", _SYMBOL),
        ("member", _MEMBER),
        ("resident", _RESIDENT),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ("executable", ctypes.c_char_p),
        ("sysroot", ctypes.c_char_p),
        ("debug_directory", ctypes.c_char_p),
        ("no_stop", ctypes.c_bool),
        ("no_symbols", ctypes.c_bool),
        ("poll", _POLL),
        ("poll_context", ctypes.c_void_p),
        ("thread", _THREAD),
        ("thread_context", ctypes.c_void_p),
        ("lent", ctypes.POINTER(_Callbacks)),
    ]


class _Output(ctypes.Structure):
    _fields_ = [
        ("context", ctypes.c_void_p),
        ("write", _WRITE),
        ("width", ctypes.c_uint32),
        ("unicode", ctypes.c_bool),
    ]


def _declare(library: ctypes.CDLL) -> None:
    session, error = ctypes.c_void_p, ctypes.POINTER(_Error)
    options, block = ctypes.POINTER(_Options), ctypes.POINTER(Block)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "karst_open_core": (session, [ctypes.c_char_p, options, error]),
        "karst_open_process": (session, [ctypes.c_int64, options, error]),
        "karst_open_callbacks": (session, [ctypes.POINTER(_Callbacks), options, error]),
        "karst_close": (None, [session]),
        "karst_version": (ctypes.c_char_p, []),
        "karst_api_version": (ctypes.c_uint32, []),
        "karst_for_each_block": (ctypes.c_bool, [session, _BLOCKS, ctypes.c_void_p, error]),
        "karst_find_block": (ctypes.c_bool, [session, ctypes.c_uint64, block, error]),
        "karst_allocator_name": (ctypes.c_char_p, [session, block]),
        "karst_arena_name": (ctypes.c_char_p, [session, block]),
        "karst_bin_name": (ctypes.c_char_p, [session, block]),
        "karst_run": (
            ctypes.c_int,
            [
                session,
                ctypes.c_int,
                ctypes.POINTER(ctypes.c_char_p),
                ctypes.POINTER(_Output),
                ctypes.POINTER(ctypes.c_uint64),
                error,
            ],
        ),
        "karst_verbs_json": (ctypes.c_char_p, []),
        "karst_read_trap": (ctypes.c_bool, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, error]),
        "karst_say_why": (ctypes.c_bool, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


# ---- the library ------------------------------------------------------------------------------------

_library: Optional[ctypes.CDLL] = None


def _candidates() -> list[str]:
    """Beside the source tree, in the PREFIX that this file is installed under, then as the system finds it."""
    found = []
    for parent in list(Path(__file__).resolve().parents)[:6]:
        for folder in ("build", "lib", "lib64"):
            found.append(str(parent / folder / "libkarst.so"))
    return [path for path in found if os.path.exists(path)] + ["libkarst.so"]


def load(path: str = "") -> ctypes.CDLL:
    """The engine; loaded once, from path if that is given. EngineMissing says what would help."""
    global _library
    if _library is not None:
        return _library
    tried = [path] if path else _candidates()
    try:
        library = ctypes.CDLL(tried[0])
        library.karst_api_version.restype = ctypes.c_uint32
        version = library.karst_api_version()
    except (OSError, AttributeError) as error:
        raise EngineMissing(f"karst's engine can't be loaded ({error}): build it by `make`") from None
    if version != API_VERSION:
        raise EngineMissing(
            f"{tried[0]} is of API version {version}, {API_VERSION} is needed: build both from one source"
        )
    _declare(library)
    _library = library
    return library


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
    caught = _Caught()
    _run(None, [verb, "--help"], lambda style, text: pieces.append(text), caught, width, unicode)
    return "".join(pieces)


def read_trap(text: str, size: int) -> bytes:
    """A trap as people write it, as the bytes of a struct karst_trap (karst-abi.h), which has that size."""
    trap, error = ctypes.create_string_buffer(size), _Error()
    if not load().karst_read_trap(os.fsencode(text), trap, size, ctypes.byref(error)):
        raise _error_of(error)
    return trap.raw


def say_why(why: bytes) -> str:
    """What a struct karst_why (karst-abi.h) tells, in one line."""
    text = ctypes.create_string_buffer(1000)
    if not load().karst_say_why(why, len(why), text, len(text)):
        raise KarstError(ErrorCode.FORMAT, f"why a thread stopped is told in {len(why)} bytes: another version")
    return text.value.decode("utf-8", "replace")


# ---- callbacks --------------------------------------------------------------------------------------


class _Caught:
    """Keeps the first exception that a callback raised until the engine has come back."""

    def __init__(self) -> None:
        self.exception: Optional[BaseException] = None

    def keep(self, exception: BaseException) -> None:
        if self.exception is None:
            self.exception = exception

    def check(self, error: Optional[_Error] = None) -> None:
        """Raises what was caught. An interrupt that nobody caught fell between Python's lines."""
        exception, self.exception = self.exception, None
        if exception is not None:
            raise exception
        if error is not None and error.code == ErrorCode.INTERRUPTED:
            raise KeyboardInterrupt

    def guard(self, function: Callable[..., Any], failure: Any) -> Callable[..., Any]:
        """function for C to call: failure once anything was raised."""

        def guarded(*arguments: Any) -> Any:
            if self.exception is not None:
                return failure
            try:
                return function(*arguments)
            except BaseException as exception:  # KeyboardInterrupt too: C can't raise
                self.keep(exception)
                return failure

        return guarded


def _copy_out(buffer: int, data: Any, size: int) -> int:
    if not isinstance(data, bytes):
        data = memoryview(data).cast("B")
    count = min(len(data), size)
    if isinstance(data, bytes):
        ctypes.memmove(buffer, data, count)
    else:
        memoryview((ctypes.c_char * count).from_address(buffer)).cast("B")[:] = data[:count]
    return count


def _text(value: Optional[bytes]) -> Optional[str]:
    return None if value is None else os.fsdecode(value)


class _Lister:
    """Lends a list by index; it is asked for anew each time that C begins at 0."""

    def __init__(self, items: Callable[[], Sequence[Any]], fill: Callable[[Any, Any], None]) -> None:
        self._items, self._fill = items, fill
        self._list: Sequence[Any] = ()

    def __call__(self, _context: Any, index: int, out: Any) -> bool:
        if index == 0:
            self._list = self._items()
        if index >= len(self._list):
            return False
        self._fill(self._list[index], out.contents)
        return True


def _fill_mapping(mapping: Mapping, out: Any) -> None:
    out.start, out.end = mapping.start, mapping.end
    out.file_offset, out.inode = mapping.file_offset, mapping.inode
    out.permissions = int(mapping.permissions)
    # C reads it before the next call; the struct does not keep it alive, the mapping does.
    encoded = None if mapping.name is None else os.fsencode(mapping.name)
    object.__setattr__(mapping, "_encoded", encoded)
    out.name = encoded


def _fill_thread(thread: Thread, out: Any) -> None:
    out.tid, out.signal = thread.tid, thread.signal
    out.thread_pointer, out.stack_pointer = thread.thread_pointer, thread.stack_pointer
    out.program_counter = thread.program_counter
    out.register_count = min(len(thread.registers), _REGISTERS_MAX)
    for index, value in enumerate(thread.registers[:_REGISTERS_MAX]):
        out.registers[index] = value
    out.name = os.fsencode(thread.name)[:15]


def _lend(target: Target, caught: _Caught) -> _Callbacks:
    def read(_context: Any, address: int, buffer: int, size: int) -> int:
        return _copy_out(buffer, target.read(address, size), size)

    def symbol(_context: Any, module: Optional[bytes], name: bytes, out: Any) -> bool:
        found = target.symbol(_text(module), os.fsdecode(name))
        if found is not None:
            out.contents.address, out.contents.size = found.address, found.size
            out.contents.thread_local = found.thread_local
        return found is not None

    def member(_context: Any, module: Optional[bytes], kind: bytes, name: bytes, offset: Any, size: Any) -> bool:
        found = target.member(_text(module), os.fsdecode(kind), os.fsdecode(name))
        if found is not None:
            offset[0], size[0] = found
        return found is not None

    def resident(_context: Any, start: int, end: int) -> int:
        found = target.resident(start, end)
        return UNKNOWN if found is None else found

    return _Callbacks(
        context=None,
        page_size=target.page_size,
        pid=target.pid,
        read=_READ(caught.guard(read, 0)),
        mapping=_MAPPING(caught.guard(_Lister(target.mappings, _fill_mapping), False)),
        thread=_THREAD(caught.guard(_Lister(target.threads, _fill_thread), False)),
        symbol=_SYMBOL(caught.guard(symbol, False)),
        member=_MEMBER(caught.guard(member, False)),
        resident=_RESIDENT(caught.guard(resident, UNKNOWN)),
    )


# ---- sessions ---------------------------------------------------------------------------------------

Write = Callable[[Style, str], Optional[bool]]
Poll = Callable[[str, int, int], Optional[bool]]

_STYLES = list(Style)


def _run(
    handle: Optional[int], words: Sequence[str], write: Write, caught: _Caught, width: int, unicode: bool
) -> Answer:
    def write_text(_context: Any, style: int, text: int, size: int) -> bool:
        return write(_STYLES[style], ctypes.string_at(text, size).decode("utf-8", "replace")) is not False

    library, error, last_address = load(), _Error(), ctypes.c_uint64()
    encoded = (ctypes.c_char_p * (len(words) + 1))(*[os.fsencode(word) for word in words], None)
    output = _Output(write=_WRITE(caught.guard(write_text, False)), width=width, unicode=unicode)
    status = library.karst_run(
        handle, len(words), encoded, ctypes.byref(output), ctypes.byref(last_address), ctypes.byref(error)
    )
    caught.check(error if status == 2 else None)
    if status == 2:
        raise _error_of(error)
    return Answer(status, last_address.value)


def _error_of(error: _Error) -> KarstError:
    return KarstError(ErrorCode(error.code), error.text.decode("utf-8", "replace"))


class Session:
    """A target and the heaps in it. To be closed; used by one thread at a time."""

    def __init__(self, handle: int, caught: _Caught, kept: Sequence[Any]) -> None:
        self._handle: Optional[int] = handle
        self._caught = caught
        self._kept = kept  # what C points to
        self._busy = False

    @classmethod
    def open_core(cls, path: str, **options: Any) -> Session:
        """A core file; options as for Options below."""
        return cls._open("karst_open_core", os.fsencode(path), (), _Caught(), options)

    @classmethod
    def open_process(cls, pid: int, **options: Any) -> Session:
        return cls._open("karst_open_process", pid, (), _Caught(), options)

    @classmethod
    def open_callbacks(cls, target: Target, **options: Any) -> Session:
        """Memory and symbols that target lends, for as long as the session lives."""
        caught = _Caught()
        callbacks = _lend(target, caught)
        return cls._open("karst_open_callbacks", ctypes.byref(callbacks), (callbacks, target), caught, options)

    @classmethod
    def _open(
        cls, function: str, what: Any, kept: Sequence[Any], caught: _Caught, options: dict[str, Any]
    ) -> Session:
        library, error = load(), _Error()
        made = cls._options(caught, **options)
        handle = getattr(library, function)(what, ctypes.byref(made), ctypes.byref(error))
        if not handle:
            caught.check(error)
            raise _error_of(error)
        session = cls(handle, caught, [*kept, made])
        try:
            caught.check()
        except BaseException:
            session.close()
            raise
        return session

    @staticmethod
    def _options(
        caught: _Caught,
        executable: Optional[str] = None,
        sysroot: Optional[str] = None,
        debug_directory: Optional[str] = None,
        no_stop: bool = False,
        no_symbols: bool = False,
        poll: Optional[Poll] = None,
        threads: Optional[Callable[[], Sequence[Thread]]] = None,
        lent: Optional[Target] = None,
    ) -> _Options:
        """poll(what, done, total) is called a few times a second; returning False ends the work. threads:
        those that a debugger which is attached knows; lent: its symbols and layouts, where files have none."""

        def poll_engine(_context: Any, what: bytes, done: int, total: int) -> bool:
            if poll is not None and poll(what.decode(), done, total) is False:
                raise KarstError(ErrorCode.INTERRUPTED, "interrupted")
            return True

        def encode(path: Optional[str]) -> Optional[bytes]:
            return None if path is None else os.fsencode(path)

        made = _Options(
            executable=encode(executable),
            sysroot=encode(sysroot),
            debug_directory=encode(debug_directory),
            no_stop=no_stop,
            no_symbols=no_symbols,
            poll=_POLL(caught.guard(poll_engine, False)),  # always: it is where Ctrl-C comes in
        )
        if threads is not None:
            made.thread = _THREAD(caught.guard(_Lister(threads, _fill_thread), False))
        if lent is not None:
            made.lent = ctypes.pointer(_lend(lent, caught))
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

        handle, error = self._enter(), _Error()
        self._busy = True
        try:
            walked = load().karst_for_each_block(
                handle, _BLOCKS(self._caught.guard(take_blocks, False)), None, ctypes.byref(error)
            )
        finally:
            self._busy = False
        self._caught.check(None if walked else error)
        if not walked:
            raise _error_of(error)

    def find_block(self, address: int) -> Block:
        """The block whose bytes hold address; KarstError NOT_FOUND says what it is in instead."""
        handle, block, error = self._enter(), Block(), _Error()
        self._busy = True
        try:
            found = load().karst_find_block(handle, address, ctypes.byref(block), ctypes.byref(error))
        finally:
            self._busy = False
        self._caught.check(None if found else error)
        if not found:
            raise _error_of(error)
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
            load().karst_close(handle)
            self._kept = ()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and not self._busy and _library is not None:
            self.close()
