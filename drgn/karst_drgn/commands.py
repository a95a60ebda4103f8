"""`karst VERB ...` in drgn: the engine's verbs on a program or on a task, and the kernel's own."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import karst_engine
from drgn import FaultError, Program
from karst_engine import ErrorCode, KarstError, did_you_mean

from karst_drgn import heap, output, programs, tasks, verbs
from karst_drgn.output import Writer

_NOT_ANSWERED = 2

# Options of the target, as the command line has them, and whether a value follows.
_TARGET_OPTIONS = {"--pid": True, "-p": True, "--exe": True, "-e": True, "--sysroot": True, "--debug-dir": True,
                   "--no-stop": False, "--no-symbols": False, "--color": True}
_ENGINE_OPTIONS = {"--exe": "executable", "-e": "executable", "--sysroot": "sysroot", "--debug-dir": "debug_directory",
                   "--no-stop": "no_stop", "--no-symbols": "no_symbols"}
_COLOURS = ("auto", "always", "never")

_USAGE = """usage: drgn -c CORE karst.py VERB [ARGUMENTS]
       drgn -p PID karst.py VERB [ARGUMENTS]
       drgn -c VMCORE -s VMLINUX karst.py [--pid PID] VERB [ARGUMENTS]

Walks the heap of a program, or of a task in a kernel: what is live, free or
cached, where the holes are and what pins them, what is corrupt.

Target
      --pid PID         a kernel: the task to look at
  -e, --exe FILE        the program's executable, if it is not where it was
      --sysroot DIR     where the files are that a core from elsewhere names
      --debug-dir DIRS  where separate debug files are (default /usr/lib/debug)
      --no-stop         read a process while it runs: what is told may be torn
      --no-symbols      find everything by structure, as on a stripped system
      --color WHEN      auto, always or never
"""


@dataclass
class Line:
    """What was typed, taken apart."""

    words: list[str] = field(default_factory=list)  # the verb, its options and arguments
    pid: Optional[int] = None
    colour: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)  # of the engine's session


def _usage_error(text: str) -> KarstError:
    return KarstError(ErrorCode.USAGE, text)


def _take(line: Line, name: str, value: str) -> None:
    if name in ("--pid", "-p"):
        if not value.isdigit() or not 0 < int(value) < 1 << 31:
            raise _usage_error(f"{value!r} is no process id")
        line.pid = int(value)
    elif name == "--color":
        if value not in _COLOURS:
            meant = did_you_mean(value, _COLOURS)
            raise _usage_error(f"--color takes no {value!r}{meant}" if meant else
                               f"--color takes auto, always or never, not {value!r}")
        line.colour = value
    else:
        line.options[_ENGINE_OPTIONS[name]] = os.path.expanduser(value) if _TARGET_OPTIONS[name] else True


def parse(words: Sequence[str]) -> Line:
    """Options of the target may stand before or after the verb."""
    line, rest = Line(), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            line.words += [word, *rest]
            break
        if name not in _TARGET_OPTIONS or (equals and not name.startswith("--")):
            line.words.append(word)
            continue
        if _TARGET_OPTIONS[name] and not equals:
            if not rest:
                raise _usage_error(f"{name} needs a value")
            value = rest.pop(0)
        _take(line, name, value)
    # An option of all verbs may stand in front of the verb.
    index = next((number for number, word in enumerate(line.words) if not word.startswith("-")), None)
    if index:
        line.words.insert(0, line.words.pop(index))
    return line


def _help(line: Line, writer: Writer) -> bool:
    """Answers what needs no program."""
    if not line.words or line.words[0] in ("-h", "--help"):
        writer.write(karst_engine.Style.PLAIN, _USAGE)
        groups = dict.fromkeys(verb["group"] for verb in karst_engine.verbs())
        for group in groups:
            writer.line(f"\n{group}", karst_engine.Style.TITLE)
            for verb in karst_engine.verbs():
                if verb["group"] == group:
                    writer.line(f"  {verb['name']:<14}  {verb['summary']}")
        writer.line("\nOf kernels", karst_engine.Style.TITLE)
        for name, own in verbs.VERBS.items():
            writer.line(f"  {name:<14}  {own.summary}")
        writer.line("\nEvery verb has --json, --bytes (exact sizes) and --help.")
        return True
    name = line.words[0]
    if name in verbs.VERBS and {"-h", "--help"} & set(line.words):
        if name == "rss":
            writer.write(karst_engine.Style.PLAIN, "Of a process\n\n" + karst_engine.help_text(name, 78) + "\nOf a kernel\n\n")
        writer.write(karst_engine.Style.PLAIN, verbs.VERBS[name].help_text(name))
        return True
    return False


def _run_engine(target: heap.Heap, line: Line, writer: Writer) -> int:
    with heap.session(target, **line.options) as current, current.working():
        answer = current.engine.run(line.words, lambda style, text: _write(current, writer, style, text),
                                    width=output.width(), unicode=output.unicode())
    if current.task is not None:
        absent = current.task.memory.absent_note()
        if absent and "--json" not in line.words and "-j" not in line.words:
            print(f"note: {absent}", file=sys.stderr)
    return answer.status


def _write(current: heap.Session, writer: Writer, style: karst_engine.Style, text: str) -> bool:
    current.progress.wipe()
    return writer.write(style, text)


def _dispatch(prog: Program, line: Line, writer: Writer) -> int:
    name = line.words[0]
    kernel = programs.is_kernel(prog)
    if name in verbs.VERBS and (kernel or name != "rss"):
        return verbs.VERBS[name].run(prog, line.pid, line.words[1:], writer)
    known = [verb["name"] for verb in karst_engine.verbs()]
    if name not in known or {"-h", "--help"} & set(line.words):
        if did_you_mean(name, [*verbs.VERBS]):
            raise _usage_error(f"no verb '{name}'{did_you_mean(name, [*verbs.VERBS, *known])}")
        karst_engine.help_text(name)  # fails, and names the nearest verb
        writer.write(karst_engine.Style.PLAIN, karst_engine.help_text(name, output.width(), output.unicode()))
        return 0
    if not kernel:
        programs.need_userspace(prog)
        if line.pid is not None:
            raise _usage_error("--pid is for kernels; this is a program of its own (drgn -p PID opens another process)")
        return _run_engine(prog, line, writer)
    if line.pid is None:
        raise _usage_error(f"this is a kernel: whose heap? Give --pid PID; `rss` lists the tasks ({name} needs one)")
    return _run_engine(tasks.task_of(prog, line.pid), line, writer)


def run(prog: Callable[[], Program], words: Sequence[str]) -> int:
    """Answers on standard output; what goes wrong is one line on standard error. Returns the exit status: 0 done and
    healthy, 1 ``check`` found something, 2 not answered."""
    try:
        line = parse(words)
        writer = Writer(line.colour, bool({"--bytes", "-b"} & set(line.words)))
        try:
            return 0 if _help(line, writer) else _dispatch(prog(), line, writer)
        finally:
            writer.flush()
    except KarstError as error:
        print(f"karst: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("karst: interrupted", file=sys.stderr)
    except (FaultError, LookupError) as error:  # drgn's own, of what the dump or its debug information lacks
        print(f"karst: {' '.join(str(error).split())}", file=sys.stderr)
    except Exception as error:  # drgn raises that itself for what it does not support
        print(f"karst: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return _NOT_ANSWERED


def karst(prog: Program, line: str) -> int:
    """
    Answers as the command line would: ``karst(prog, "holes --limit 3")``.

    :return: The exit status: 0 done and healthy, 1 ``check`` found something, 2 not answered.
    """
    return run(lambda: prog, shlex.split(line))
