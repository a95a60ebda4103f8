"""What a debugger lends to the engine: memory, mappings, threads and symbols, as callbacks that C can call."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from karst_library import (MAPPING, MEMBER, READ, REGISTERS_MAX, RESIDENT, SYMBOL, THREAD, UNKNOWN, ErrorCode,
                           RawCallbacks, RawError)


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


# ---- callbacks --------------------------------------------------------------------------------------


class Caught:
    """Keeps the first exception that a callback raised until the engine has come back."""

    def __init__(self) -> None:
        self.exception: Optional[BaseException] = None

    def keep(self, exception: BaseException) -> None:
        if self.exception is None:
            self.exception = exception

    def check(self, error: Optional[RawError] = None) -> None:
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


class Lister:
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


def fill_thread(thread: Thread, out: Any) -> None:
    out.tid, out.signal = thread.tid, thread.signal
    out.thread_pointer, out.stack_pointer = thread.thread_pointer, thread.stack_pointer
    out.program_counter = thread.program_counter
    out.register_count = min(len(thread.registers), REGISTERS_MAX)
    for index, value in enumerate(thread.registers[:REGISTERS_MAX]):
        out.registers[index] = value
    out.name = os.fsencode(thread.name)[:15]


def lend(target: Target, caught: Caught) -> RawCallbacks:
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

    return RawCallbacks(
        context=None,
        page_size=target.page_size,
        pid=target.pid,
        read=READ(caught.guard(read, 0)),
        mapping=MAPPING(caught.guard(Lister(target.mappings, _fill_mapping), False)),
        thread=THREAD(caught.guard(Lister(target.threads, fill_thread), False)),
        symbol=SYMBOL(caught.guard(symbol, False)),
        member=MEMBER(caught.guard(member, False)),
        resident=RESIDENT(caught.guard(resident, UNKNOWN)),
    )
