"""libkarst.so and what helper/include/karst.h declares, in ctypes. Plugins use karst_engine, which is over it."""

from __future__ import annotations

import ctypes
import enum
import os
from pathlib import Path
from typing import Any, Optional

API_VERSION = 4
UNKNOWN = 2**64 - 1  # "can't be told" where the engine has bytes
NO_INDEX = 2**32 - 1  # no arena, no bin
REGISTERS_MAX = 40


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


# ---- the structs ------------------------------------------------------------------------------------


class RawError(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("text", ctypes.c_char * 1000)]


def error_of(error: RawError) -> KarstError:
    return KarstError(ErrorCode(error.code), error.text.decode("utf-8", "replace"))


class RawMapping(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("file_offset", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("permissions", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
    ]


class RawThread(ctypes.Structure):
    _fields_ = [
        ("tid", ctypes.c_int64),
        ("thread_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("program_counter", ctypes.c_uint64),
        ("signal", ctypes.c_int32),
        ("register_count", ctypes.c_uint32),
        ("registers", ctypes.c_uint64 * REGISTERS_MAX),
        ("name", ctypes.c_char * 16),
    ]


class RawSymbol(ctypes.Structure):
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


READ = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t)
MAPPING = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(RawMapping))
THREAD = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(RawThread))
SYMBOL = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(RawSymbol)
)
MEMBER = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint64),
)
RESIDENT = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
POLL = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
BLOCKS = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
WRITE = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


class RawCallbacks(ctypes.Structure):
    _fields_ = [
        ("context", ctypes.c_void_p),
        ("page_size", ctypes.c_uint64),
        ("pid", ctypes.c_int64),
        ("read", READ),
        ("mapping", MAPPING),
        ("thread", THREAD),
        ("symbol", SYMBOL),
        ("member", MEMBER),
        ("resident", RESIDENT),
    ]


class RawOptions(ctypes.Structure):
    _fields_ = [
        ("executable", ctypes.c_char_p),
        ("sysroot", ctypes.c_char_p),
        ("debug_directory", ctypes.c_char_p),
        ("no_stop", ctypes.c_bool),
        ("no_symbols", ctypes.c_bool),
        ("poll", POLL),
        ("poll_context", ctypes.c_void_p),
        ("thread", THREAD),
        ("thread_context", ctypes.c_void_p),
        ("lent", ctypes.POINTER(RawCallbacks)),
    ]


class RawOutput(ctypes.Structure):
    _fields_ = [
        ("context", ctypes.c_void_p),
        ("write", WRITE),
        ("width", ctypes.c_uint32),
        ("unicode", ctypes.c_bool),
    ]


def _declare(library: ctypes.CDLL) -> None:
    session, error = ctypes.c_void_p, ctypes.POINTER(RawError)
    options, block = ctypes.POINTER(RawOptions), ctypes.POINTER(Block)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "karst_open_core": (session, [ctypes.c_char_p, options, error]),
        "karst_open_process": (session, [ctypes.c_int64, options, error]),
        "karst_open_callbacks": (session, [ctypes.POINTER(RawCallbacks), options, error]),
        "karst_close": (None, [session]),
        "karst_version": (ctypes.c_char_p, []),
        "karst_api_version": (ctypes.c_uint32, []),
        "karst_for_each_block": (ctypes.c_bool, [session, BLOCKS, ctypes.c_void_p, error]),
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
                ctypes.POINTER(RawOutput),
                ctypes.POINTER(ctypes.c_uint64),
                error,
            ],
        ),
        "karst_verbs_json": (ctypes.c_char_p, []),
        "karst_nearest_word": (ctypes.c_char_p, [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_size_t]),
        "karst_read_trap": (ctypes.c_bool, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, error]),
        "karst_say_why": (ctypes.c_bool, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]),
        "karst_read_ring_bytes": (ctypes.c_bool, [ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64), error]),
        "karst_read_stack_depth": (ctypes.c_bool, [ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32), error]),
        "karst_check_action": (ctypes.c_bool, [ctypes.c_char_p, error]),
        "karst_prepare_ring_directory": (ctypes.c_bool, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, error]),
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
