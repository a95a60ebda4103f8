"""Whether a remote target's process runs on this machine, where the engine can read it directly.

GDB decodes every byte of a remote target's memory from hexadecimal, which takes ten times as long as the walk."""

from __future__ import annotations

import struct

import gdb

from karst_gdb import memory

_AT_RANDOM = 25
_RANDOM_BYTES = 16


def _random_address(pid: int) -> int:
    """Where the kernel put the bytes that are different in each run of each program; 0: not told."""
    with open(f"/proc/{pid}/auxv", "rb") as file:
        auxv = file.read()
    for kind, value in struct.iter_unpack("@LL", auxv[:len(auxv) // 16 * 16]):
        if kind == _AT_RANDOM:
            return value
    return 0


def _is_same(pid: int) -> bool:
    with open(f"/proc/{pid}/maps", "rb") as file:
        if not (maps := file.read()) or maps != memory.remote_file(f"/proc/{pid}/maps"):
            return False
    address = _random_address(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(address)
        local = file.read(_RANDOM_BYTES)
    return address != 0 and local == bytes(gdb.selected_inferior().read_memory(address, _RANDOM_BYTES))


def runs_here(pid: int) -> bool:
    """Whether the remote process pid is this machine's process pid, and may be read: the mappings and the random
    bytes of its start have to be the same through GDB and through the kernel."""
    try:
        return _is_same(pid)
    except (OSError, OverflowError, gdb.error):
        return False
