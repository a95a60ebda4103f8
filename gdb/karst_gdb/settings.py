"""`set karst ...` and `show karst ...`: real GDB parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gdb

from karst_gdb.prefixes import Prefix

_PREFIX = "karst "


class _Setting(gdb.Parameter):
    """What all settings have in common: no words when set, one line when shown."""

    shown = "{}"

    def __init__(self, name: str, kind: int, default: object, choices: list[str] | None = None) -> None:
        if choices:
            super().__init__(_PREFIX + name, gdb.COMMAND_DATA, kind, choices)
        else:
            super().__init__(_PREFIX + name, gdb.COMMAND_DATA, kind)
        self.value: Any = default

    def get_set_string(self) -> str:
        return ""

    def get_show_string(self, value: str) -> str:
        return self.shown.format(value)


class Count(_Setting):
    """Rows that karst's long lists show at a time; Enter goes on.
The option of a verb itself, as in `karst blocks --limit 50`, goes before."""

    set_doc = "Set how many rows karst's long lists show at a time."
    show_doc = "Show how many rows karst's long lists show at a time."
    shown = "karst's long lists show {} rows at a time."
    good = 20

    def get_set_string(self) -> str:
        rows = int(self.value)
        if rows < 1:
            self.value = self.good
            raise gdb.GdbError("a list shows at least one row at a time; `karst blocks --all` shows all")
        self.good = rows
        return ""


class Colour(_Setting):
    """Whether karst styles its text, in GDB's own `set style ...`.
auto: where GDB's `set style enabled` is on and the text goes to a terminal."""

    set_doc = "Set whether karst styles its text."
    show_doc = "Show whether karst styles its text."
    shown = 'karst styles its text: "{}".'


class _Anew(_Setting):
    """What was learned under another setting is dropped."""

    def __init__(self, name: str, kind: int, default: object, begin_anew: Callable[[], None]) -> None:
        self._begin_anew = begin_anew
        super().__init__(name, kind, default)

    def get_set_string(self) -> str:
        self._begin_anew()
        return ""


class Symbols(_Anew):
    """Whether karst may use symbols and debug information.
Off, it finds every heap by its structure, as on a system without symbols."""

    set_doc = "Set whether karst may use symbols and debug information."
    show_doc = "Show whether karst may use symbols and debug information."

    def get_show_string(self, value: str) -> str:
        return f"karst {'uses symbols and debug information' if self.value else 'uses no symbols'}."


class Direct(_Anew):
    """Whether karst itself reads a process behind gdbserver that runs on this machine.
Off, or where it runs elsewhere, its memory is read through GDB, which takes much longer."""

    set_doc = "Set whether karst itself reads a process behind gdbserver that runs on this machine."
    show_doc = "Show whether karst itself reads a process behind gdbserver that runs on this machine."

    def get_show_string(self, value: str) -> str:
        return f"karst reads a process behind gdbserver {'itself, if it runs here' if self.value else 'through GDB'}."


class EnginePath(_Setting):
    """Path of karst's engine, libkarst.so; empty: beside the plugin or where the system keeps libraries."""

    set_doc = "Set the path of karst's engine, libkarst.so."
    show_doc = "Show the path of karst's engine, libkarst.so."

    def __init__(self, name: str, kind: int, loaded: Callable[[], str], load: Callable[[], None]) -> None:
        self._loaded, self._load = loaded, load
        super().__init__(name, kind, "")

    def get_show_string(self, value: str) -> str:
        return f"karst's engine is {self._loaded() or 'not loaded'}."

    def get_set_string(self) -> str:
        self._load()
        return ""


class _SetPrefix(Prefix):
    """Settings of karst."""

    def __init__(self) -> None:
        super().__init__("set karst", "setting")


class _ShowPrefix(Prefix):
    """Show karst's settings."""

    def __init__(self) -> None:
        super().__init__("show karst", "setting")

    def invoke(self, argument: str, from_tty: bool) -> None:
        if argument.strip():
            super().invoke(argument, from_tty)
        for name in all_settings:
            gdb.execute(f"show karst {name}", from_tty)


all_settings: dict[str, gdb.Parameter] = {}


def register(begin_anew: Callable[[], None], loaded_engine: Callable[[], str], load_engine: Callable[[], None]) -> None:
    """begin_anew: drops what was learned so far; loaded_engine: the path of the engine, "" if none is loaded;
    load_engine: tries again, from the path that was set."""
    _SetPrefix()
    _ShowPrefix()
    all_settings["count"] = Count("count", gdb.PARAM_ZINTEGER, 20)
    all_settings["color"] = Colour("color", gdb.PARAM_ENUM, "auto", ["auto", "on", "off"])
    all_settings["symbols"] = Symbols("symbols", gdb.PARAM_BOOLEAN, True, begin_anew)
    all_settings["direct"] = Direct("direct", gdb.PARAM_BOOLEAN, True, begin_anew)
    all_settings["engine-path"] = EnginePath("engine-path", gdb.PARAM_OPTIONAL_FILENAME, loaded_engine, load_engine)


def get(name: str) -> Any:
    return all_settings[name].value
