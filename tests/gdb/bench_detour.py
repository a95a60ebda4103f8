"""What a detour costs a call, held against GDB's own conditional breakpoint in the same process.

Run inside GDB by `make bench-detour`. Phases without a trap, with one, and with a breakpoint alternate in one process,
which runs under GDB throughout: differences are the trap's alone. A tight loop, a mixed workload, and a python3 whose
whole runs take turns."""

from __future__ import annotations

import os
import statistics
import sys

import gdb

ROUNDS = int(os.environ.get("ROUNDS", "5"))
BREAKPOINT_PAIRS = 2000
LIMIT_NS = 1.0
LIMITED = ("malloc, one size", "malloc and free")
LIMIT_RATIO = 50_000

# Calls that a pair of the loop makes to what is trapped.
TRAPS = {
    "malloc, one size": (["malloc 424242"], 1),
    "malloc, a range": (["malloc 1M:2M"], 1),
    "malloc, a set of three": (["malloc 424242/424243/424244"], 1),
    "malloc and free": (["malloc 424242", "free freed=0x1234567890"], 2),
    "malloc, four traps": (["malloc 424242", "malloc 5M:", "malloc 424243", "malloc 424244"], 1),
}


# What neither the mixed workload nor python3 asks for.
NEVER_MET = ["malloc 654321", "free freed=0x1234567890"]
PYTHON_WORK = "words = {}; [words.update({str(i): [i, (i, str(i * 7))]}) for i in range(200000)]; del words"


def phase() -> float:
    """Nanoseconds of the program's CPU time a pair."""
    gdb.execute("continue", to_string=True)
    frame = gdb.newest_frame()
    assert frame.name() == "phase_end", frame.name()
    return float(frame.read_register("xmm0")["v2_double"][0])


def main() -> bool:
    gdb.execute("set pagination off")
    end = gdb.Breakpoint("phase_end", internal=True)
    end.silent = True
    within = [tight_loop(), mixed()]
    end.delete()
    python3()
    return all(within)


def mixed() -> bool:
    """One trap on a size, one on a freed address, in a process that keeps many blocks of all sizes."""
    gdb.execute("run mixed > /dev/null", to_string=True)
    gdb.execute("set var rounds_in_phase = 8")
    gdb.execute("set var pairs_in_round = 500000")
    phase()
    bare, trapped = [], []
    for _ in range(ROUNDS):
        bare.append(phase())
        for spec in NEVER_MET:
            gdb.execute(f"karst trap add {spec}", to_string=True)
        trapped.append(phase())
        gdb.execute("karst trap remove", to_string=True)
    gdb.execute("kill", to_string=True)
    least = (min(trapped) - min(bare)) / 2
    middle = (statistics.median(trapped) - statistics.median(bare)) / 2
    print(f"mixed workload, {min(bare):.1f} ns a pair; malloc and free: {least:.2f} ns more a call (least), {middle:.2f} (median), "
          f"limit {LIMIT_NS}")
    return least <= LIMIT_NS


def python3() -> None:
    """Seconds of CPU time of whole runs, the interpreter's objects by malloc."""
    gdb.execute("set print inferior-events off")
    gdb.execute("file /usr/bin/python3", to_string=True)
    gdb.execute("set environment PYTHONMALLOC malloc")

    def seconds(specs: list[str]) -> float:
        gdb.Breakpoint("Py_BytesMain", internal=True, temporary=True).silent = True
        before = os.times()
        gdb.execute(f"run -S -c '{PYTHON_WORK}'", to_string=True)
        for spec in specs:
            gdb.execute(f"karst trap add {spec}", to_string=True)
        gdb.execute("continue", to_string=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    bare, trapped = [], []
    for _ in range(ROUNDS):
        bare.append(seconds([]))
        trapped.append(seconds(NEVER_MET))
    print(f"python3, {min(bare):.2f} s; malloc and free: {min(trapped) / min(bare):.3f} times (least), "
          f"{statistics.median(trapped) / statistics.median(bare):.3f} (median)")


def tight_loop() -> bool:
    gdb.execute("run > /dev/null", to_string=True)
    phase()
    bare: list[float] = []
    trapped: dict[str, list[float]] = {name: [] for name in TRAPS}
    for _ in range(ROUNDS):
        bare.append(phase())
        for name, (specs, _) in TRAPS.items():
            for spec in specs:
                gdb.execute(f"karst trap add {spec}", to_string=True)
            trapped[name].append(phase())
            gdb.execute("karst trap remove", to_string=True)
            bare.append(phase())
    gdb.execute(f"set var pairs_in_round = {BREAKPOINT_PAIRS}")
    gdb.execute("set var rounds_in_phase = 1")
    phase()
    point = gdb.Breakpoint("*malloc", internal=True)
    point.condition = "$rdi == 424242"
    before = os.times()
    by_program = phase()
    after = os.times()
    by_gdb = (after.user + after.system - before.user - before.system) / BREAKPOINT_PAIRS * 1e9
    by_breakpoint = by_program + by_gdb
    point.delete()
    gdb.execute("kill", to_string=True)
    return report(bare, trapped, by_breakpoint)


def report(bare: list[float], trapped: dict[str, list[float]], by_breakpoint: float) -> bool:
    base = min(bare)
    print(f"malloc and free take {base:.2f} ns a pair (least), {statistics.median(bare):.2f} (median of {len(bare)} phases)")
    print(f"{'detour':24} {'ns more a call':>24}  limit")
    print(f"{'':24} {'least':>11} {'median':>12}")
    right = True
    for name, (_, calls) in TRAPS.items():
        least = (min(trapped[name]) - base) / calls
        middle = (statistics.median(trapped[name]) - statistics.median(bare)) / calls
        over = name in LIMITED and least > LIMIT_NS
        right &= not over
        print(f"{name:24} {least:11.2f} {middle:12.2f}  {LIMIT_NS if name in LIMITED else '-'}{'  over' if over else ''}")
    one = max((min(trapped["malloc, one size"]) - base), 0.1)
    ratio = by_breakpoint / one
    print(f"GDB's conditional breakpoint: {by_breakpoint / 1000:.0f} us of CPU time a call, {ratio:,.0f} times the detour's "
          f"{one:.2f} ns (limit {LIMIT_RATIO:,})")
    print("within all limits" if right and ratio >= LIMIT_RATIO else "over a limit")
    return right and ratio >= LIMIT_RATIO


try:
    passed = main()
except Exception as error:
    print(f"bench: {error}")
    passed = False
sys.stdout.flush()
gdb.execute(f"quit {0 if passed else 1}")
