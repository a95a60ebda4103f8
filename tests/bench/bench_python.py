#!/usr/bin/python3
"""What karst costs on a Python process of a million objects: CPU seconds (user and system), the least and the median of
the rounds, alive and from a core. Run by `make bench-python`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 2.0  # seconds for a million objects
PROGRAM = """
import os, time
class Record:
    def __init__(self, number):
        self.number, self.text = number, "text %d" % number
records = [Record(number + 1000) for number in range(250000)]
pairs = [(number + 5000, float(number)) for number in range(100000)]
print("ready", flush=True)
time.sleep(1000)
"""


def cpu(argv: list[str]) -> float:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"bench: {' '.join(argv)}: ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--karst", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    right = True
    with tempfile.TemporaryDirectory() as folder:
        program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
        assert program.stdout
        try:
            program.stdout.readline()
            subprocess.run(["gcore", "-o", f"{folder}/core", str(program.pid)], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            ends = {"process": ["-p", str(program.pid)], "core": ["-c", f"{folder}/core.{program.pid}"]}
            answer = subprocess.run([options.karst, *ends["process"], "py-objects", "--json"], check=True,
                                    stdout=subprocess.PIPE).stdout
            objects = json.loads(answer)["runtimes"][0]["total"]["objects"]
            print(f"{objects} objects; {options.rounds} rounds; limit {LIMIT} s for py-objects of a million")
            print(f"{'':28} {'least':>7} {'median':>7}")
            for end, words in ends.items():
                for verb in (["py-objects"], ["py-objects", "--where", "0x0"], ["pools"], ["py-stack"], ["check"]):
                    if verb[-1] == "0x0":
                        first = json.loads(subprocess.run(
                            [options.karst, *words, "py-objects", "--type", "__main__.Record", "--limit", "1", "--json"],
                            check=True, stdout=subprocess.PIPE).stdout)["runtimes"][0]["objects"][0]["address"]
                        verb = [*verb[:-1], first]
                    times = [cpu([str(options.karst), *words, *verb]) for _ in range(options.rounds)]
                    over = verb == ["py-objects"] and min(times) * 1e6 / objects > LIMIT
                    right = right and not over
                    name = f"{end} {' '.join(verb[:2])}"
                    print(f"{name:28} {min(times):7.2f} {statistics.median(times):7.2f}{'  over' if over else ''}")
        finally:
            program.kill()
            program.wait()
    print("within all limits" if right else "NOT within all limits: see 'over'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
