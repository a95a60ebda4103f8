"""The Pythons that tests look into: the system's, and others that `make test-distros` unpacked or $KARST_PYTHONS
names (paths, ':' between them)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karst_command import BUILD, ROOT
from karst_programs import Program, started

PROGRAMS = ROOT / "tests" / "programs"


@dataclass(frozen=True)
class Python:
    path: str
    version: str  # "3.11.2"

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])

    @contextlib.contextmanager
    def running(self, script: str | Path, directory: Path, *arguments: str,
                environment: dict[str, str] | None = None) -> Iterator[Program]:
        """tests/programs/SCRIPT, ready."""
        command = [self.path, str(PROGRAMS / script), *arguments]
        with started(command, directory, {"PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}) as program:
            yield program


def _asked(path: str) -> Python:
    done = subprocess.run([path, "-c", "import platform; print(platform.python_version())"], check=True,
                          capture_output=True, text=True, timeout=60)
    return Python(path, done.stdout.strip())


def system_python() -> Python:
    return _asked("/usr/bin/python3")


def other_pythons() -> list[Python]:
    paths = [str(path) for path in sorted((BUILD / "distros").glob("python-*/python"))]
    paths += [path for path in os.environ.get("KARST_PYTHONS", "").split(":") if path]
    return [_asked(path) for path in paths]


def told(program: Program, word: str) -> list[Any]:
    """The JSON of each line that begins with word."""
    return [json.loads(line.split(" ", 1)[1]) for line in program.lines if line.startswith(word + " ")]
