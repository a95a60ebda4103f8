"""Writes docs/verbs/: a page for each verb, its help and a session from the engine itself, on the program
docs/demo/mailbox.c; and the sessions in docs/python.md and docs/allocators/pymalloc.md. `make docs` runs it; a test
runs it again and compares. With --demo (`make docs-demo`) also what the demo showed goes into README.md and
docs/tour.md, under the marks <!-- demo: NAME -->.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "helper" / "python"), str(ROOT / "docs")]
import karst_engine  # noqa: E402
import preload_pages  # noqa: E402

ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
PID, TID = 4711, 4712  # what the pages call the program and its thread

DAMAGED, PYTHON, MARKED, JEMALLOC = "damaged: ", "python: ", "marked: ", "jemalloc: "
# Without what is installed beside it, and what the environment says: the same everywhere.
PYTHON_ALONE = ["/usr/bin/python3", "-IS"]
KINDS = ("", DAMAGED, PYTHON, MARKED, JEMALLOC)

# What the page of a verb asks. {label} and so on are the addresses that the program prints; a question that
# begins with "damaged:" goes to the program that has written past the end of a block, one with "python:" to
# docs/demo/service.py, one with "marked:" to the mailbox under `karst run --mark --recorder`, one with "jemalloc:" to the mailbox with
# jemalloc preloaded.
SESSIONS: dict[str, list[str]] = {
    "block": ["block {message}", "block {text}+100 --dump 32"],
    "blocks": ["blocks --limit 8", "blocks --state free --sort size --limit 3", "blocks --bin tcache --limit 5",
               "blocks --state live --limit 2 --json", "marked: blocks --state live --limit 3"],
    "bins": ["bins", "bins 'thread 1'"],
    "check": ["check", "damaged: check", "damaged: check --json"],
    "history": ["marked: history --last 6", "marked: history {label}", "marked: history --size 2000 --last 3"],
    "sites": ["marked: sites", "marked: sites --limit 1 --json"],
    "holes": ["holes", "holes --fit 8880819"],
    "pools": ["python: pools --limit 4", "python: pools --classes",
              "python: pools --pages --limit 3"],
    "py-objects": ["python: py-objects --limit 10", "python: py-objects --type __main__.Record --limit 3",
                   "python: py-objects --where {record}"],
    "py-stack": ["python: py-stack", "python: py-stack --limit 2 --locals"],
    "refs": ["refs {text}"],
    "runs": ["jemalloc: runs slab --limit 6", "jemalloc: runs 0x500 --limit 3", "jemalloc: runs --classes"],
    "rss": ["rss", "rss --tree"],
    "summary": ["summary", "summary --json"],
}


def command_of(kind: str, build: Path) -> list[str]:
    if kind == PYTHON:
        return [*PYTHON_ALONE, str(ROOT / "docs" / "demo" / "service.py")]
    if kind == MARKED:
        return [str(build / "karst"), "run", "--mark", "--recorder", "--", str(build / "docs" / "mailbox")]
    if kind == JEMALLOC:
        return ["env", "LD_PRELOAD=libjemalloc.so.2", "MALLOC_CONF=narenas:1,dirty_decay_ms:-1", str(build / "docs" / "mailbox")]
    return [str(build / "docs" / "mailbox"), *(["damaged"] if kind == DAMAGED else [])]


def wait_until_asleep(pid: int) -> None:
    """It says that it is ready a little before it waits."""
    for _ in range(6000):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S":
            return
        time.sleep(0.01)


@contextmanager
def waiting(command: list[str]) -> Iterator[tuple[int, int, dict[str, int]]]:
    """A program, waiting: its process, its second thread, and the addresses it prints."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        addresses: dict[str, int] = {}
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "ready":
                break
            name, address = line.split()
            addresses[name] = int(address, 16)
        wait_until_asleep(process.pid)
        threads = sorted(int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir())
        yield process.pid, threads[-1], addresses
    finally:
        process.kill()
        process.wait()


def compile_mailbox(build: Path) -> None:
    (build / "docs").mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-pthread", "-Wno-stringop-overflow",
                    "-ffile-prefix-map=" + str(ROOT) + "=.",
                    "-o", build / "docs" / "mailbox", ROOT / "docs" / "demo" / "mailbox.c"], check=True)


def words_of(question: str, addresses: dict[str, int]) -> list[str]:
    """A question as typed, with {name}+N resolved as GDB would."""
    text = re.sub(r"\{(\w+)\}(?:\+(\d+))?", lambda found: f"{addresses[found[1]] + int(found[2] or 0):#x}", question)
    return [quoted or word for quoted, word in re.findall(r"'([^']*)'|(\S+)", text)]


def kind_of(question: str) -> str:
    """Which program it goes to; "": the mailbox, undamaged."""
    return next((kind for kind in KINDS if kind and question.startswith(kind)), "")


class Recorder:
    """Answers the questions of one page, all on the same process, or the same damaged one."""

    def __init__(self, build: Path) -> None:
        self.build = build

    def session(self, questions: list[str]) -> str:
        return "\n".join(self.answers(questions))

    def answers(self, questions: list[str]) -> list[str]:
        return [answer for kind in KINDS for answer in self._ask(kind, [
            question.removeprefix(kind) for question in questions if kind_of(question) == kind])]

    def _ask(self, kind: str, questions: list[str]) -> list[str]:
        if not questions:
            return []
        with waiting(command_of(kind, self.build)) as (pid, tid, addresses):
            return [self._answer(question, pid, tid, addresses) for question in questions]

    def _answer(self, question: str, pid: int, tid: int, addresses: dict[str, int]) -> str:
        words = words_of(question, addresses)
        done = subprocess.run([self.build / "karst", "-p", str(pid), *words], capture_output=True, text=True,
                              timeout=60, env=ENVIRONMENT)
        text = re.sub(rf"\b{pid}\b", str(PID), re.sub(rf"\b{tid}\b", str(TID), done.stdout + done.stderr))
        shown = " ".join(f"'{word}'" if " " in word else word for word in words)
        for folder in (self.build / "docs", ROOT / "docs" / "demo"):
            text = text.replace(str(folder), "/home/you")
        return f"$ karst -p {PID} {shown}\n{pretty(text)}"


def pretty(text: str) -> str:
    """JSON in lines a person can read; text as it is."""
    try:
        return json.dumps(json.loads(text), indent=1) + "\n"
    except ValueError:
        return text


def page(verb: dict[str, Any], recorder: Recorder) -> str:
    name = verb["name"]
    questions = SESSIONS.get(name, [name])
    sessions = recorder.session(questions)
    programs = [f"[{file}](../demo/{file})" for kind, file in (("", "mailbox.c"), (DAMAGED, "mailbox.c"),
                                                               (PYTHON, "service.py"),
                                                               (MARKED, "mailbox.c"), (JEMALLOC, "mailbox.c"))
                if any(kind_of(question) == kind for question in questions)]
    return (f"# karst {name}\n\n<!-- Written by docs/generate.py: edit the verb's help, then `make docs`. -->\n\n"
            f"```text\n{karst_engine.help_text(name, 98).rstrip()}\n```\n\n## A session\n\n"
            f"The same command, without `-p {PID}`, works in GDB, where an address may be any expression. "
            f"The program is {' or '.join(dict.fromkeys(programs))}.\n\n```text\n{sessions.rstrip()}\n```\n")


# `karst run` starts a command, so it is the command line's alone.
RUN_SUMMARY = "starts a command with the preload library: marks, flight recorder, traps"
RUNS = [["--trap", "alloc 8M: count=1", "--", *PYTHON_ALONE, "-c", "data = bytearray(8880819)"],
        ["--trap", "malloc 10x", "--", "true"]]


def run_page(build: Path) -> str:
    """The page of `karst run`: its help, and commands with what they say."""
    def shown(words: list[str]) -> str:
        return " ".join(f"'{word}'" if re.search(r"[^-\w./]", word) else word for word in words)

    def run(*words: str) -> str:
        done = subprocess.run([build / "karst", "run", *words], capture_output=True, text=True, timeout=60,
                              env=ENVIRONMENT)
        return done.stdout + done.stderr

    sessions = "\n".join(f"$ karst run {shown(words)}\n{run(*words)}" for words in RUNS)
    return (f"# karst run\n\n<!-- Written by docs/generate.py: edit the help in helper/cli/run_command.c, then "
            f"`make docs`. -->\n\n```text\n{run('--help').rstrip()}\n```\n\n## A session\n\n"
            f"```text\n{sessions.rstrip()}\n```\n")


ABOUT_TEXT = """\
Every verb answers in text, or with `--json` in JSON, which has all that text leaves out. Sizes are rounded, `--bytes` has
them exactly. Exit status: 0 done and healthy, 1 `check` found something, 2 not answered, and one line on standard error
says why.

On a terminal (of 40 columns or more; `COLUMNS` goes before its own width) lines end where it does: tables leave out the
columns that are needed least, and say which; addresses are always whole. In a pipe nothing is left out. Colours: `--color
auto|always|never`; auto heeds `NO_COLOR` and `TERM=dumb`. Names of C++ and Rust are shown as people write them, long ones
without what is between their brackets; the JSON has the linker's names too."""


def index(verbs: list[dict[str, Any]]) -> str:
    lines = ["# The verbs", "", "<!-- Written by docs/generate.py. -->", "", ABOUT_TEXT, ""]
    for group in dict.fromkeys(verb["group"] for verb in verbs):
        lines += [f"**{group}**", ""]
        lines += [f"- [{verb['name']}]({verb['name']}.md): {verb['summary']}"
                  for verb in verbs if verb["group"] == group]
        lines.append("")
    return "\n".join([*lines, "**Starting a program**", "", f"- [run](run.md): {RUN_SUMMARY}", ""])


# Rows of the picture, and its legend: where blocks fall in its cells depends on where the heap happens to begin.
MAP_LINE = re.compile(r"^(0x[0-9a-f]+ +[░▒▓█· -]{8,}|.*· free).*\n", re.MULTILINE)
DUMP_LINE = re.compile(r"^  0x[0-9a-f]+  [0-9a-f]{2} .*$", re.MULTILINE)


def normalised(text: str) -> list[str]:
    """Without what differs from run to run and from one libc to the next: numbers and the columns they make."""
    text = MAP_LINE.sub("", text)
    text = DUMP_LINE.sub("  BYTES", text)
    text = re.sub(r"[▏▎▍▌▋▊▉█]+", "BAR", text)
    text = re.sub(r"0x[0-9a-f]+|(?<!\S)[-+]?[0-9][0-9,.]*( [KMG]?B\b)?|[0-9][0-9,.]*( [KMG]?B\b)?", "N", text)
    text = re.sub(r"event N called at N \(\w+\+N in pythonN\)", "an event of Python", text)  # another in each build
    text = re.sub(r"karst: trap N: .* an event of Python", "karst: trap N: an event of Python", text)
    text = re.sub(r"N +(glibc brk|pymalloc pages) +N", "N EXTENT N", text)  # those with the most of their own first
    text = re.sub(r"(N (no object|[\w.]+), )+N others?", "KINDS", text)  # the most of them first
    return [" ".join(line.split()) for line in text.splitlines()]


def write_if_other(path: Path, text: str) -> None:
    """Leaves a page alone that differs only in addresses and sizes."""
    if not path.exists() or normalised(path.read_text(encoding="utf-8")) != normalised(text):
        path.write_text(text, encoding="utf-8")


def write_pages(build: Path, folder: Path) -> None:
    karst_engine.load(str(build / "libkarst.so"))
    compile_mailbox(build)
    recorder, verbs = Recorder(build), karst_engine.verbs()
    folder.mkdir(parents=True, exist_ok=True)
    for verb in verbs:
        write_if_other(folder / f"{verb['name']}.md", page(verb, recorder))
    write_if_other(folder / "run.md", run_page(build))
    write_if_other(folder / "README.md", index(verbs))


MARK = re.compile(r"<!-- session: ([^>]*) -->\n```text\n.*?^```$", re.DOTALL | re.MULTILINE)
PYTHON_PAGES = ("python.md", "allocators/pymalloc.md")


def with_sessions(text: str, recorder: Recorder) -> str:
    """A page with what is asked under its marks, all of the same process."""
    questions = [f"{PYTHON}{found[1]}" for found in MARK.finditer(text)]
    answers = iter(recorder.answers(questions))
    return MARK.sub(lambda found: f"<!-- session: {found[1]} -->\n```text\n{next(answers).rstrip()}\n```", text)


def write_python_pages(build: Path, folder: Path) -> None:
    recorder = Recorder(build)
    for name in PYTHON_PAGES:
        page_text = with_sessions((ROOT / "docs" / name).read_text(encoding="utf-8"), recorder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_if_other(folder / name, page_text)


def write_preload_pages(build: Path, folder: Path) -> None:
    for name in preload_pages.PAGES:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        write_if_other(folder / name, preload_pages.with_shells(text, build))


def fill_in_demo(sections: dict[str, str], path: Path) -> None:
    """Puts what the demo showed under its marks."""
    def replace(found: re.Match[str]) -> str:
        shown = "\n".join(sections[name.strip()].rstrip() + "\n" for name in found[1].split(","))
        return f"<!-- demo: {found[1]} -->\n```text\n{shown.rstrip()}\n```"

    mark = re.compile(r"<!-- demo: ([^>]*) -->\n```text\n.*?^```$", re.DOTALL | re.MULTILINE)
    path.write_text(mark.sub(replace, path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="write docs/verbs/ from the engine")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "verbs")
    parser.add_argument("--pages", type=Path, default=ROOT / "docs", help="where the pages on Python and the preload library go")
    parser.add_argument("--demo", action="store_true", help="also README.md and docs/tour.md, from the demo's answers")
    options = parser.parse_args()
    build = options.build.resolve()
    write_pages(build, options.folder)
    write_python_pages(build, options.pages)
    write_preload_pages(build, options.pages)
    if options.demo:
        sections = json.loads((build / "demo" / "sections.json").read_text(encoding="utf-8"))
        for name in ("README.md", "docs/tour.md"):
            fill_in_demo(sections, ROOT / name)


if __name__ == "__main__":
    main()
