#!/usr/bin/python3
"""What karst costs on a jemalloc heap of small regions, beside a bare loop over the same slabs' headers and bitmaps.
Run by `make bench-slabs`."""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

LIBRARY = "libjemalloc.so.2"
LIMIT = 1.0  # CPU seconds for 10 million live regions, from opening the core on
RATIO = 1.5  # of the bare loop, for a walk that only counts


def make(tools: Path, core: Path, regions: int) -> None:
    subprocess.run([tools / "make_slabs", str(regions), core.name], cwd=core.parent, check=True,
                   env={**os.environ, "LD_PRELOAD": LIBRARY})


def make_list(karst: Path, core: Path) -> Path:
    """The slabs for the bare loop."""
    path = core.with_suffix(".list")
    with subprocess.Popen([karst, "-c", core, "runs", "slab", "--json", "--all"], stdout=subprocess.PIPE, text=True) as told, \
            open(path, "w", encoding="ascii") as file:
        assert told.stdout is not None
        for line in told.stdout:
            run = json.loads(line)
            file.write(f"{run['header'][2:]} {run['first_region'][2:]} {run['regions']:x} {run['region_size']:x}\n")
    return path


def root_of(karst: Path, core: Path) -> str:
    """Of jemalloc's radix tree, for the bare loop that goes by it."""
    told = json.loads(subprocess.run([karst, "-c", core, "info", "--json"], check=True, capture_output=True, text=True).stdout)
    facts = [fact for row in told["allocators"] for fact in row["facts"] if fact["name"] == "radix tree"]
    return str(facts[0]["address"])


def counted(argv: list[str], rounds: int) -> tuple[str, list[float]]:
    """What was counted, and the CPU seconds of each round."""
    answers = [subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split() for _ in range(rounds)]
    assert len({tuple(answer[:2]) for answer in answers}) == 1, answers
    return f"{int(answers[0][0]):,} regions, {int(answers[0][1]):,} bytes", [float(answer[2]) for answer in answers]


def cpu_of(argv: list[str], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--karst", type=Path, required=True)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--regions", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    core = options.directory.resolve() / "slabs.core"
    make(options.tools.resolve(), core, options.regions)
    slabs = make_list(options.karst, core)
    tool = str(options.tools / "count_slabs")
    bare, loop = counted([tool, "bare", str(core), str(slabs)], options.rounds)
    bare_words, words = counted([tool, "words", str(core), str(slabs)], options.rounds)
    bare_tree, tree = counted([tool, "tree", str(core), root_of(options.karst, core)], options.rounds)
    bulk, counting = counted([tool, "bulk", str(core)], options.rounds)
    walked, walk = counted([tool, "karst", str(core)], options.rounds)
    print(f"in use: {walked} (bare loop: {bare})")
    print(f"{'':24}{'least':>8}{'median':>8}  CPU s")
    for what, took in (("bare loop over bits", loop), ("bare loop over words", words), ("bare loop by the tree", tree), ("walk, slabs as wholes", counting),
                       ("open, find, walk", walk)):
        print(f"{what:24}{min(took):8.4f}{statistics.median(took):8.4f}")
    for verb in (["summary"], ["runs", "--classes"], ["holes"], ["check"]):
        took = cpu_of([str(options.karst), "-c", str(core), *verb], options.rounds)
        print(f"{'karst ' + ' '.join(verb):24}{min(took):8.4f}{statistics.median(took):8.4f}")
    limit = LIMIT * options.regions / 10_000_000
    ratios = [min(counting) / min(loop), min(counting) / min(tree)]
    right = len({walked, bulk, bare, bare_words, bare_tree}) == 1 and min(walk) < limit and ratios[0] <= RATIO
    print(f"{'within' if right else 'NOT within'} the limits: {limit:.2f} s for the walk from opening on; a walk that counts takes "
          f"{ratios[0]:.2f} of the bare loop over bits (limit {RATIO}), {ratios[1]:.2f} of the one that goes by the tree and "
          "counts words")
    core.unlink()
    slabs.unlink()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
