"""Stops a process of this machine for a moment, all its threads, to read and change it. For x86-64 Linux."""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType
from typing import Optional, Type

_SEIZE, _INTERRUPT, _DETACH, _GETREGS, _SETREGS = 0x4206, 0x4207, 17, 12, 13
_WALL = 0x40000000
_REGISTERS = struct.Struct("<27Q")  # struct user_regs_struct
_RIP, _RSP, _ORIG_RAX = 16, 19, 15
_ROUNDS_MAX = 100


class Seized:
    """A process while all its threads are stopped; OSError where that can't be had."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._signals: dict[int, int] = {}  # by thread: what to deliver when it goes on
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long
        self._memory = -1

    def _ptrace(self, request: int, tid: int, address: object = None, data: object = None) -> None:
        if self._libc.ptrace(request, tid, address, data) == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def __enter__(self) -> Seized:
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        try:
            for _ in range(_ROUNDS_MAX):  # threads may start others until they are stopped
                new = [tid for tid in map(int, os.listdir(f"/proc/{self.pid}/task")) if tid not in self._signals]
                if not new:
                    return self
                for tid in new:
                    self._stop(tid)
            raise OSError(11, "threads are started faster than they can be stopped")
        except BaseException:
            self._let_go()
            raise

    def _stop(self, tid: int) -> None:
        try:
            self._ptrace(_SEIZE, tid)
            self._ptrace(_INTERRUPT, tid)
            _, status = os.waitpid(tid, _WALL)
        except (ProcessLookupError, ChildProcessError):  # it has ended
            return
        if not os.WIFSTOPPED(status):
            return
        is_signal = status >> 16 == 0
        self._signals[tid] = os.WSTOPSIG(status) if is_signal else 0

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self._let_go()

    def _let_go(self) -> None:
        for tid, number in self._signals.items():
            try:
                self._ptrace(_DETACH, tid, None, number)
            except OSError:
                continue
        self._signals.clear()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    # ---- what it is like ------------------------------------------------------------------------------

    @property
    def tids(self) -> list[int]:
        return list(self._signals)

    def read(self, address: int, size: int) -> bytes:
        """All of it or nothing."""
        try:
            data = os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            return b""
        return data if len(data) == size else b""

    def write(self, address: int, data: bytes) -> None:
        os.pwrite(self._memory, data, address)

    def _registers(self, tid: int) -> list[int]:
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        self._ptrace(_GETREGS, tid, None, ctypes.addressof(buffer))
        return list(_REGISTERS.unpack(buffer.raw))

    def pc_and_sp(self, tid: int) -> tuple[int, int]:
        registers = self._registers(tid)
        return registers[_RIP], registers[_RSP]

    def set_pc(self, tid: int, pc: int) -> None:
        registers = self._registers(tid)
        registers[_RIP] = pc
        registers[_ORIG_RAX] = (1 << 64) - 1  # no system call is restarted
        buffer = ctypes.create_string_buffer(_REGISTERS.pack(*registers), _REGISTERS.size)
        self._ptrace(_SETREGS, tid, None, ctypes.addressof(buffer))
