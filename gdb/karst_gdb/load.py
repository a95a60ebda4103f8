"""What `source gdb/karst.py` does."""

from __future__ import annotations

from typing import Optional

import gdb
import karst_engine
from karst_engine import KarstError

from karst_gdb import commands, functions, inject, places, run_command, session, settings, trap_commands

_registered = False
_missing: Optional[commands.MissingEngine] = None


def _is_taken(command: str) -> bool:
    try:
        gdb.execute(f"help {command}", to_string=True)
    except gdb.error:
        return False
    return True


def _register_verbs() -> None:
    for verb in karst_engine.verbs():
        commands.Verb(verb)
    functions.register()
    places.register()
    trap_commands.register()
    run_command.register()
    inject.register()
    session.connect()


def load_engine(path: str) -> None:
    """Adds the verbs, or, where there is no engine, a `karst` that says so."""
    global _missing
    try:
        karst_engine.load(path)
    except KarstError as error:
        _missing = commands.MissingEngine(f"{error}, or say where it is by `set karst engine-path`")
        raise gdb.GdbError(_missing.reason) from None
    _missing = None
    commands.KarstPrefix()
    _register_verbs()


def engine_path() -> str:
    """Of the engine that is loaded, "" if none is."""
    return "" if _missing is not None or not _registered else str(karst_engine.load()._name)


def load_engine_again() -> None:
    """After `set karst engine-path`. An engine that was loaded stays: GDB cannot let go of it."""
    if _registered and _missing is not None:
        load_engine(str(settings.get("engine-path") or ""))


def register() -> None:
    """Once; sourcing the plugin again changes nothing."""
    global _registered
    if _registered:
        return
    if _is_taken("karst"):
        raise gdb.GdbError("karst: GDB has a command `karst` already; the plugin is not loaded")
    settings.register(session.drop_all, engine_path, load_engine_again)
    _registered = True
    load_engine(str(settings.get("engine-path") or ""))
