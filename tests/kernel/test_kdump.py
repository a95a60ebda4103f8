"""Dumps as kdump writes them: compressed and filtered by makedumpfile, read by drgn through libkdumpfile."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FIVE_LEVELS, KERNELS, SUITES, Dump
from elf_core import Core
from karst_drgn import DrgnTarget
from karst_python_stacks import assert_stacks
from karst_pythons import system_python
from python_guest import GuestProgram

MAKEDUMPFILE = KERNELS / "makedumpfile"
# By the level of the filter, which is a sum: 1 zeros, 2 cache, 4 private cache, 8 user data, 16 free pages.
LEVELS = {1: "-l", 23: "-c", 31: "-l"}

pytestmark = pytest.mark.skipif(FIVE_LEVELS not in SUITES, reason=f"asked on {FIVE_LEVELS}'s kernel")


@pytest.fixture(scope="module")
def dumps(dump: Dump, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """By level."""
    if dump.suite != FIVE_LEVELS:
        pytest.skip(f"asked on {FIVE_LEVELS}'s kernel")
    folder = tmp_path_factory.mktemp("kdump")
    plain = folder / "vmcore"
    Core(dump.vmcore).copy_with_headers_in_front(plain)
    libraries = ":".join(str(path) for path in MAKEDUMPFILE.glob("**/*-linux-gnu"))
    made = {}
    for level, compression in LEVELS.items():
        made[level] = folder / f"level-{level}"
        subprocess.run([MAKEDUMPFILE / "usr" / "bin" / "makedumpfile", compression, "-d", str(level), "-x", dump.vmlinux,
                        plain, made[level]], check=True, capture_output=True, timeout=300,
                       env={**os.environ, "LD_LIBRARY_PATH": libraries})
        assert made[level].read_bytes()[:8] == b"KDUMP   "
    plain.unlink()
    yield made
    for path in made.values():
        path.unlink()


def task(dump: Dump, dumps: dict[int, Path], level: int, pid: int) -> DrgnTarget:
    return DrgnTarget(["-c", dumps[level], "-s", dump.vmlinux], "--pid", str(pid))


@pytest.mark.parametrize(("name", "words"), [("ledger", ["blocks", "--all"]), ("ledger", ["check"]),
                                            ("pages", ["residency", "--all"]), ("pages", ["rss"])])
def test_same_answers(dump: Dump, dumps: dict[int, Path], name: str, words: list[str]) -> None:
    """As from the whole dump: nothing that a task has is lost, pages of zeros least of all."""
    done = task(dump, dumps, 1, dump.truth.pid(name)).run(*words, "--json")
    assert done.returncode == 0 and done.stdout == dump.task(name).run(*words, "--json").stdout


def test_python(dump: Dump, dumps: dict[int, Path]) -> None:
    program = GuestProgram.of(dump.truth, "stacks")
    assert_stacks(task(dump, dumps, 23, program.pid), program, system_python())


def test_files_left_out(dump: Dump, dumps: dict[int, Path]) -> None:
    """Level 23 keeps user data, but not the files' pages: they are missing, not zeros, and that is told."""
    program = GuestProgram.of(dump.truth, "objects")
    whole, filtered = DrgnTarget(dump.program, "--pid", str(program.pid)), task(dump, dumps, 23, program.pid)
    assert filtered.run("blocks", "--all", "--json").stdout == whole.run("blocks", "--all", "--json").stdout
    answer = whole.json("residency", "--all")
    (vdso,) = [row["file_bytes"] for row in answer["mappings"] if row["name"] == "[vdso]"]
    files = answer["total"]["file_bytes"] + answer["total"]["shmem_bytes"] - vdso
    core = dumps[23].with_name("core")
    assert filtered.json("gcore", str(core))["excluded_bytes"] == files > 1 << 20
    core.unlink()
    assert "left out of the dump: that memory is missing" in filtered.run("summary").stderr


def test_user_data_left_out(dump: Dump, dumps: dict[int, Path]) -> None:
    for verb in ("summary", "check", "py-stack"):
        told = task(dump, dumps, 31, dump.truth.pid("ledger")).one_line(verb)
        assert "without the memory of processes (dump level 31)" in told


def test_header_cut_off(dump: Dump, dumps: dict[int, Path], directory: Path) -> None:
    """drgn itself may refuse such a file: a line, and no traceback of karst's."""
    path = directory / "vmcore"
    with open(dumps[23], "rb") as file:
        path.write_bytes(file.read(5000))
    done = DrgnTarget(["-c", path, "-s", dump.vmlinux], "--pid", "1").run("summary")
    assert done.returncode != 0 and "karst_drgn" not in done.stderr, done.stderr
