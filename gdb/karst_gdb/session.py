"""One engine session an inferior, kept while nothing changes under it. What runs on without telling us gets a
session for one question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gdb

from karst_gdb import engine, pages, settings, target
from karst_gdb.symbols import Symbols

_sessions: dict[int, tuple[target.Target, engine.Session]] = {}
_symbols: dict[int, Symbols] = {}  # by inferior


def _drop(number: int) -> None:
    kept = _sessions.pop(number, None)
    if kept is not None:
        kept[1].close()


def drop_all() -> None:
    pages.forget()
    for number in list(_sessions):
        _drop(number)


def _drop_program(progspace: gdb.Progspace) -> None:
    """The files of a program changed: what was learned with its symbols is void."""
    for inferior in gdb.inferiors():
        if inferior.progspace == progspace:
            _drop(inferior.num)
            _symbols.pop(inferior.num, None)


def _on_files(event: object) -> None:
    objfile = getattr(event, "new_objfile", None) or getattr(event, "objfile", None)
    progspace = objfile.progspace if objfile is not None else getattr(event, "progspace", None)
    if progspace is not None:
        _drop_program(progspace)


def _on_inferior(event: object) -> None:
    inferior = getattr(event, "inferior", None)
    if inferior is not None:
        _drop(inferior.num)
        _symbols.pop(inferior.num, None)


def _on_change(event: object) -> None:
    """Memory, registers, or a run of any inferior: forked ones may share memory."""
    if _sessions:
        drop_all()


def connect() -> None:
    """Asks GDB to tell what voids a session."""
    handlers: dict[str, Callable[[object], None]] = {
        "cont": _on_change, "inferior_call": _on_change, "memory_changed": _on_change,
        "register_changed": _on_change, "exited": _on_inferior, "inferior_deleted": _on_inferior,
        "new_objfile": _on_files, "clear_objfiles": _on_files, "free_objfile": _on_files}
    for name, handler in handlers.items():
        registry = getattr(gdb.events, name, None)
        if registry is not None:  # free_objfile: from GDB 14 on
            registry.connect(handler)


def symbols() -> Symbols:
    return _symbols.setdefault(gdb.selected_inferior().num, Symbols())


@contextmanager
def current() -> Iterator[engine.Session]:
    """The selected inferior's session; fails with one line when there is nothing to read."""
    number = gdb.selected_inferior().num
    kept = _sessions.get(number)
    if kept is not None and target.is_current(kept[0]):
        yield kept[1]
        return
    _drop(number)
    wanted = target.selected()
    # In passing, symbols would take ten times as long to load as the heap takes to find by its structure.
    session = engine.Session(wanted, symbols(), no_symbols=wanted.passing or not settings.get("symbols"))
    if not wanted.passing and not wanted.partly_running:
        _sessions[number] = (wanted, session)
        yield session
        return
    try:
        yield session
    finally:
        session.close()
