"""The verbs that only a kernel can answer: rss, residency, gcore."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from drgn import Object, Program
from karst_engine import ErrorCode, KarstError, Style, did_you_mean

from karst_drgn import gcore, programs, residency, rss, tasks
from karst_drgn.output import Cell, Writer, clean
from karst_drgn.tables import PAGE

_COMMON = {"--json": False, "-j": False, "--bytes": False, "-b": False}
_SORT_KEYS = ("exact", "cached", "drift", "pid", "name")


@dataclass
class Given:
    """A verb's options and arguments as typed."""

    options: dict[str, str]
    arguments: list[str]

    def has(self, name: str) -> bool:
        return name in self.options

    @property
    def json(self) -> bool:
        return self.has("--json") or self.has("-j")


@dataclass
class Verb:
    """One verb: its options (and whether a value follows), and what answers it."""

    summary: str
    usage: str
    text: str
    options: dict[str, bool]
    answer: Callable[[Program, Optional[int], Given, Writer], int]
    arguments: int = 0

    def help_text(self, name: str) -> str:
        return f"karst {name} {self.usage}\n\n{self.text}\n"

    def run(self, prog: Program, pid: Optional[int], words: Sequence[str], writer: Writer) -> int:
        return self.answer(prog, pid, self._parse(list(words)), writer)

    def _parse(self, words: list[str]) -> Given:
        given, known = Given({}, []), {**self.options, **_COMMON}
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            if not word.startswith("-"):
                given.arguments.append(word)
                continue
            if name not in known or (equals and not known[name]):
                raise _usage(f"no option {name} here{did_you_mean(name, list(known)) or '; see --help'}")
            if known[name] and not equals:
                if not words:
                    raise _usage(f"{name} needs a value")
                value = words.pop(0)
            given.options[name] = value
        if len(given.arguments) > self.arguments:
            raise _usage(f"one argument too many: {given.arguments[self.arguments]!r}")
        return given


def _usage(text: str) -> KarstError:
    return KarstError(ErrorCode.USAGE, text)


def _task(prog: Program, pid: Optional[int]) -> Object:
    programs.need_kernel(prog)
    if pid is None:
        raise _usage("which task? Give --pid PID; `rss` lists them")
    return tasks.task_of(prog, pid)


def _title(task: Object) -> str:
    return f"process {int(task.tgid)} ({clean(tasks.command(task))})"


def _count(text: str) -> int:
    if not text.isdigit():
        raise _usage(f"{text!r} is no count")
    return int(text)


# ---- rss ----------------------------------------------------------------------------------------------


def _counter_json(counter: rss.RssCounter) -> dict[str, Any]:
    return {"name": counter.name, "cached_bytes": counter.cached * PAGE, "exact_bytes": counter.exact * PAGE,
            "drift_bytes": counter.drift * PAGE, "bound_bytes": counter.bound * PAGE,
            "parts": {str(who): part * PAGE for who, part in counter.parts.items()}}


def _rss_json(one: rss.TaskRss) -> dict[str, Any]:
    return {"pid": one.pid, "name": one.name, "rss_bytes": one.rss.exact * PAGE,
            "cached_bytes": one.rss.cached * PAGE, "drift_bytes": one.rss.drift * PAGE,
            "bound_bytes": one.rss.bound * PAGE, "swap_bytes": one.rss.swap.exact * PAGE, "scheme": one.rss.scheme,
            "counters": [_counter_json(counter) for counter in one.rss.counters]}


def _sources_json(sources: rss.RssSources) -> list[dict[str, Any]]:
    return [{"source": name, "exact": exact} for name, exact in zip(sources._fields, sources)]


def _exactness(exact: Optional[bool]) -> Cell:
    if exact is None:
        return "not known"
    return (Style.GOOD, "exact") if exact else (Style.WARNING, "cached")


def _write_counters(one: rss.TaskRss, with_parts: bool, writer: Writer) -> None:
    rows: list[list[Cell]] = []
    for counter in one.rss.counters:
        rows.append([counter.name, *(writer.size(pages * PAGE) for pages in (counter.cached, counter.exact)),
                     writer.signed(counter.drift * PAGE), writer.size(counter.bound * PAGE)])
    rows.append(["RSS", *(writer.size(pages * PAGE) for pages in (one.rss.cached, one.rss.exact)),
                 writer.signed(one.rss.drift * PAGE), writer.size(one.rss.bound * PAGE)])
    writer.table(["counter", "cached", "exact", "drift", "bound"], rows)
    if with_parts and any(counter.parts for counter in one.rss.counters):
        writer.line()
        rows = [[one_scheme(one.rss.scheme, who), counter.name, writer.signed(part * PAGE)]
                for counter in one.rss.counters for who, part in counter.parts.items()]
        writer.table([one.rss.scheme, "counter", "holds back"], rows, left=(0, 1))


def one_scheme(scheme: str, who: int) -> str:
    return f"{scheme} {who}"


def _write_scheme(one: rss.TaskRss, sources: rss.RssSources, writer: Writer) -> None:
    if one.rss.scheme == "none":
        writer.line("this kernel keeps one count: it is exact")
    else:
        writer.line(f"each {one.rss.scheme} holds back a part; cached: the count without the parts; exact: with them")
    writer.line()
    shown = {True: one.rss.exact, False: one.rss.cached, None: 0}
    rows: list[list[Cell]] = [[name, writer.size(shown[exact] * PAGE) if exact is not None else "?", _exactness(exact)]
                              for name, exact in zip(sources._fields, sources)]
    writer.table(["/proc file", "shows", "which is"], rows, left=(0, 2))


def _sorted(found: list[rss.TaskRss], key: str) -> list[rss.TaskRss]:
    keys: dict[str, Callable[[rss.TaskRss], Any]] = {
        "exact": lambda one: -one.rss.exact, "cached": lambda one: -one.rss.cached,
        "drift": lambda one: -abs(one.rss.drift), "pid": lambda one: one.pid, "name": lambda one: one.name}
    if key not in keys:
        meant = did_you_mean(key, _SORT_KEYS)
        raise _usage(f"--sort takes no {key!r}{meant}" if meant else
                     f"--sort takes one of {', '.join(_SORT_KEYS)}, not {key!r}")
    return sorted(found, key=keys[key])


def _rss_of_all(prog: Program, given: Given, writer: Writer) -> int:
    found = _sorted(list(rss.for_each_task_rss(prog)), given.options.get("--sort", "exact"))
    limit = len(found) if given.has("--all") or given.has("-a") else _count(given.options.get("--limit", given.options.get("-n", "20")))
    totals = {"exact": sum(one.rss.exact for one in found), "drift": sum(one.rss.drift for one in found),
              "absolute": sum(abs(one.rss.drift) for one in found)}
    if given.json:
        print(json.dumps({"tasks": [_rss_json(one) for one in found[:limit]], "shown": min(limit, len(found)),
                          "matched": len(found), "rss_bytes": totals["exact"] * PAGE,
                          "drift_bytes": totals["drift"] * PAGE, "absolute_drift_bytes": totals["absolute"] * PAGE,
                          "sources": _sources_json(rss.rss_sources(prog))}))
        return 0
    writer.table(["pid", "exact", "cached", "drift", "bound", "swap", "process"],
                 [[str(one.pid), *(writer.size(pages * PAGE) for pages in (one.rss.exact, one.rss.cached)),
                   writer.signed(one.rss.drift * PAGE), writer.size(one.rss.bound * PAGE),
                   writer.size(one.rss.swap.exact * PAGE), clean(one.name)] for one in found[:limit]], left=(6,))
    if limit < len(found):
        writer.line(f"{limit:,} of {len(found):,} processes shown")
    writer.line(f"RSS of all {writer.size(totals['exact'] * PAGE)}, shared pages counted once for each; drift"
                f" {writer.signed(totals['drift'] * PAGE)} in sum, {writer.size(totals['absolute'] * PAGE)} without"
                " regard to sign")
    return 0


def _answer_rss(prog: Program, pid: Optional[int], given: Given, writer: Writer) -> int:
    programs.need_kernel(prog)
    if pid is None:
        return _rss_of_all(prog, given, writer)
    one, sources = rss.task_rss(_task(prog, pid)), rss.rss_sources(prog)
    if given.json:
        print(json.dumps({**_rss_json(one), "sources": _sources_json(sources)}))
        return 0
    writer.line(f"process {one.pid} ({clean(one.name)})", Style.TITLE)
    _write_counters(one, given.has("--parts"), writer)
    _write_scheme(one, sources, writer)
    return 0


# ---- residency ----------------------------------------------------------------------------------------


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    try:
        start, end = int(first or "0", 0), int(last or hex(2**64), 0)
    except ValueError:
        start, end = 1, 0
    if not colon or start >= end:
        raise _usage(f"--range takes START:END, two addresses, not {text!r}")
    return start, end


_COLUMNS = ("rss", "anonymous", "file", "shmem", "swap", "zero", "huge", "no_access", "hugetlb", "other")


def _residency_json(row: residency.Residency) -> dict[str, Any]:
    return {"start": hex(row.start), "end": hex(row.end), "name": row.name,
            **{f"{name}_bytes": getattr(row, name) for name in _COLUMNS}}


def _answer_residency(prog: Program, pid: Optional[int], given: Given, writer: Writer) -> int:
    task = _task(prog, pid)
    start, end = _range(given.options["--range"]) if given.has("--range") else (0, 2**64)
    rows = list(residency.task_residency(task, start, end))
    totals = {name: sum(getattr(row, name) for row in rows) for name in _COLUMNS}
    if given.json:
        print(json.dumps({"pid": int(task.tgid), "mappings": [_residency_json(row) for row in rows],
                          "total": {f"{name}_bytes": size for name, size in totals.items()}}))
        return 0
    shown = [name for name in _COLUMNS if totals[name] or name in ("rss", "anonymous", "file", "swap")]
    if not (given.has("--all") or given.has("-a")):
        rows = [row for row in rows if any(getattr(row, name) for name in _COLUMNS)]
    writer.line(_title(task), Style.TITLE)
    table: list[list[Cell]] = [[(Style.ADDRESS, f"{row.start:#x}"), writer.size(row.end - row.start),
                                *(writer.size(getattr(row, name)) if getattr(row, name) else "-" for name in shown),
                                clean(row.name or "")] for row in rows]
    table.append(["in all", "", *(writer.size(totals[name]) for name in shown), ""])
    writer.table(["start", "size", *(name.replace("_", " ") for name in shown), "name"], table, left=(0, len(shown) + 2))
    return 0


# ---- gcore --------------------------------------------------------------------------------------------


def _answer_gcore(prog: Program, pid: Optional[int], given: Given, writer: Writer) -> int:
    task = _task(prog, pid)
    if not given.arguments:
        raise _usage("which file shall be written? gcore --pid PID FILE")
    path = given.arguments[0]
    written = gcore.write_core(task, path)
    absent = written.absent
    if given.json:
        print(json.dumps({"file": path, "file_bytes": written.size, "saved_bytes": written.saved,
                          "threads": written.threads, "threads_without_registers": written.without_registers,
                          "swapped_bytes": absent.swapped, "excluded_bytes": absent.excluded,
                          "other_bytes": absent.other}))
        return 0
    writer.line(f"{path}: {_title(task)}, {written.threads} threads, {writer.size(written.saved)} of memory")
    if written.without_registers:
        writer.line(f"the registers of {written.without_registers} threads are not in the dump", Style.WARNING)
    text = absent.text(writer.exact)
    if text:
        writer.line(f"{text}: not in the core either", Style.WARNING)
    return 0


VERBS: dict[str, Verb] = {
    "rss": Verb(
        "resident memory by the kernel's counters: cached, exact, and by how much they differ",
        "[--pid PID] [--parts] [--sort KEY] [--limit N] [--all] [--json] [--bytes]",
        "Without --pid all processes, the largest first (--sort exact|cached|drift|pid|name), 20 of them or --limit N.\n"
        "With --pid the counters of one: what /proc may show (cached), with what each CPU or thread holds back (exact),\n"
        "how far the two can differ (bound), which file of /proc shows which on this kernel; --parts: who holds what.",
        {"--parts": False, "--sort": True, "--limit": True, "-n": True, "--all": False, "-a": False}, _answer_rss),
    "residency": Verb(
        "what of a task's mappings is in memory, and of what kind, as smaps has it",
        "--pid PID [--range START:END] [--all] [--json] [--bytes]",
        "A row for each mapping that has anything in memory or swap (--all: each mapping): anonymous, file and shmem\n"
        "pages, swapped out ones, the page of zeros (takes no memory), and of what is there, huge pages and pages without\n"
        "access (PROT_NONE, NUMA balancing).",
        {"--range": True, "--all": False, "-a": False}, _answer_residency),
    "gcore": Verb(
        "write a task as a core that GDB and all else opens",
        "--pid PID FILE [--json] [--bytes]",
        "Threads with registers and thread pointers, files, the auxiliary vector, and all memory that the dump has; what\n"
        "was swapped out or left out of the dump is told, and not in the core.",
        {}, _answer_gcore, 1),
}
