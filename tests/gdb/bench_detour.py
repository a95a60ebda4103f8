"""What a detour costs a call, held against GDB's own conditional breakpoint in the same process.

Run inside GDB by `make bench-detour`. Phases without a trap, with one, and with a breakpoint alternate in one process,
which runs under GDB throughout: differences are the trap's alone."""

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


def phase() -> float:
    """Nanoseconds of the program's CPU time a pair."""
    gdb.execute("continue", to_string=True)
    frame = gdb.newest_frame()
    assert frame.name() == "phase_end", frame.name()
    return float(frame.read_register("xmm0")["v2_double"][0])


def main() -> bool:
    gdb.execute("set pagination off")
    gdb.Breakpoint("phase_end", internal=True).silent = True
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
