"""What the selected inferior is: a core, a process on this machine, or memory that only GDB can read."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import gdb

from karst_gdb import here, settings

CORE, PROCESS, REMOTE = "core", "process", "remote"

# Names of GDB's targets, which it does not translate. "native" is a process here; "core" and "exec" are files.
_STACK_LINE = re.compile(r"^\s*- (\S+)", re.MULTILINE)
_QUOTED_PATH = re.compile(r"[`'‘\"]([^`'‘’\"\n]+)['’\"]")
_ELF_MAGIC, _ET_CORE = b"\x7fELF", 4


@dataclass(frozen=True)
class Target:
    """What to open for the selected inferior; equal ones may share a session."""

    kind: str
    pid: int
    core: str  # path of the core file, "" unless kind is CORE
    executable: str  # "" if GDB has none
    connection: object  # GDB's number of the connection: a core loaded anew has another one
    partly_running: bool  # non-stop mode: some threads run while we read
    passing: bool  # GDB looks at it in passing (a breakpoint's condition): it runs on without an event


def _target_stack() -> list[str]:
    return _STACK_LINE.findall(gdb.execute("maint print target-stack", to_string=True))


def _connection_number(inferior: gdb.Inferior) -> object:
    connection = getattr(inferior, "connection", None)
    return getattr(connection, "num", None) if connection is not None else getattr(inferior, "connection_num", None)


def _is_core_file(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            header = file.read(18)
    except OSError:
        return False
    if len(header) < 18 or header[:4] != _ELF_MAGIC:
        return False
    kind = struct.unpack("<H" if header[5] == 1 else ">H", header[16:18])[0]
    return kind == _ET_CORE


def core_path() -> str:
    """The path of the selected inferior's core file. GDB has no call for it before release 17; `info files`
    names it in quotes, in whatever language."""
    corefile = getattr(gdb.selected_inferior(), "corefile", None)
    if corefile is not None:
        return corefile.filename
    for line in gdb.execute("info files", to_string=True).splitlines():
        for path in _QUOTED_PATH.findall(line):
            if _is_core_file(path):
                return path
    raise gdb.GdbError("GDB does not say where the core file is; load it again by `core-file PATH`")


def is_executing() -> bool:
    """Whether the selected thread runs now. In a breakpoint's condition GDB calls it running too, but its
    registers can be read."""
    thread = gdb.selected_thread()
    if thread is None or not thread.is_running():
        return False
    try:
        gdb.newest_frame()
    except gdb.error:
        return True
    return False


def _some_thread_runs(inferior: gdb.Inferior) -> bool:
    return bool(gdb.parameter("non-stop")) and any(thread.is_running() for thread in inferior.threads())


def selected() -> Target:
    """The selected inferior; fails with one line when there is nothing to read."""
    inferior = gdb.selected_inferior()
    stack = _target_stack()
    executable = inferior.progspace.filename or ""
    if "core" in stack:
        return Target(CORE, inferior.pid, core_path(), executable, _connection_number(inferior), False, False)
    if not inferior.pid:
        raise gdb.GdbError("no process: start one (run), attach to one (attach PID) or load a core (core-file PATH)")
    if is_executing():
        raise gdb.GdbError("the selected thread is running: select one that is stopped (thread N), or `interrupt -a`"
                           if gdb.parameter("non-stop") else "the process is running: interrupt it first")
    if gdb.selected_thread() is None:
        raise gdb.GdbError("no thread is selected: select one of the process's (thread N)")
    is_here = "native" in stack or (bool(settings.get("direct")) and here.runs_here(inferior.pid))
    kind = PROCESS if is_here else REMOTE
    return Target(kind, inferior.pid, "", executable, _connection_number(inferior), _some_thread_runs(inferior),
                  gdb.selected_thread().is_running())


def is_current(target: Target) -> bool:
    """Whether target is still what is selected, without asking GDB for long texts."""
    inferior = gdb.selected_inferior()
    return (_connection_number(inferior) == target.connection and inferior.pid == target.pid
            and (inferior.progspace.filename or "") == target.executable and not _selected_thread_runs()
            # GDB 10 does not number its connections: a core is then known by its path.
            and (target.connection is not None or target.kind != CORE or core_path() == target.core))


def _selected_thread_runs() -> bool:
    thread = gdb.selected_thread()
    return thread is not None and thread.is_running()
