"""`karst VERB ...`: one GDB command a verb of the engine."""

from __future__ import annotations

import textwrap
from typing import Any

import gdb
import karst_engine

from karst_gdb import completion, engine, pages, python_stack, session, settings, styles, values, variables
from karst_gdb.arguments import Parsed, parse, split
from karst_gdb.expressions import one_line
from karst_gdb.prefixes import Prefix

_TYPE_OPTION = {"name": "type", "letter": None, "kind": "text", "value": "TYPE", "choices": None}
_OWN_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "block": [dict(_TYPE_OPTION, help="print the object as this type; without it, by its vtable")],
    "blocks": [dict(_TYPE_OPTION, help="live blocks that hold a C++ object with this class's vtable; for a type"
                                       " without one, live blocks that malloc(sizeof (TYPE)) gives")],
}
_OWN_OPTIONS["py-stack"] = [{"name": "native", "letter": None, "kind": "flag", "value": None, "choices": None,
                             "help": "the selected thread, with the C frames between the Python ones"}]
_NAMES_HOLDERS = ("block", "refs")
_LIMIT, _SKIP = "limit", "skip"


class KarstPrefix(Prefix):
    """Explore the holes of a heap: what is live, free and cached, what pins the holes, what is corrupt.

Addresses are GDB expressions: `karst block req->buf`, `karst refs $rdi`. Enter goes on with a long list.
Every verb takes --json. Functions for expressions: $_karst_size(p), $_karst_usable(p), $_karst_state(p),
$_karst_start(p), $_karst_arena(p). Settings: `show karst`."""

    def __init__(self) -> None:
        super().__init__("karst", "verb")


class MissingEngine(gdb.Command):
    """Explore the holes of a heap. The engine, libkarst.so, is missing: see `show karst engine-path`."""

    def __init__(self, reason: str) -> None:
        super().__init__("karst", gdb.COMMAND_DATA)
        self.reason = reason

    def invoke(self, argument: str, from_tty: bool) -> None:
        raise gdb.GdbError(self.reason)


def _documentation(verb: dict[str, Any]) -> str:
    """The engine's help, in the order that GDB likes: a sentence, then the usage, then the rest."""
    usage, _, text = karst_engine.help_text(verb["name"]).partition("\n\n")
    _, _, rest = text.partition("\n\n")
    sentence = f"{verb['summary'][0].upper()}{verb['summary'][1:]}."
    own = [_option_help(option) for option in _OWN_OPTIONS.get(verb["name"], [])]
    more = "\n\nOnly in GDB\n" + "\n".join(own) if own else ""
    return f"{sentence}\n\nUsage: {usage}\n\n{rest.rstrip()}{more}"


def _option_help(option: dict[str, Any]) -> str:
    lines = textwrap.wrap(option["help"], 52)
    term = f"      --{option['name']} {option['value'] or ''}".rstrip()
    return "\n".join(f"{term if index == 0 else '':26}{line}" for index, line in enumerate(lines))


class Verb(gdb.Command):
    """One verb. Its help is the engine's."""

    def __init__(self, verb: dict[str, Any]) -> None:
        self.verb = verb
        self.name: str = verb["name"]
        self.own = _OWN_OPTIONS.get(self.name, [])
        self.options = {option["name"]: option for option in verb["options"] + self.own}
        self.is_list = _LIMIT in self.options and _SKIP in self.options
        self.text = _documentation(verb)
        self.__doc__ = self.text
        super().__init__(f"karst {self.name}", gdb.COMMAND_DATA)

    def invoke(self, argument: str, from_tty: bool) -> None:
        if not self.is_list:
            self.dont_repeat()
        parsed = parse(argument, self.verb, self.own)
        if parsed.has("help"):
            gdb.write(self.text + "\n")
            return
        if self.own and "type" in parsed.own:
            values.type_named(parsed.own["type"])  # fails now, not behind the answer
        words = [self.name, *parsed.words[:parsed.options], *self._rows(argument, from_tty, parsed),
                 *_typed_filter(parsed), *parsed.words[parsed.options:]]
        try:
            karst_engine.check_words(words)  # what is mistyped is told before there is a process
        except karst_engine.KarstError as error:
            raise gdb.GdbError(one_line(error)) from None
        with session.current() as current:
            if "native" in parsed.own:
                python_stack.write(current, parsed.words)
                return
            answer = current.run(words, styles.sequences(str(settings.get("color"))))
            if answer.last_address:
                pointer = gdb.Value(answer.last_address).cast(gdb.lookup_type("void").pointer())
                gdb.set_convenience_variable("_", pointer)
            gdb.set_convenience_variable("_karst_status", answer.status)
            if not parsed.has("json"):
                self._say_more(current, parsed)

    def _rows(self, line: str, from_tty: bool, parsed: Parsed) -> list[str]:
        """The options that choose a list's rows: the setting `count`, and the next ones when Enter repeats."""
        if not self.is_list or parsed.has("all"):
            return []
        limit = pages.number(parsed.given.get(_LIMIT), int(settings.get("count")))
        skip = pages.begin(self.name, line, from_tty) or pages.number(parsed.given.get(_SKIP), 0)
        pages.shown(self.name, skip + limit)
        return [f"--{_LIMIT}={limit}", f"--{_SKIP}={skip}"]

    def _say_more(self, current: engine.Session, parsed: Parsed) -> None:
        """What only GDB knows: the object, and the variables that hold a pointer to it."""
        if self.name not in _NAMES_HOLDERS or not parsed.addresses:
            return
        block = current.find_block(parsed.addresses[0])
        if block is None:
            return
        if self.name == "block":
            text = values.object_text(block.address, parsed.own.get("type"))
            if text:
                gdb.write(f"\nobject\n  {text}\n")
        search = variables.Search(block.start, block.start + block.size).run()
        if search.holders or search.cut:
            gdb.write("\nvariables that point into it\n")
        for holder in search.holders:
            gdb.write(f"  {holder}\n")
        if search.cut:
            gdb.write(f"  ({search.cut})\n")

    # ---- completion ------------------------------------------------------------------------------

    def complete(self, text: str, word: str | None) -> object:
        words = split(text)
        typing = "" if not text or text[-1].isspace() else words[-1].text
        before = words if not typing else words[:-1]
        option = self._waiting_option(before)
        if typing.startswith("-") and option is None:
            candidates = [f"--{name}" for name in self.options]
        else:
            kind = option or self._argument(before)
            if kind is None:
                return gdb.COMPLETE_NONE
            if kind["kind"] == "address":
                return gdb.COMPLETE_EXPRESSION
            if kind["kind"] == "file":
                return completion.files(typing, word)
            candidates = _candidates(kind)
        return completion.among(candidates, typing, word)

    def _waiting_option(self, before: list[Any]) -> dict[str, Any] | None:
        """The option whose value comes next."""
        if not before or not before[-1].text.startswith("-"):
            return None
        text = before[-1].text
        for option in self.options.values():
            if text in (f"--{option['name']}", f"-{option.get('letter')}") and option["kind"] != "flag":
                return option
        return None

    def _argument(self, before: list[Any]) -> dict[str, Any] | None:
        given = sum(1 for word in before if not word.text.startswith("-"))
        arguments = self.verb["arguments"]
        if not arguments:
            return None
        return arguments[min(given, len(arguments) - 1)]


def _typed_filter(parsed: Parsed) -> list[str]:
    """`--type`, in the engine's words: the vtable that an object's first word holds, else the size."""
    name = parsed.own.get("type")
    if name is None or parsed.verb != "blocks":
        return []
    vtable = values.vtable_of(name)
    chosen = f"--first-word={vtable:#x}" if vtable else f"--request={values.type_named(name).sizeof}"
    return [chosen] if parsed.has("state") else [chosen, "--state=live"]


_STATES = ("live", "free", "cached", "top", "metadata", "unknown")


def _candidates(kind: dict[str, Any]) -> list[str]:
    """Words for a value of this kind. Arenas and bins come from the heap, if it can be read now."""
    if kind.get("choices"):
        return str(kind["choices"]).split("|")
    if kind["kind"] == "state":
        return list(_STATES)
    if kind["kind"] == "arena":
        return [row["name"] for row in _rows(["arenas"], "arenas")]
    if kind["kind"] == "bin":
        rows = _rows(["bins", "--all"], "bins")
        names = dict.fromkeys([row["kind"] for row in rows] + [row["name"] for row in rows])
        return [name if " " not in name else f"'{name}'" for name in names]
    return []


def _rows(words: list[str], key: str) -> list[dict[str, Any]]:
    try:
        with session.current() as current:
            return current.json(words)[key]
    except (gdb.error, gdb.GdbError, KeyError):
        return []
