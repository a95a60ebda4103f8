#!/usr/bin/python3
"""What karst costs, held against a bare loop over the same chunk headers in the same core file.

Run by `make bench-heap`. Commands alternate, so that a busy machine hits all of them alike; figures are CPU
seconds (user and system), the least and the median of the rounds.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional

MIB = 1 << 20
GIB = 1 << 30


class Run(NamedTuple):
    cpu: float
    wall: float
    anonymous: int  # peak, bytes; 0 where it was not sampled
    file: int


class Command(NamedTuple):
    name: str
    argv: list[str]
    limit: Optional[float] = None  # of the CPU time, in bare loops
    memory: Optional[int] = None  # of the anonymous memory, in bytes


def memory_of(pid: int) -> tuple[int, int]:
    """Anonymous and file-backed resident bytes of a process, zeros once it is gone."""
    anonymous = file = 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    anonymous = int(line.split()[1]) * 1024
                elif line.startswith("RssFile:"):
                    file = int(line.split()[1]) * 1024
    except OSError:
        pass
    return anonymous, file


def run(argv: list[str], sample: bool) -> Run:
    """Runs argv with its output thrown away. With sample its memory is looked at every 2 ms."""
    start = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    anonymous = file = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG if sample else 0)
        if pid != 0:
            break
        now = memory_of(process.pid)
        anonymous, file = max(anonymous, now[0]), max(file, now[1])
        time.sleep(0.002)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        sys.exit(f"bench: {' '.join(argv)}: ended with {process.returncode}")
    return Run(usage.ru_utime + usage.ru_stime, time.monotonic() - start, anonymous, file)


def output(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_core(tools: Path, directory: Path, blocks: int) -> tuple[Path, Path]:
    core, layout = directory / f"core.{blocks}", directory / f"layout.{blocks}"
    if not core.exists() or not layout.exists():
        print(f"making {core} ...", flush=True)
        # The kernel puts the core where the process is.
        subprocess.run([str((tools / "make_core").resolve()), "--blocks", str(blocks), "--core", core.name,
                        "--layout", layout.name], check=True, cwd=directory)
    return core, layout


def machine() -> str:
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model}, {os.cpu_count()} processors, {memory / GIB:.0f} GiB, Linux {os.uname().release}"


def report(command: Command, runs: list[Run], sampled: Run, bare: list[Run]) -> bool:
    cpu = [one.cpu for one in runs]
    base = [one.cpu for one in bare]
    ratio = min(cpu) / min(base)
    middle = statistics.median(cpu) / statistics.median(base)
    over = []
    if command.limit is not None and ratio > command.limit:
        over.append("CPU")
    if command.memory is not None and sampled.anonymous > command.memory:
        over.append("memory")
    limits = (f"{command.limit:.1f}" if command.limit is not None else "-",
              f"{command.memory / MIB:.0f}" if command.memory is not None else "-")
    print(f"{command.name:24} {min(cpu):7.2f} {statistics.median(cpu):7.2f} {ratio:7.2f} {middle:7.2f} "
          f"{limits[0]:>6} {sampled.anonymous / MIB:10.1f} {limits[1]:>6} {sampled.file / MIB:9.0f}  "
          f"{'over: ' + ', '.join(over) if over else ''}", flush=True)
    return not over


def measure(commands: list[Command], rounds: int) -> bool:
    runs: dict[str, list[Run]] = {command.name: [] for command in commands}
    sampled = {command.name: run(command.argv, sample=True) for command in commands}
    for _ in range(rounds):
        for command in commands:
            runs[command.name].append(run(command.argv, sample=False))
    print(f"{'':24} {'CPU s':>15} {'bare loops':>15} {'':6} {'memory, MiB':>17}")
    print(f"{'':24} {'least':>7} {'median':>7} {'least':>7} {'median':>7} {'limit':>6} {'anonymous':>10} "
          f"{'limit':>6} {'file':>9}")
    bare = runs[commands[0].name]
    return all([report(command, runs[command.name], sampled[command.name], bare) for command in commands])


def measure_core(options: argparse.Namespace) -> bool:
    core, layout = make_core(options.tools, options.directory, options.blocks)
    bare = [str(options.tools / "bare_loop"), str(core), str(layout)]
    walk = [str(options.tools / "count_blocks"), str(core), str(layout)]
    chunks, counted = output(bare).split(), output(walk).split()
    karst = [str(options.karst), "-c", str(core)]
    total = json.loads(output([*karst, "summary", "--json"]))["total"]
    heap = total["system_bytes"]
    print(f"core: {core.stat().st_size / GIB:.2f} GiB, heap {heap / GIB:.2f} GiB, {chunks[0]} chunks of which "
          f"{chunks[1]} in use (karst: {counted[0]} and {counted[1]}); {options.rounds} rounds")
    plain, checked = 64 * MIB, 64 * MIB + heap // 100
    block = json.loads(output([*karst, "blocks", "--json", "--state", "live", "--arena", "1", "--limit", "1"]))
    address = block["blocks"][0]["address"]
    right = measure([
        Command("bare loop", bare),
        Command("engine's walk and bins", walk),
        Command("karst summary", [*karst, "summary"], 1.5, plain),
        Command("karst holes", [*karst, "holes"], 1.5, plain),
        Command("karst bins", [*karst, "bins"], None, plain),
        Command("karst pins", [*karst, "pins"], None, plain),
        Command("karst sizes", [*karst, "sizes"], None, plain),
        Command("karst map", [*karst, "map"], None, plain),
        Command("karst refs ADDRESS", [*karst, "refs", address], None, plain),
        Command("karst check", [*karst, "check"], 5.0, checked),
        Command("karst blocks --json --all", [*karst, "blocks", "--json", "--all"], None, plain),
    ], options.rounds)
    if chunks != counted:
        print("over: karst and the bare loop do not count the same chunks")
    measure_find(options, core)
    right = measure_drgn(options, core) and right
    return measure_gdb(options, core) and right and chunks == counted


def measure_find(options: argparse.Namespace, core: Path) -> None:
    """The block at an address, as `block ADDRESS` and $_karst_size ask for it, 10,000 times in one session."""
    words = output([str(options.tools / "find_blocks"), str(core), "10000"]).split()
    first, every, each = (float(word) for word in words[1::2])
    print(f"finding the block at an address: the first {1000 * first:.0f} ms, 10,000 of them {every:.2f} s of CPU "
          f"({each:.0f} us each)", flush=True)


def least(argv: list[str], rounds: int) -> float:
    return min(run(argv, sample=False).cpu for _ in range(rounds))


def measure_gdb(options: argparse.Namespace, core: Path) -> bool:
    """What a verb costs at GDB's prompt, GDB's own load taken off, in runs of the command line."""
    bare = ["gdb", "-nx", "-q", "-batch"]
    plugin = [*bare, "-ex", "source gdb/karst.py"]
    gdb = [*plugin, "-ex", f"core-file {core}"]
    if not shutil.which("gdb"):
        print("no gdb here: not measured")
        return True
    load = least(plugin, 5) - least(bare, 5)
    print(f"source gdb/karst.py takes GDB {load:.2f} s (limit 0.3){'' if load < 0.3 else '  over'}")
    alone, right = least(gdb, options.rounds), load < 0.3
    print(f"at GDB's prompt (GDB's own load of {alone:.2f} s taken off; limit 1.3):", end="")
    for verb in ("summary", "arenas", "bins", "holes", "pins", "sizes", "map", "blocks", "check"):
        inside = least([*gdb, "-ex", f"karst {verb}"], options.rounds) - alone
        ratio = inside / least([str(options.karst), "-c", str(core), verb], options.rounds)
        print(f" {verb} {ratio:.2f}", end="")
        right = right and ratio <= 1.3
    print("" if right else "  over")
    return measure_gdb_text(options, core, gdb, alone) and right


def measure_gdb_text(options: argparse.Namespace, core: Path, gdb: list[str], alone: float) -> bool:
    """A line for each block: here GDB's own load is also what gdb.write() takes for so much text."""
    words = ["blocks", "--all", "--json"]
    command = [str(options.karst), "-c", str(core), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        size = sum(map(len, process.stdout))
    line = "x" * 119 + "\\n"
    writing = least([*gdb, "-ex", f"python for i in range({size} // 16320): gdb.write('{line}' * 136)"], 1) - alone
    inside = least([*gdb, "-ex", "karst " + " ".join(words)], 1) - alone
    ratio = (inside - writing) / least(command, 1)
    print(f"{size / 1e9:.2f} GB of text there, `karst {' '.join(words)}`: {inside:.2f} s, of which gdb.write() alone takes "
          f"{writing:.2f}; the rest {ratio:.2f} (limit 1.3){'  over' if ratio > 1.3 else ''}")
    return ratio <= 1.3


def measure_drgn(options: argparse.Namespace, core: Path) -> bool:
    """The same verbs in drgn, its own start taken off."""
    if not shutil.which("drgn"):
        print("no drgn here: not measured")
        return True
    nothing = options.directory / "nothing.py"
    nothing.write_text("")
    drgn = ["drgn", "-q", "-c", str(core)]
    alone, right = least([*drgn, str(nothing)], options.rounds), True
    print("in drgn, by CPU of the command line (limit 1.3):", end="")
    for verb in ("summary", "holes", "check"):
        inside = least([*drgn, "drgn/karst.py", verb], options.rounds) - alone
        ratio = inside / least([str(options.karst), "-c", str(core), verb], options.rounds)
        right = right and ratio <= 1.3
        print(f" {verb} {ratio:.2f}", end="")
    print(f" (drgn's own {alone:.2f} s taken off)")
    return right


def private_memory(pid: int) -> list[tuple[int, int]]:
    """The heap and what is as large as one, of a process whose other memory is little."""
    ranges = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        start, end = (int(text, 16) for text in fields[0].split("-"))
        if fields[1].startswith("rw") and (len(fields) < 6 or fields[5] == "[heap]") and end - start >= 1 << 20:
            ranges.append((start, end))
    return ranges


def measure_gdbserver(options: argparse.Namespace, pid: int) -> bool:
    """The same through gdbserver: of a process here, and as it is of one elsewhere, where each byte comes in a
    packet and GDB's own load is also what it takes to read so many. The CPU time is GDB's, without the server's."""
    if not shutil.which("gdb") or not shutil.which("gdbserver"):
        print("no gdbserver here: not measured")
        return True
    port = 20000 + os.getpid() % 20000
    server = subprocess.Popen(["gdbserver", "--multi", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True)
    assert server.stderr
    try:
        server.stderr.readline()  # it listens
        gdb = ["gdb", "-nx", "-q", "-batch", "-ex", "source gdb/karst.py",
               "-ex", f"target extended-remote 127.0.0.1:{port}", "-ex", f"attach {pid}"]
        alone = least([*gdb, "-ex", "detach"], 1)
        inside = least([*gdb, "-ex", "karst summary", "-ex", "detach"], options.rounds) - alone
        far = least([*gdb, "-ex", "set karst direct off", "-ex", "karst summary", "-ex", "detach"], 1) - alone
        read = (f"python for start, end in {private_memory(pid)}:\n for at in range(start, end, 1 << 18):\n"
                "  gdb.selected_inferior().read_memory(at, min(1 << 18, end - at))")
        reading = least([*gdb, "-ex", read, "-ex", "detach"], 1) - alone
    finally:
        server.kill()
        server.wait()
    plain = least([str(options.karst), "-p", str(pid), "summary"], options.rounds)
    ratio, rest = inside / plain, (far - reading) / plain
    print(f"through gdbserver: summary {ratio:.2f} (GDB's own {alone:.2f} s taken off; limit 3)"
          f"{'  over' if ratio > 3 else ''}")
    print(f"through GDB's protocol alone: summary {far:.1f} s; GDB by itself takes {reading:.1f} s to read that memory; "
          f"the rest {max(rest, 0):.2f} (limit 3){'  over' if rest > 3 else ''}")
    return ratio <= 3 and rest <= 3


def measure_stop(options: argparse.Namespace) -> bool:
    """How long a process with a heap of about 4 GB stands still while karst reads it."""
    blocks = min(options.blocks, 9_300_000)
    victim = subprocess.Popen([str(options.tools / "make_core"), "--blocks", str(blocks), "--live"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert victim.stdin and victim.stdout
    ask, answers = victim.stdin, victim.stdout

    def longest_gap() -> float:
        ask.write("\n")
        return int(answers.readline()) / 1e9

    try:
        if answers.readline() != "ready\n":
            sys.exit("bench: the live process did not start")
        karst = [str(options.karst), "-p", str(victim.pid), "summary"]
        heap = json.loads(output([*karst, "--json"]))["total"]["system_bytes"]
        gaps, idle = [], []
        for _ in range(options.rounds):
            longest_gap()
            time.sleep(1)
            idle.append(longest_gap())
            run(karst, sample=False)
            gaps.append(longest_gap())
        served = measure_gdbserver(options, victim.pid)
    finally:
        ask.close()
        victim.wait()
    per_4gib = [gap * 4 * GIB / heap for gap in gaps]
    # What is the same for any heap, symbols above all, says nothing about 4 GiB when the heap is small.
    over = "  over" if min(per_4gib) >= 1 and heap > GIB else ""
    print(f"live process, heap {heap / GIB:.2f} GiB: `karst -p PID summary` stops it for {min(gaps):.2f} s at least, "
          f"{statistics.median(gaps):.2f} s in the median (left alone: {statistics.median(idle):.3f} s); per 4 GiB "
          f"{min(per_4gib):.2f} and {statistics.median(per_4gib):.2f} s (limit 1){over}")
    return served and not over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--karst", type=Path, required=True)
    parser.add_argument("--tools", type=Path, required=True, help="where make_core and bare_loop are")
    parser.add_argument("--directory", type=Path, required=True, help="where the core is kept")
    parser.add_argument("--blocks", type=int, default=12_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}")
    right = measure_core(options)
    right = measure_stop(options) and right
    if options.blocks < 1_000_000:
        print("a heap this small says nothing about the limits: starting takes longer than walking")
    else:
        print("within all limits" if right else "NOT within all limits: see 'over'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
