"""A process stands still while it is read: what that takes, and what is said where it can't be had."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from karst_command import TESTS, Target
from karst_programs import started

WONT_STOP = TESTS / "wont_stop"


@contextlib.contextmanager
def slow_group() -> Iterator[Path]:
    """A control group whose processes get a thousandth of a processor, in lumps: they stand still for seconds."""
    old, new = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (old if old.exists() else new) / f"karst-test-{os.getpid()}"
    try:
        group.mkdir()
        if old.exists():
            (group / "cpu.cfs_period_us").write_text("1000000")
            (group / "cpu.cfs_quota_us").write_text("1000")
        else:
            (group / "cpu.max").write_text("1000 1000000")
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group of its own is to be had: {error}")
    try:
        yield group
    finally:
        end = time.monotonic() + 60
        while (group / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.1)
        group.rmdir()


def test_threads_that_wait_for_a_processor(directory: Path) -> None:
    """A thread stops when it gets to run, which can take seconds, and is no reason to give up."""
    with slow_group() as group, started([WONT_STOP, "busy", "4"], directory) as program:
        (group / "cgroup.procs").write_text(str(program.pid))
        for _ in range(2):
            assert Target.process(program.pid).json("info")["target"]["threads"] == 5
            assert program.status("TracerPid") == "0"


def test_thread_that_waits_for_the_kernel(directory: Path) -> None:
    with started([WONT_STOP, "vfork"], directory) as program:
        assert program.state() == "D"
        done = Target.process(program.pid).run("info")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "does not stop: it waits for the kernel" in done.stderr
        assert program.status("TracerPid") == "0", "left seized, it would stop when its wait is over"
        assert "wont_stop" in Target.process(program.pid, "--no-stop").run("info").stdout
