"""Programs under test: started, waited for until they say they are ready, always ended."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

READY_SECONDS = 60.0


class Program:
    """A running program and what it printed. `pid` is the one it calls ready, so maybe a child's."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, pid: int | None = None) -> None:
        self.process = process
        self.directory = directory
        self.pid = process.pid if pid is None else pid
        self.lines: list[str] = []
        self._rest = b""

    def wait_line(self, start: str, seconds: float = READY_SECONDS) -> str:
        """Read on, up to a line that begins so."""
        stdout = self.process.stdout
        assert stdout is not None
        end = time.monotonic() + seconds
        while not (found := [line for line in self.lines if line.startswith(start)]):
            left = end - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise TimeoutError(f"{self.process.args}: no '{start}' in {seconds:.0f} s; printed {self.lines}")
            piece = os.read(stdout.fileno(), 65536)
            if not piece:
                self.process.wait(timeout=10)
                raise RuntimeError(f"{self.process.args}: ended with {self.process.returncode}: {self.lines}")
            *complete, self._rest = (self._rest + piece).split(b"\n")
            self.lines += [line.decode() for line in complete]
        return found[0]

    def wait_ready(self) -> None:
        words = self.wait_line("ready").split()
        if len(words) > 1:
            self.pid = int(words[1])

    def values(self) -> dict[str, int]:
        """What it printed as "name value"."""
        pairs = (line.split() for line in self.lines)
        return {pair[0]: int(pair[1], 0) for pair in pairs if len(pair) == 2 and pair[0] != "ready"}

    def status(self, name: str) -> str:
        """A field of /proc/PID/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split(":", 1)[1].strip()
        raise RuntimeError(f"no {name} in /proc/{self.pid}/status")

    def state(self) -> str:
        """Its state's letter: R, S, T (stopped), t (traced) ..."""
        return self.status("State")[0]

    def wait_state(self, letter: str, seconds: float = READY_SECONDS) -> None:
        end = time.monotonic() + seconds
        while self.state() != letter:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.pid} is in state {self.state()}, not {letter}, after {seconds:.0f} s")
            time.sleep(0.005)

    def kernel_core(self, sent: int | None = signal.SIGABRT) -> Path:
        """End the program with a signal (None: it ends by itself) and give the kernel's core of it."""
        if sent is not None:
            os.kill(self.pid, sent)
        self.process.wait(timeout=60)
        cores = sorted(self.directory.glob("core*"))
        if len(cores) != 1:
            raise RuntimeError(f"{len(cores)} core files in {self.directory}, expected one")
        return cores[0]


def _raise_core_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def started(
    command: Sequence[str | os.PathLike[str]],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    ready: bool = True,
) -> Iterator[Program]:
    """Run command in directory until the block is left; its stdin is empty, its cores are not limited."""
    process = subprocess.Popen(
        [os.fspath(word) for word in command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        preexec_fn=_raise_core_limit,
        start_new_session=True,
    )
    program = Program(process, directory)
    try:
        if ready:
            program.wait_ready()
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        if process.stdout is not None:
            process.stdout.close()


def kernel_cores_land_here() -> bool:
    """Does the kernel write core files into the dying program's directory?"""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return pattern.startswith("core") and "/" not in pattern and (hard == resource.RLIM_INFINITY or os.geteuid() == 0)


def gcore(pid: int, directory: Path) -> Path:
    """A core of a process that goes on, taken by GDB."""
    prefix = directory / "gcore"
    subprocess.run(
        ["gcore", "-o", os.fspath(prefix), str(pid)],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    return directory / f"gcore.{pid}"


def core_of(program: Program) -> Path:
    """A core of the program at this point, which ends it: the kernel's if it can be had, else GDB's."""
    if kernel_cores_land_here():
        return program.kernel_core()
    return gcore(program.pid, program.directory)
