"""The karst command, run and understood."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("KARST_BUILD", ROOT / "build"))
KARST = BUILD / "karst"
TESTS = BUILD / "tests"
SECONDS = 120.0


def karst(
    *arguments: str | os.PathLike[str], seconds: float = SECONDS, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run karst to its end, whatever that is."""
    return subprocess.run(
        [os.fspath(KARST), *map(os.fspath, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **(environment or {})},
    )


@dataclass(frozen=True)
class Finding:
    code: str
    severity: str
    address: int
    size: int
    text: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.code} ({self.severity}) at {self.address:#x}, {self.size} bytes: {self.text} [{self.evidence}]"


@dataclass(frozen=True)
class Block:
    address: int
    size: int
    usable: int
    state: str
    allocator: str
    arena: str | None
    bin: str | None


class Target:
    """A process or core as karst tells of it; options come before each verb."""

    def __init__(self, *options: str | os.PathLike[str]) -> None:
        self.options = [os.fspath(option) for option in options]

    @classmethod
    def process(cls, pid: int, *options: str | os.PathLike[str]) -> Target:
        return cls("-p", str(pid), *options)

    @classmethod
    def core(cls, path: Path, *options: str | os.PathLike[str]) -> Target:
        return cls("-c", path, *options)

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return karst(*self.options, verb, *arguments)

    def json_text(self, verb: str, *arguments: str, good: Sequence[int] = (0,)) -> str:
        done = self.run(verb, *arguments, "--json")
        assert done.returncode in good, f"karst {verb} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def json(self, verb: str, *arguments: str, good: Sequence[int] = (0,)) -> Any:
        return json.loads(self.json_text(verb, *arguments, good=good))

    def blocks(self, *arguments: str) -> Iterator[Block]:
        for line in self.json_text("blocks", "--all", *arguments).splitlines():
            row = json.loads(line)
            yield Block(
                int(row["address"], 16),
                row["size"],
                row["usable"],
                row["state"],
                row["allocator"],
                row.get("arena"),
                row.get("bin"),
            )

    def check(self) -> tuple[bool, list[Finding]]:
        """(healthy, findings); the exit status has to say the same."""
        done = self.run("check", "--json")
        assert done.returncode in (0, 1), f"karst check ended with {done.returncode}: {done.stderr}"
        answer = json.loads(done.stdout)
        assert answer["healthy"] == (done.returncode == 0), done.stdout
        findings = [
            Finding(
                row["code"],
                row["severity"],
                int(row["address"], 16),
                row["size"],
                row["text"],
                row["evidence"],
            )
            for row in answer["findings"]
        ]
        return answer["healthy"], findings
