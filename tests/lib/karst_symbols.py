"""The ways to know where libc keeps its things: debug info, a symbol table alone, or nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

DEBUG = Path("/usr/lib/debug/.build-id")


def libc_path() -> Path:
    """The libc that programs here run with."""
    for line in subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout.splitlines():
        if "libc.so.6 =>" in line:
            return Path(line.split()[2]).resolve()
    raise RuntimeError("no libc.so.6 in what ldd says about /bin/sh")


def build_id(path: Path) -> str:
    notes = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Build ID: ([0-9a-f]+)", notes)
    assert found, f"{path} has no build id"
    return found[1]


def debug_file(identity: str, directory: Path = DEBUG) -> Path:
    return directory / identity[:2] / f"{identity[2:]}.debug"


def make_symbol_table_directory(directory: Path) -> Path:
    """A debug directory that has libc's .symtab, and no debug info."""
    identity = build_id(libc_path())
    source = debug_file(identity)
    assert source.exists(), f"{source} is missing: install libc6-dbg"
    target = debug_file(identity, directory / ".build-id")
    target.parent.mkdir(parents=True)
    subprocess.run(["objcopy", "--strip-debug", source, target], check=True)
    return directory
