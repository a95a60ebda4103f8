"""The preload library in circumstances that are rare, and where its mistakes would be the program's end."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from karst_command import KARST, TESTS, Target, karst
from karst_preload import ALLOCATORS, CALLS, run, running

AWKWARD = TESTS / "awkward"

LENDER = """
#include <stddef.h>
int lender_taken;
char *lender_low, *lender_high;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
void *malloc(size_t size) { return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return __libc_calloc(count, size); }
void *realloc(void *block, size_t size) { return __libc_realloc(block, size); }
void free(void *block) {
    if ((char *)block >= lender_low && (char *)block < lender_high) lender_taken++;
    else __libc_free(block);
}
"""


def run_with(*arguments: str | Path, stderr: int | IO[bytes], before: Callable[[], None]) -> subprocess.CompletedProcess[bytes]:
    """`karst run`, with an error output of one's own; before: done in the process that becomes it."""
    return subprocess.run([KARST, "run", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                          preexec_fn=before, timeout=60, check=False)


def sigpipe_ends() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python's own is SIG_IGN


def test_nobody_reads_the_lines() -> None:
    """A program that writes nothing to its standard error does not die of what a trap writes there."""
    end, pipe = os.pipe()
    os.close(end)
    try:
        done = run_with("--trap", "malloc 100:199", "--", CALLS, "sizes", stderr=pipe, before=sigpipe_ends)
    finally:
        os.close(pipe)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [b"done"])


def test_lines_beyond_the_largest_file(directory: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))

    with open(directory / "lines", "wb") as lines:
        done = run_with("--trap", "malloc 100:199", "--", CALLS, "sizes", stderr=lines, before=limit)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [b"done"])
    assert (directory / "lines").stat().st_size == 200


def test_rings_beyond_the_largest_file(directory: Path) -> None:
    """No ring, no end of the program, and a line that says why."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, resource.RLIM_INFINITY))

    done = run_with("--recorder=1M", "--recorder-dir", directory / "rings", "--", CALLS, "sizes", stderr=subprocess.PIPE,
                    before=limit)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [b"done"])
    assert done.stderr == (f"karst: the flight recorder has no file for a thread in {directory / 'rings'}: it would be "
                           "larger than files may be (ulimit -f); it records no more threads\n").encode()


def test_handlers_behind_each_instruction(directory: Path) -> None:
    """A handler that makes events in the middle of each step of the recorder: the ring stays one, and the program lives."""
    with running("--recorder=4K", program=(AWKWARD, "handlers"), directory=directory) as program:
        answer = Target.process(program.pid).json("history", "--all")
    assert answer["kept"] > 30
    assert {event["event"] for event in answer["events"] if event["size"] > 1 << 62} == {"alloc"}


ENDS = r"karst: the flight recorder does not go on in thread (\d+), which may not read the processor's clock .*\n"


@pytest.mark.parametrize("options", [["--recorder"], ["--recorder=4K", "--mark", "--stacks=4"], ["--recorder-dir", "rings"]])
def test_a_thread_without_the_processors_clock(directory: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It lives on, and is told; what was recorded of it before is kept."""
    monkeypatch.chdir(directory)
    done = run(*options, "--", AWKWARD, "clock")
    if done.returncode == 77:
        pytest.skip("no PR_SET_TSC")
    assert (done.returncode, done.stdout) == (0, "good\n"), done
    told = re.fullmatch(ENDS * 2, done.stderr)
    assert told is not None and told[1] != told[2], done.stderr
    if "rings" in options:
        answer = karst("history", "--files", "rings", "--size", "3000", "--json")
        assert [event["event"] for event in json.loads(answer.stdout)["events"]] == ["alloc"]


@pytest.mark.parametrize(("options", "told"), [(["--recorder"], ENDS), (["--mark"], ""), (["--mark", "--recorder=4K"], ENDS)])
def test_strict_seccomp(options: list[str], told: str) -> None:
    done = run(*options, "--", AWKWARD, "strict")
    assert (done.returncode, done.stdout) == (0, "good\n"), done
    assert re.fullmatch(told, done.stderr), done.stderr


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_alignments_that_are_none(allocator: str) -> None:
    """Marks or not, aligned_alloc refuses the same, and says so in errno."""
    plain, marked = (run(*options, "--", AWKWARD, "alignments", allocator=allocator) for options in ([], ["--mark"]))
    assert plain.returncode == 0 and plain.stdout.count("\n") == 5, plain
    assert (marked.returncode, marked.stdout, marked.stderr) == (0, plain.stdout, "")


@pytest.mark.parametrize("options", [["--mark"], ["--recorder"]])
def test_the_unwinder_allocates(options: list[str]) -> None:
    """It does so under a lock that it would wait for if the library asked it for a stack then."""
    done = run(*options, "--stacks=8", "--", AWKWARD, "frames", seconds=30)
    if done.returncode == 77:
        pytest.skip("no libgcc_s")
    assert (done.returncode, done.stdout, done.stderr) == (0, "as many: 1\n", "")


def test_an_overflow_before_a_realloc_that_fails() -> None:
    """The block lives on, damaged: its free is told as an overflow again, not as a double free."""
    done = run("--mark", "--", AWKWARD, "shrunk")
    assert (done.returncode, done.stdout) == (0, "refused: 1\n")
    told = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert told == ["overflow", "overflow"], done.stderr


def test_blocks_that_came_by_another_way(directory: Path) -> None:
    """Memory that can be an allocator's is given to it, whatever its mapping is called; a file's is not."""
    (directory / "lender.c").write_text(LENDER)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-w", "-o", directory / "lender.so", directory / "lender.c"], check=True)
    done = subprocess.run([KARST, "run", "--mark", "--", AWKWARD, "lent"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "LD_PRELOAD": str(directory / "lender.so")}, check=False)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["anonymous 1", "shared 1", "memfd 1", "file 0"]
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("karst: foreign pointer: free(")


def test_both_sites_of_a_fault_where_sites_are_stacks() -> None:
    """They are told as without stacks."""
    told = [re.findall(r"(allocated|first freed|called) at 0x[0-9a-f]+ \((calls\+0x[0-9a-f]+)\)",
                       run("--mark", *stacks, "--", CALLS, "fault", "double").stderr) for stacks in ([], ["--stacks=6"])]
    assert [word for word, _ in told[0]] == ["allocated", "first freed", "called"]
    assert told[0] == told[1]
