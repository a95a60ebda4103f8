"""The system's Python in a guest: what it needs of its library, and two of the tests' programs that say of themselves what
karst has to say of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guest import Truth, libraries_of
from karst_pythons import PROGRAMS

PYTHON = Path("/usr/bin/python3").resolve()
NAMES = ("objects", "stacks")
# What the programs import, and what the interpreter does by itself.
_IMPORTED = """
import collections, encodings.ascii, encodings.latin_1, encodings.utf_8, functools, gc, json, site, threading, time, traceback
import sys
for module in sys.modules.values():
    file = getattr(module, "__file__", None)
    if file:
        print(file)
"""

# Sourced by the guest's init.
_START = f"""
$b mkdir -p /usr/bin
$b mv /guest/{PYTHON.name} /usr/bin/
for name in {' '.join(NAMES)}; do
    PYTHONHOME=/usr PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 /usr/bin/{PYTHON.name} -S /guest/$name.py \\
        >/truth/$name.out 2>/truth/$name.error &
    echo "$name $!" >>/truth/pythons
done
for name in {' '.join(NAMES)}; do
    tries=0
    until $b grep -q ready /truth/$name.out || [ $tries = 1200 ]; do $b usleep 100000; tries=$((tries + 1)); done
    show $name/out /truth/$name.out
    show $name/error /truth/$name.error
done
show pythons /truth/pythons
show objects/mallocstats /truth/mallocstats
"""


@dataclass(frozen=True)
class GuestProgram:
    """As Program: the number of a process in the guest, and what it printed."""

    pid: int
    lines: list[str]

    @classmethod
    def of(cls, truth: Truth, name: str) -> GuestProgram:
        lines = truth.sections[f"{name}/out"].splitlines()
        assert any(line.startswith("ready") for line in lines), truth.sections[f"{name}/error"]
        return cls(truth.values("pythons")[name], lines)


def _imported() -> list[Path]:
    """Without site: what is installed here besides is no part of it."""
    done = subprocess.run([PYTHON, "-S", "-X", "frozen_modules=off", "-c", _IMPORTED], capture_output=True, text=True,
                          check=True)
    return sorted({Path(line) for line in done.stdout.splitlines()})


def _sources() -> Iterator[tuple[str, bytes]]:
    for path in _imported():
        if path.suffix == ".py":
            yield f"stash{path}", path.read_bytes()
    for name in NAMES:
        yield f"stash/guest/{name}.py", (PROGRAMS / f"{name}.py").read_bytes()
    yield "stash/guest/more", _START.encode()


def files() -> dict[str, bytes]:
    """For make_initramfs(): what is no program and no library."""
    return dict(_sources())


def libraries() -> list[Path]:
    """Of the interpreter, which is a program of make_initramfs(), and of its modules; with those themselves."""
    modules = [path for path in _imported() if path.suffix == ".so"]
    return modules + [library for module in modules for library in libraries_of(module)]
