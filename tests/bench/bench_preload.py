"""What the preload library costs: the same programs without it, with it and nothing asked for, with one trap on a
size, with the flight recorder, with marks. All variants take turns, round by round; a variant's figure is the
least of its rounds, differences and ratios are of these figures. Run by `make bench-preload`."""

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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--no-gdb", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workloads = ["tight 1", "tight 2", "mixed 1", "mixed 2", "python3"]
    figures: dict[str, dict[str, list[float]]] = {what: defaultdict(list) for what in workloads}
    for _ in range(options.rounds):
        for what in workloads:
            for name, variant in VARIANTS.items():
                figures[what][name].append(statistics.mean(
                    measure(options.karst, options.program, what, variant, options.events)))
    print(f"{'workload':10} {'variant':10} {'least':>12} {'median':>12} {'more':>9} {'ratio':>7}")
    for what in workloads:
        base = min(figures[what]["without"])
        scale, unit = (1e-6, "ms") if what == "python3" else (1, "ns")
        for name in VARIANTS:
            least, median = min(figures[what][name]), statistics.median(figures[what][name])
            print(f"{what:10} {name:10} {least * scale:9.2f} {unit} {median * scale:9.2f} {unit} "
                  f"{(least - base) * scale:+9.2f} {least / base:7.3f}")
    if not options.no_gdb:
        breakpoint_ns = conditional_breakpoint(options.program)
        trap_ns = max(min(figures["tight 1"]["one trap"]) - min(figures["tight 1"]["without"]), 0.01)
        print(f"\nGDB's conditional breakpoint: {breakpoint_ns / 1000:.0f} us a call; a trap {trap_ns:.2f} ns: "
              f"{breakpoint_ns / trap_ns:,.0f} times cheaper")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
