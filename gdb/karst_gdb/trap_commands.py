"""`karst trap ...`."""

from __future__ import annotations

import json

import gdb
from karst_abi import FUNCTIONS, GROUPS, TRAP_KEYS, TRAP_WORDS

from karst_gdb import completion, trap_events, traps
from karst_gdb.prefixes import Prefix

_SPEC = """TRAP is a function (malloc, calloc, realloc, free, new, ..., alloc, frees, any), a size, and conditions:
  realloc 8880819            exactly that many bytes
  malloc,calloc 1M:2M        a range; 1M: has no upper end
  64/128/4K                  a set; no function named: each that allocates
  free freed=req->buf        a block that is freed, or handed to realloc
  thread=LWP caller=libfoo.so skip=N count=N
With libkarst-preload.so in the process also growth, event=N, returned=ADDRESS, double-free, foreign, interior,
overflow. Words that begin with $, & , * or ( are expressions."""


class TrapPrefix(Prefix):
    """Stop the program when an allocator's function is called in a certain way, at nearly full speed.

The library of `karst run` is told of the trap, or, in a process without it, a detour is put into the
function's module, and taken out again when the trap is removed, on detach and when GDB ends."""

    def __init__(self) -> None:
        super().__init__("karst trap", "trap command", gdb.COMMAND_BREAKPOINTS)


class Add(gdb.Command):
    __doc__ = f"Set a trap.\n\nUsage: karst trap add TRAP\n\n{_SPEC}"

    def __init__(self) -> None:
        super().__init__("karst trap add", gdb.COMMAND_BREAKPOINTS)

    def complete(self, text: str, word: str | None) -> object:
        typing = completion.last_word(text)
        if "=" in typing or typing[:1] in ("$", "&", "*", "("):
            return gdb.COMPLETE_EXPRESSION
        functions = typing[:typing.rfind(",") + 1]  # "malloc,cal"
        named = [functions + name for name in (*FUNCTIONS, *GROUPS)]
        return completion.among(named if functions else [*named, *TRAP_WORDS, *TRAP_KEYS], typing, word)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        text = argument.strip()
        if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:  # as at the shell
            text = text[1:-1]
        if not text:
            raise gdb.GdbError("which trap? `karst trap add realloc 8880819`; `help karst trap add` says more")
        gdb.write(traps.add(text) + "\n")


def _numbers(argument: str) -> list[int] | None:
    """None: all."""
    words = argument.replace(",", " ").split()
    if not words or words == ["all"]:
        return None
    if not all(word.isdigit() for word in words):
        raise gdb.GdbError(f"'{argument}' are no numbers of traps; `karst trap list` shows them; without any: all")
    return [int(word) for word in words]


class Change(gdb.Command):
    def __init__(self, word: str, text: str) -> None:
        self.word = word
        self.__doc__ = f"{text}\n\nUsage: karst trap {word} [NUMBER...]\n\nWithout numbers: all."
        super().__init__(f"karst trap {word}", gdb.COMMAND_BREAKPOINTS)

    def complete(self, text: str, word: str | None) -> object:
        try:
            numbers = [str(row.number) for row in traps.rows()]
        except (gdb.GdbError, gdb.error):
            numbers = []  # no process
        return completion.among(numbers, completion.last_word(text), word)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        traps.change(_numbers(argument), self.word)


class List(gdb.Command):
    """List the traps of the process.

Usage: karst trap list [--json]

hits: calls that met the conditions, those that were skipped too; stops: times the program was stopped."""

    def __init__(self) -> None:
        super().__init__("karst trap list", gdb.COMMAND_BREAKPOINTS)

    def complete(self, text: str, word: str | None) -> object:
        return completion.among(["--json"], completion.last_word(text), word)

    def invoke(self, argument: str, from_tty: bool) -> None:
        if argument.strip() not in ("", "--json"):
            raise gdb.GdbError(f"karst trap list: what is '{argument.strip()}'? Only --json may be given")
        rows = traps.rows()
        if argument.strip():
            gdb.write(json.dumps({"traps": [{"number": row.number, "text": row.text, "state": row.state, "by": row.by,
                                             "hits": row.hits, "stops": row.fired} for row in rows]}) + "\n")
            return
        if not rows:
            gdb.write("no traps\n")
            return
        _write_table([{"": f"{row.number:>3}", "trap": row.text, "state": f"{row.state:5}", "by": f"{row.by:7}",
                       "hits": f"{row.hits:>10,}", "stops": f"{row.fired:>6,}"} for row in rows])


_SPARE, _GAP, _SHORTENED = ["by", "hits", "state"], 2, 12


def _write_table(rows: list[dict[str, str]]) -> None:
    """As wide as GDB's lines are: columns that are least needed are left out, then traps shortened; both are said."""
    names, limit = list(rows[0]), int(gdb.parameter("width") or 0)
    left_out: list[str] = []
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def excess() -> int:
        return sum(widths[name] for name in names) + _GAP * (len(names) - 1) - limit

    while limit and excess() > max(0, widths["trap"] - _SHORTENED) and len(left_out) < len(_SPARE):
        left_out.append(_SPARE[len(left_out)])
        names.remove(left_out[-1])
    shortened = bool(limit) and excess() > 0
    if shortened:
        widths["trap"] = max(_SHORTENED, widths["trap"] - excess())
    for row in [{name: name for name in names}, *rows]:
        cells = []
        for name in names:
            text = row[name] if len(row[name]) <= widths[name] else row[name][:widths[name] - 3] + "..."
            cells.append(f"{text:>{widths[name]}}" if name in ("hits", "stops", "") else f"{text:{widths[name]}}")
        gdb.write((" " * _GAP).join(cells).rstrip() + "\n")
    if left_out:
        gdb.write(f"(left out to fit: {', '.join(left_out)};\n--json has all)\n")
    elif shortened:
        gdb.write("(shortened to fit; --json has all)\n")


def register() -> None:
    TrapPrefix()
    Add()
    List()
    Change("remove", "Remove traps; the functions are then what they were.")
    Change("enable", "Enable traps; those that are spent (count=) begin anew.")
    Change("disable", "Disable traps, which stay in the list.")
    trap_events.register()
