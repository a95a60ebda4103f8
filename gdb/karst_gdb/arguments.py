"""What is typed behind `karst VERB`: from a line with GDB expressions in it to the engine's words."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import gdb

from karst_gdb.expressions import evaluate_address

_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass
class Word:
    """A word of a line and where it stands there. Brackets and quotes keep spaces inside a word."""

    text: str
    start: int
    end: int


@dataclass
class Options:
    """A verb's options by name and letter, from the engine's table."""

    by_name: dict[str, dict[str, Any]]
    by_letter: dict[str, dict[str, Any]]

    @classmethod
    def of_verb(cls, verb: dict[str, Any], more: list[dict[str, Any]]) -> Options:
        options = verb["options"] + more
        return cls({option["name"]: option for option in options},
                   {option["letter"]: option for option in options if option.get("letter")})

    def find(self, name: str) -> dict[str, Any] | None:
        """By name or by a beginning that only one has, as getopt_long() takes it."""
        if name in self.by_name:
            return self.by_name[name]
        found = [option for key, option in self.by_name.items() if name and key.startswith(name)]
        return found[0] if len(found) == 1 else None


@dataclass
class Parsed:
    """The engine's words for a line, and what GDB itself has to know of it."""

    verb: str
    words: list[str] = field(default_factory=list)  # without the verb, options first
    options: int = 0  # how many of the words are options
    given: dict[str, str] = field(default_factory=dict)  # options by their long name; flags: ""
    own: dict[str, str] = field(default_factory=dict)  # the options that only GDB has
    addresses: list[int] = field(default_factory=list)  # of the arguments that are addresses

    def has(self, name: str) -> bool:
        return name in self.given


def split(line: str) -> list[Word]:
    words: list[Word] = []
    start: int | None = None
    closing: list[str] = []
    quote = ""
    for place, letter in enumerate(line + " "):
        inside = place < len(line) and (closing or quote)
        if letter.isspace() and not inside:
            if start is not None:
                words.append(Word(line[start:place], start, place))
            start = None
            continue
        if start is None:
            start = place
        if quote:
            quote = "" if letter == quote and line[place - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
    return words


def _plain(text: str) -> str:
    """Without the quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] else text


def _option_value(option: dict[str, Any], text: str) -> str:
    if option["kind"] == "address":
        return f"{evaluate_address(_plain(text)):#x}"
    if option["kind"] == "file":
        return os.path.expanduser(_plain(text))
    return _plain(text)


def _take_long(words: list[Word], place: int, options: Options, parsed: Parsed, own: set[str]) -> int:
    """Takes the option at place; returns where the next word stands."""
    name, equals, value = words[place].text[2:].partition("=")
    option = options.find(name)
    if option is None or (option["kind"] == "flag" and equals):  # the engine says what is wrong
        parsed.words.append(words[place].text)
        return place + 1
    place += 1
    if option["kind"] != "flag" and not equals:
        if place == len(words):
            raise gdb.GdbError(f"--{option['name']} needs a value: {option['value']}")
        value = words[place].text
        place += 1
    _keep_option(option, value, parsed, own)
    return place


def _keep_option(option: dict[str, Any], value: str, parsed: Parsed, own: set[str]) -> None:
    if option["name"] in own:
        parsed.own[option["name"]] = _plain(value)
    elif option["kind"] == "flag":
        parsed.given[option["name"]] = ""
        parsed.words.append(f"--{option['name']}")
    else:
        parsed.given[option["name"]] = _option_value(option, value)
        parsed.words.append(f"--{option['name']}={parsed.given[option['name']]}")


def _take_letters(words: list[Word], place: int, options: Options, parsed: Parsed, own: set[str]) -> int:
    letters = words[place].text[1:]
    place += 1
    while letters:
        option = options.by_letter.get(letters[0])
        if option is None:
            parsed.words.append("-" + letters)
            return place
        letters = letters[1:]
        value = ""
        if option["kind"] != "flag":
            if letters:
                value, letters = letters, ""
            elif place < len(words):
                value = words[place].text
                place += 1
            else:
                raise gdb.GdbError(f"-{option['letter']} needs a value: {option['value']}")
        _keep_option(option, value, parsed, own)
    return place


def _arguments(line: str, verb: dict[str, Any], rest: list[Word]) -> list[str]:
    """The words that are no options, as many as the verb takes: a last one that is an address may have
    spaces in it."""
    kinds = verb["arguments"]
    if not kinds or kinds[-1]["kind"] != "address" or len(rest) <= len(kinds):
        return [word.text for word in rest]
    last = rest[len(kinds) - 1:]
    whole = line[last[0].start:last[-1].end]
    if len(split(whole)) != len(last):  # options stand in between
        whole = " ".join(word.text for word in last)
    return [word.text for word in rest[:len(kinds) - 1]] + [whole]


def is_expression(verb: dict[str, Any], rest: list[Word], text: str, options: Options) -> bool:
    """Whether a word that begins with a dash goes on with an expression: `karst block p - 8`."""
    if re.match(r"-+($|[0-9(])", text) and text != "--":
        return True
    takes_address = bool(verb["arguments"]) and verb["arguments"][-1]["kind"] == "address"
    return bool(rest) and takes_address and not text.startswith("--") and text[1:2] not in options.by_letter


def parse(line: str, verb: dict[str, Any], own_options: list[dict[str, Any]]) -> Parsed:
    options = Options.of_verb(verb, own_options)
    own = {option["name"] for option in own_options}
    parsed = Parsed(verb["name"])
    rest: list[Word] = []
    words = split(line)
    place = 0
    while place < len(words):
        text = words[place].text
        if not text.startswith("-") or is_expression(verb, rest, text, options):
            rest.append(words[place])
            place += 1
        elif text == "--":
            rest += words[place + 1:]
            break
        elif text.startswith("--"):
            place = _take_long(words, place, options, parsed, own)
        else:
            place = _take_letters(words, place, options, parsed, own)
    kinds = [argument["kind"] for argument in verb["arguments"]]
    arguments = []
    for index, text in enumerate(_arguments(line, verb, rest)):
        if index < len(kinds) and kinds[index] == "address":
            parsed.addresses.append(evaluate_address(_plain(text) if " " in text else text))
            arguments.append(f"{parsed.addresses[-1]:#x}")
        else:
            arguments.append(_plain(text))
    parsed.options = len(parsed.words)
    if arguments:
        parsed.words += ["--", *arguments]
    return parsed
