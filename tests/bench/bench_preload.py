"""What the preload library costs: the same programs without it, with it and nothing asked for, with one trap on a
size, with the flight recorder, with marks. All variants take turns. What a variant costs more is taken from each of
its runs and the bare run right beside it, and of these differences and ratios the median: a processor's pace changes from
second to second, so that the least of one variant's rounds and the least of another's need not be of one pace. Run by
`make bench-preload`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

PYTHON_WORK = """
words = {}
for i in range(300000):
    words[str(i)] = [i, (i, str(i * 7))]
text = "".join(sorted(words))
parts = [text[i:i + 40] for i in range(0, len(text), 20)]
del words, parts
"""

VARIANTS: dict[str, list[str]] = {
    "without": [],
    "off": ["run"],
    "one trap": ["run", "--trap", "malloc 8880819"],
    "recorder": ["run", "--recorder=1M"],
    "marks": ["run", "--mark"],
}


def run(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """What it printed, and the seconds of CPU it took."""
    before = os.times()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    after = os.times()
    return done.stdout, after.children_user + after.children_system - before.children_user - before.children_system


def measure(karst: Path, program: Path, what: str, variant: list[str], events: int) -> list[float]:
    """Nanoseconds an event, of each thread; of Python nanoseconds a run."""
    start = [str(karst), *variant, "--"] if variant else []
    if what == "python3":
        _, seconds = run([*start, "/usr/bin/python3", "-S", "-c", PYTHON_WORK], {"PYTHONMALLOC": "malloc"})
        return [seconds * 1e9]
    kind, threads = what.split()
    printed, _ = run([*start, str(program), kind, threads, str(events)], {})
    return [float(line) for line in printed.split()]


def conditional_breakpoint(program: Path, calls: int = 2000) -> float:
    """Nanoseconds a call of malloc costs under GDB's `break malloc if size == N`."""
    def seconds(*commands: str) -> float:
        words = [word for command in ("break main", "run", "delete", *commands, "continue")
                 for word in ("-ex", command)]
        start = time.monotonic()
        subprocess.run(["gdb", "-nx", "-q", "-batch", *words, "--args", str(program), "tight", "1", str(2 * calls)],
                       capture_output=True, check=True)
        return time.monotonic() - start

    bare = min(seconds() for _ in range(2))
    return (min(seconds("break *malloc if $rdi == 8880819") for _ in range(2)) - bare) / calls * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--karst", type=Path, required=True)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--turns", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--no-gdb", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workloads = ["tight 1", "tight 2", "mixed 1", "mixed 2", "python3"]
    figures: dict[str, dict[str, list[float]]] = {what: defaultdict(list) for what in workloads}
    for round_ in range(options.rounds):
        for what in workloads:
            # As often before as after the bare run.
            names = list(VARIANTS)[1:]
            for name in names if round_ % 2 else reversed(names):
                pair = ["without", name] if round_ % 2 else [name, "without"]
                for one in pair:
                    figures[what][f"{one} beside {name}" if one == "without" else one].append(statistics.mean(
                        measure(options.karst, options.program, what, VARIANTS[one], options.events)))
    print(f"{'workload':10} {'variant':10} {'least':>12} {'median':>12} {'more':>9} {'ratio':>7}   "
          "(more, ratio: medians of pairs)")
    for what in workloads:
        scale, unit = (1e-6, "ms") if what == "python3" else (1, "ns")
        bare = [figure for name in list(VARIANTS)[1:] for figure in figures[what][f"without beside {name}"]]
        print(f"{what:10} {'without':10} {min(bare) * scale:9.2f} {unit} {statistics.median(bare) * scale:9.2f} {unit}")
        for name in list(VARIANTS)[1:]:
            own, beside = figures[what][name], figures[what][f"without beside {name}"]
            more = statistics.median(a - b for a, b in zip(own, beside))
            ratio = statistics.median(a / b for a, b in zip(own, beside))
            print(f"{what:10} {name:10} {min(own) * scale:9.2f} {unit} {statistics.median(own) * scale:9.2f} {unit} "
                  f"{more * scale:+9.2f} {ratio:7.3f}")
    print("\nthe flight recorder, switched on and off in one process, medians of 200 pairs:")
    for what in workloads[:4]:
        printed, _ = run([str(options.karst), "run", "--recorder=1M", "--", str(options.turns), *what.split(),
                          str(2 * options.events)], {})
        threads = [[float(word) for word in line.split()] for line in printed.splitlines()]
        print(f"{what:10} {statistics.mean(bare for bare, _ in threads):6.2f} ns an event without, "
              f"{statistics.mean(more for _, more in threads):+.2f} ns with")
    if not options.no_gdb:
        breakpoint_ns = conditional_breakpoint(options.program)
        trap_ns = max(statistics.median(a - b for a, b in zip(
            figures["tight 1"]["one trap"], figures["tight 1"]["without beside one trap"])), 0.01)
        print(f"\nGDB's conditional breakpoint: {breakpoint_ns / 1000:.0f} us a call; a trap {trap_ns:.2f} ns: "
              f"{breakpoint_ns / trap_ns:,.0f} times cheaper")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
