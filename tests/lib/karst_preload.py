"""Programs under the preload library."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from karst_command import BUILD, KARST, TESTS, karst
from karst_programs import Program, started

CALLS, SITED = TESTS / "calls", TESTS / "sited"
LIBRARY = BUILD / "libkarst-preload.so"
ALLOCATORS = {"glibc": "", "jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4",
              "mimalloc": "libmimalloc.so.2.0"}
VERSIONS = {"glibc": r"2\.\d+", "jemalloc": r"5\.3\.", "tcmalloc": r"2\.\d+", "mimalloc": r"2\.0\.9"}


def run(*arguments: str | Path, allocator: str = "glibc", seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """`karst run` with these arguments, to the program's end."""
    return karst("run", *arguments, seconds=seconds, environment={"LD_PRELOAD": ALLOCATORS[allocator]})


@contextmanager
def running(*options: str, program: tuple[str | Path, ...], directory: Path, allocator: str = "glibc",
            ready: bool = True) -> Iterator[Program]:
    with started([KARST, "run", *options, "--", *program], directory, {"LD_PRELOAD": ALLOCATORS[allocator]},
                 ready=ready) as program_:
        yield program_
