"""The libcs that test programs run on: the system's, and others that `make test-distros` unpacked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from karst_command import TESTS

Ways = dict[str, list[str]]


@dataclass(frozen=True)
class Libc:
    """How to run a program on it: behind which words, and from where the programs are."""

    name: str
    loader: tuple[str, ...] = ()
    programs: Path = TESTS
    minor: int = 0  # of the version, 0: the system's
    debug_directory: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, program: str, *arguments: str | os.PathLike[str]) -> list[str]:
        static = program.endswith("-static")
        loader = () if static else self.loader
        return [*loader, str(self.programs / program), *map(os.fspath, arguments)]


SYSTEM = Libc("system")


def unpacked_libc(directory: Path) -> Libc:
    """What tests/distros/get-libc made of a suite."""
    version = (directory / "version").read_text().strip()
    loader = next(path for path in directory.glob("**/ld-linux-x86-64.so.2") if path.parent.name != "lib64")
    own = directory / "programs"
    return Libc(
        name=f"{directory.name} ({version})",
        loader=(str(loader.resolve()), "--library-path", str(loader.parent)),
        programs=own if own.exists() else TESTS,
        minor=int(version.split(".")[1].split("-")[0]),
        debug_directory=directory / "usr/lib/debug",
    )
