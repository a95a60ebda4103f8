"""`karst run`: starts the program with the preload library in it, and in nothing else: neither in GDB nor in the
shell that GDB starts it by."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import gdb
import karst_engine
from karst_abi import Condition
from karst_engine import KarstError

from karst_gdb import completion, traps
from karst_gdb.expressions import one_line
from karst_gdb.markers import LIBRARY

_PT_INTERP = 3
_RING_USUAL = "1M"
STACKS_ALONE = "--stacks is for marks and the recorder, and none is on: give --mark or --recorder with it"


class Parser(argparse.ArgumentParser):
    """Of a command's options; what is wrong is told in one line, in karst's words."""

    def __init__(self, verb: str, options: Sequence[str], on_more: str) -> None:
        super().__init__(prog=f"karst {verb}", add_help=False, allow_abbrev=False)
        self._verb, self._options, self._on_more = verb, options, on_more

    def error(self, message: str) -> NoReturn:
        raise gdb.GdbError(one_line(ValueError(self._said(message))))

    def _said(self, message: str) -> str:
        """What argparse says, by CPython's Lib/argparse.py, 3.9 to 3.13."""
        see = f"; see `help karst {self._verb}`"
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown and not unknown[1].startswith("-"):
            return f"what is '{unknown[1]}'? {self._on_more}"
        if unknown:
            option = unknown[1].partition("=")[0]
            return (f"{self._verb} has no option {option}"
                    f"{karst_engine.did_you_mean(option, self._options) or see}")
        wrong = re.match(r"argument (?:-\w/)?(-\S+): (ignored explicit argument|expected one argument)", message)
        if wrong:
            return f"{wrong[1]} takes no value" if wrong[2][0] == "i" else f"{wrong[1]} needs a value{see}"
        return f"karst {self._verb}: {message}{see}"


def _parser() -> Parser:
    parser = Parser("run", _OPTIONS, "What stands behind `--` is the program's")
    parser.add_argument("-m", "--mark", action="store_true")
    parser.add_argument("-r", "--recorder", nargs="?", const=_RING_USUAL)
    parser.add_argument("--recorder-dir")
    parser.add_argument("-s", "--stacks")
    parser.add_argument("-t", "--trap", action="append", default=[])
    parser.add_argument("-a", "--action")
    return parser


def library_path() -> str:
    """Beside the engine, as built and as installed."""
    engine = os.path.realpath(str(karst_engine.load()._name))
    path = os.path.join(os.path.dirname(engine), LIBRARY)
    if not os.access(path, os.R_OK):
        raise gdb.GdbError(f"{LIBRARY} is not beside karst's engine, in {os.path.dirname(engine)}: build it by `make`")
    if re.search(r"[\s:]", path):
        raise gdb.GdbError(f"{path} can't be preloaded: the loader takes no path with a blank or colon")
    return path


def _check_program() -> None:
    path = gdb.current_progspace().filename
    if not path:
        raise gdb.GdbError("no program: say which by `file PATH`")
    try:
        with open(path, "rb") as file:
            header = file.read(64)
            if header[:5] != b"\x7fELF\x02":
                raise gdb.GdbError(f"{path} is no 64-bit program: {LIBRARY} is for those")
            offset, = struct.unpack_from("<Q", header, 32)
            size, count = struct.unpack_from("<HH", header, 54)
            file.seek(offset)
            entries = file.read(size * count)
    except OSError as error:
        raise gdb.GdbError(f"{path}: {error.strerror}") from None
    kinds = [struct.unpack_from("<I", entries, at)[0] for at in range(0, len(entries) - 3, max(size, 1))]
    if _PT_INTERP not in kinds:
        raise gdb.GdbError(f"{path} is statically linked: no library can be put into it; `karst trap add` works "
                           "without once it runs (start)")


def _of_environment(name: str) -> str:
    """What the program would get for a variable."""
    text = gdb.execute(f"show environment {name}", to_string=True)
    return text.partition(" = ")[2].rstrip("\n") if text.startswith(f"{name} = ") else ""


def _check(options: argparse.Namespace) -> None:
    """Fails now, in one line, not in the program."""
    traps_given = [traps.read(text) for text in options.trap]
    if options.recorder is not None:
        karst_engine.read_ring_bytes(options.recorder)
    if options.action is not None:
        karst_engine.check_action(options.action)
    if options.stacks is None:
        return
    karst_engine.read_stack_depth(options.stacks)
    marks = options.mark or any(trap.conditions & Condition.FAULT for trap in traps_given)
    if not marks and options.recorder is None and options.recorder_dir is None:
        raise gdb.GdbError(STACKS_ALONE)


def _variables(options: argparse.Namespace) -> dict[str, str]:
    others = _of_environment("LD_PRELOAD")
    found = {"LD_PRELOAD": library_path() + (f":{others}" if others else "")}
    given = {"KARST_MARK": "1" if options.mark else None, "KARST_RECORDER": options.recorder,
             "KARST_STACKS": options.stacks, "KARST_ACTION": options.action,
             "KARST_TRAP": ";".join(options.trap) or None}
    if options.recorder_dir is not None:
        given["KARST_RECORDER_DIRECTORY"] = karst_engine.prepare_ring_directory(options.recorder_dir)
        given["KARST_RECORDER"] = options.recorder or _RING_USUAL
    found.update({name: value for name, value in given.items() if value})
    return found


@contextmanager
def _by_wrapper(variables: dict[str, str]) -> Iterator[None]:
    """The shell that GDB starts the program by does not get them: env does, behind it."""
    before = gdb.parameter("exec-wrapper")
    words = " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
    gdb.execute(f"set exec-wrapper {before + ' ' if before else ''}env {words}", to_string=True)
    try:
        yield
    finally:
        gdb.execute(f"set exec-wrapper {before}" if before else "unset exec-wrapper", to_string=True)


@contextmanager
def _by_environment(variables: dict[str, str]) -> Iterator[None]:
    """There is no shell in between."""
    before = {name: _of_environment(name) for name in variables}
    for name, value in variables.items():
        gdb.execute(f"set environment {name} = {value}", to_string=True)
    try:
        yield
    finally:
        for name, value in before.items():
            gdb.execute(f"set environment {name} = {value}" if value else f"unset environment {name}", to_string=True)


def _parts(argument: str) -> tuple[str, bool, str]:
    """karst's options, whether there is a `--`, and what is behind it."""
    separator = re.search(r"(?:^|\s)--(?:\s+|$)", argument)
    if separator is None:
        return argument, False, ""
    return argument[:separator.start()], True, argument[separator.end():]


_OPTIONS = ("--mark", "--recorder", "--recorder-dir", "--stacks", "--trap", "--action")


class Run(gdb.Command):
    """Start the program with karst's preload library in it.

Usage: karst run [OPTIONS] [-- ARGUMENTS]

ARGUMENTS are the program's, as with GDB's own `run`; without `--` those of `set args`. Only the program gets the
library and karst's variables: not GDB, nor the shell that GDB starts it by.

  -m, --mark               mark each block: `karst sites`; double free, overflow, foreign pointers are caught
  -r, --recorder[=SIZE]    keep the last events of each thread in SIZE bytes (1M): `karst history`
      --recorder-dir DIR   in files there
  -s, --stacks DEPTH       keep DEPTH frames of each call
  -t, --trap TRAP          set a trap from the start, as by `karst trap add`; may be given more than once
  -a, --action ACTION      what a trap does when no debugger is attached: log, stop, core, abort"""

    def __init__(self) -> None:
        super().__init__("karst run", gdb.COMMAND_RUNNING)

    def complete(self, text: str, word: str | None) -> object:
        typing = completion.last_word(text)
        is_behind = _parts(text)[1] and typing != "--"  # which may become an option
        if is_behind or not typing.startswith("-"):
            return completion.files(typing, word)
        return completion.among(_OPTIONS, typing, word)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        head, separator, arguments = _parts(argument)
        try:
            options = _parser().parse_args(shlex.split(head))
        except ValueError as error:
            raise gdb.GdbError(f"karst run: {one_line(error)}") from None
        _check_program()
        try:
            _check(options)
            variables = _variables(options)
        except KarstError as error:
            raise gdb.GdbError(one_line(error)) from None
        if separator:
            gdb.execute(f"set args {arguments}")
        way = _by_wrapper if gdb.parameter("startup-with-shell") else _by_environment
        with way(variables):
            gdb.execute("run", from_tty)


def register() -> None:
    Run()
